# A fresh machine with Python >= 3.11 needs only two commands: make demo, make test.
PYTHON ?= python3
# Prefer pyenv's Python 2.7: the one on the PATH may be a shim without an interpreter.
PYTHON2 ?= $(lastword python2.7 $(wildcard $(or $(PYENV_ROOT),$(HOME)/.pyenv)/versions/2.7*/bin/python2.7))
BIN := .venv/bin

.PHONY: help demo demo-workers test test-all chaos lint format typing build release docs bench autobahn has-python2 soak clean
.DEFAULT_GOAL := help

help:  ## list the targets
	@grep -hE '^[a-z-]+:.*##' $(MAKEFILE_LIST) | sed -E 's/:.*## /\t/' | expand -t 12

# One virtual environment, and one stamp per dependency group, so that nothing is installed twice.
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

demo-workers: .venv/demo.stamp .venv/servers.stamp  ## the same with four gunicorn workers; KEYFOLD_DATABASE and KEYFOLD_REDIS name their database and Redis
	exec $(BIN)/gunicorn --chdir examples/airport_board --bind "127.0.0.1:$${PORT:-8000}" \
		--workers 4 --threads 8 -c python:keyfold.web.gunicorn "app:create_app()"

.venv/tools.stamp: tests/install_tools.sh .venv/pip.stamp
	tests/install_tools.sh
	touch $@

# Two processes, each test file on one of them: a test mostly waits for a process or a socket.
test: .venv/test.stamp .venv/tools.stamp  ## run the tests, on SQLite and on a real PostgreSQL
	$(BIN)/pytest -m "not slow" -n 2 --dist loadfile

test-all: .venv/test.stamp .venv/tools.stamp  ## run the slow tests, which make test leaves out
	$(BIN)/pytest -m slow

chaos: .venv/test.stamp  ## inject faults into two processes for an hour, or until a promise is broken: make chaos MINUTES=5 SEED=7
	PYTHONPATH=tests/helpers $(BIN)/python -W ignore tests/chaos/rounds.py $(if $(SEED),--seed $(SEED)) \
		$(if $(MINUTES),--minutes $(MINUTES)) $(if $(ROUND),--round $(ROUND)) $(if $(DATABASE),--database $(DATABASE))

lint: .venv/lint.stamp  ## check style and format
	$(BIN)/ruff check
	$(BIN)/ruff format --check

format: .venv/lint.stamp  ## fix style and format where that is automatic
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

release: build  ## check the files of make build, and try them on every Python of this machine
	$(BIN)/check-wheel-contents dist/*.whl
	$(BIN)/python tests/packaging/release.py dist/*

docs: .venv/docs.stamp .venv/test.stamp  ## build the site in build/site; broken links and undocumented public names are errors
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

autobahn: .venv/autobahn.stamp .venv/bench.stamp  ## run the Autobahn WebSocket suite, and write its figures to docs/benchmarks.md: make autobahn PYTHON2=python2.7
	PYTHON2=$(PYTHON2) $(BIN)/python benchmarks/report.py autobahn

soak: .venv/bench.stamp .venv/tools.stamp  ## run ten minutes of kills and freezes: make soak MINUTES=2 SEED=7
	$(BIN)/python benchmarks/soak.py $(if $(MINUTES),--minutes $(MINUTES)) $(if $(SEED),--seed $(SEED))

clean:  ## remove built and installed files
	rm -rf .venv build dist *.egg-info .pytest_cache .mypy_cache .ruff_cache .hypothesis
