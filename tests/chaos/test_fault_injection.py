"""Whatever is raised at whatever line of actors/ and store/, the promises hold: see scenario.py for what is judged."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from faults import Run, databases, inject, plan
from support.postgres import PostgresServer

SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
SAMPLE = 400
POSTGRES_SAMPLE = 60
_SHOWN = 20


@pytest.fixture
def sqlite_urls(tmp_path: Path) -> Iterator[str]:
    """Fresh SQLite files, without end."""
    return databases(str(tmp_path / "faults"))


@pytest.fixture
def postgres_urls(_shared_postgres: PostgresServer) -> Iterator[Iterator[str]]:
    """Fresh databases of the session's PostgreSQL, without end."""
    made: list[str] = []

    def urls() -> Iterator[str]:
        while True:
            made.append(_shared_postgres.create_database())
            yield _shared_postgres.url_of(made[-1])

    yield urls()
    for name in made:
        _shared_postgres.drop_database(name)


def check(urls: Iterator[str], runs: list[Run]) -> None:
    """Make the runs, and fail with what was violated in them."""
    found: list[str] = []
    missed = 0
    for run in runs:
        outcome = inject(urls, run)
        missed += outcome is None
        if outcome is not None and outcome.violations:
            found.append(f"{run}:\n    " + "\n    ".join(outcome.violations + outcome.notes))
    shown = "\n".join(found[:_SHOWN])
    assert not found, f"CHAOS_SEED={SEED}: {len(found)} of {len(runs)} runs broke a promise\n{shown}"
    assert missed < len(runs) / 10, f"{missed} of {len(runs)} lines were not reached"


@pytest.mark.timeout(600)
def test_an_exception_at_any_line_leaves_all_in_order(sqlite_urls: Iterator[str]) -> None:
    """A signal in the caller's thread, a defect in ours: Receipts end, close keeps its time, rows are right."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    runs = plan(sqlite_urls)
    assert len(runs) > 3000
    check(sqlite_urls, random.Random(SEED).sample(runs, SAMPLE))


@pytest.mark.timeout(600)
def test_an_exception_at_any_line_leaves_all_in_order_on_postgresql(postgres_urls: Iterator[str]) -> None:
    """The same with PostgreSQL: a sample of it."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    check(postgres_urls, random.Random(SEED).sample(plan(postgres_urls), POSTGRES_SAMPLE))


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(4))
def test_an_exception_at_every_line_leaves_all_in_order(share: int, sqlite_urls: Iterator[str]) -> None:
    """Every line that the scenario comes to, in quarters."""
    check(sqlite_urls, plan(sqlite_urls)[share::4])
