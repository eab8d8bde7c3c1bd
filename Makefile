# Two commands are all a fresh machine with Python >= 3.11 needs: make demo, make test.
PYTHON ?= python3
# Of pyenv, where it has one: a Python 2.7 on the PATH may be a shim that leads nowhere.
PYTHON2 ?= $(lastword python2.7 $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/2.7*/bin/python2.7))
BIN := .venv/bin

.PHONY: help demo demo-workers test test-all chaos lint format typing build release docs bench autobahn has-python2 soak clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One virtual environment; a stamp a dependency group, so that nothing is installed twice.
.venv/pip.stamp:
	$(PYTHON) -c 'import sys; sys.exit("Keyfold needs Python 3.11 or newer" if sys.version_info < (3, 11) else 0)'
	$(PYTHON) -m venv .venv
	$(BIN)/pip install --quiet --upgrade "pip>=25.1"
	touch $@

.venv/demo.stamp: .venv/pip.stamp pyproject.toml
	$(BIN)/pip install --quiet --editable .
	touch $@

.venv/%.stamp: .venv/demo.stamp
	$(BIN)/pip install --quiet --group $*
	touch $@

demo: .venv/demo.stamp  ## serve the airport board on SQLite and print its URL
	exec $(BIN)/python examples/airport_board/app.py

demo-workers: .venv/demo.stamp .venv/servers.stamp  ## the same by gunicorn, four workers; KEYFOLD_DATABASE and KEYFOLD_REDIS name what they share
	exec $(BIN)/gunicorn --chdir examples/airport_board --bind "127.0.0.1:$${PORT:-8000}" \
		--workers 4 --threads 8 -c python:keyfold.web.gunicorn "app:create_app()"

.venv/tools.stamp: tests/install_tools.sh .venv/pip.stamp
	tests/install_tools.sh
	touch $@

# Two at a time, a file on one side: most of a test's time is spent waiting for a process or a socket.
test: .venv/test.stamp .venv/tools.stamp  ## run the tests, on SQLite and on a real PostgreSQL
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: .venv/test.stamp .venv/tools.stamp  ## run the tests that make test leaves out, as they take longer
	$(BIN)/pytest -m slow

chaos: .venv/test.stamp  ## an hour of faults in two processes, until a promise is broken: make chaos MINUTES=5 SEED=7
	PYTHONPATH=tests/helpers $(BIN)/python -W ignore tests/chaos/rounds.py $(if $(SEED),--seed $(SEED)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUND),--round $(ROUND)) $(if $(DATABASE),--database $(DATABASE))

lint: .venv/lint.stamp  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/lint.stamp  ## mend style and format where that can be done by itself
	$(BIN)/ruff check --fix
	$(BIN)/ruff format

typing: .venv/typing.stamp  ## mypy strict and pyright
	$(BIN)/mypy
	$(BIN)/pyright

build: .venv/build.stamp  ## make wheel and sdist, and install each into an empty environment
	rm -rf dist build
	$(BIN)/python -m build --quiet
	$(BIN)/twine check --strict dist/*
	for made in dist/*.whl dist/*.tar.gz; do \
		rm -rf build/empty && $(PYTHON) -m venv build/empty && \
		build/empty/bin/pip install --quiet "$$made" && \
		(cd build && empty/bin/python -c "import keyfold.actors, keyfold.store, keyfold.web") || exit 1; \
	done

release: build  ## check what make build has made, and try it on every Python of this machine
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tests/packaging/release.py dist/*

docs: .venv/docs.stamp .venv/test.stamp  ## build the site in build/site; a broken link, or a public name without a word, is an error
	$(BIN)/pytest --quiet tests/docs/test_reference.py
	NO_MKDOCS_2_WARNING=1 $(BIN)/mkdocs build --strict --quiet

bench: .venv/bench.stamp .venv/tools.stamp  ## run all benchmarks; write docs/benchmarks.md, its plots, the README's table
	$(BIN)/python benchmarks/report.py

bench-%: .venv/bench.stamp .venv/tools.stamp  ## run one benchmark: make bench-durable
	$(BIN)/python benchmarks/$*.py

.venv/autobahn.stamp: benchmarks/autobahn.txt .venv/pip.stamp
	@$(PYTHON2) --version > /dev/null 2>&1 || { echo "The Autobahn suite needs Python 2.7, and there is no $(PYTHON2) here." \
		"Install one (pyenv install 2.7.18), then: make autobahn PYTHON2=/path/to/python2.7"; exit 1; }
	rm -rf .venv/autobahn
	$(PYTHON2) -m pip install --quiet --disable-pip-version-check --no-deps --target .venv/autobahn -r $<
	touch $@

has-python2:
	@$(PYTHON2) --version > /dev/null 2>&1

autobahn: .venv/autobahn.stamp .venv/bench.stamp  ## the Autobahn WebSocket suite, figures into docs/benchmarks.md: make autobahn PYTHON2=python2.7
	PYTHON2=$(PYTHON2) $(BIN)/python benchmarks/report.py autobahn

soak: .venv/bench.stamp .venv/tools.stamp  ## ten minutes of kills and freezes: make soak MINUTES=2 SEED=7
	$(BIN)/python benchmarks/soak.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

clean:  ## remove what was built and installed
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
