"""The promises hold, whichever exception any line of actors/ and store/ raises. Judged by scenario.py."""

from __future__ import annotations

import os
import random
from collections.abc import Iterator
from math import inf
from pathlib import Path
from time import monotonic

import pytest
from faults import Run, databases, inject, plan
from support.postgres import PostgresServer

SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
SECONDS = 15.0
POSTGRES_SECONDS = 8.0
"""How long the lines that the seed has drawn are tried in turn."""
_FEWEST = 20
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
            _shared_postgres.drop_database(made.pop())

    yield urls()
    for name in made:
        _shared_postgres.drop_database(name)


def check(urls: Iterator[str], runs: list[Run], seconds: float = inf) -> None:
    """Make runs until the time is over, and fail with the violations."""
    found: list[str] = []
    missed = made = 0
    ends = monotonic() + seconds
    for run in runs:
        if made >= _FEWEST and monotonic() > ends:
            break
        made += 1
        outcome = inject(urls, run)
        missed += outcome is None
        if outcome is not None and outcome.violations:
            found.append(f"{run}:\n    " + "\n    ".join(outcome.violations + outcome.notes))
    shown = "\n".join(found[:_SHOWN])
    assert not found, f"CHAOS_SEED={SEED}: {len(found)} of {made} runs broke a promise\n{shown}"
    assert missed <= made / 10, f"{missed} of {made} lines were not reached"


@pytest.mark.timeout(600)
def test_an_exception_at_any_line_leaves_all_in_order(sqlite_urls: Iterator[str]) -> None:
    """A signal in the caller's thread, a defect in ours: Receipts end, close is in time, rows are right."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    runs = plan(sqlite_urls)
    assert len(runs) > 3000
    random.Random(SEED).shuffle(runs)
    check(sqlite_urls, runs, SECONDS)


@pytest.mark.timeout(600)
def test_an_exception_at_any_line_leaves_all_in_order_on_postgresql(postgres_urls: Iterator[str]) -> None:
    """The same with PostgreSQL: a sample of it."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    runs = plan(postgres_urls)
    random.Random(SEED).shuffle(runs)
    check(postgres_urls, runs, POSTGRES_SECONDS)


@pytest.mark.slow
@pytest.mark.timeout(3600)
@pytest.mark.parametrize("share", range(4))
def test_an_exception_at_every_line_leaves_all_in_order(share: int, sqlite_urls: Iterator[str]) -> None:
    """Every line that the scenario comes to, in quarters."""
    check(sqlite_urls, plan(sqlite_urls)[share::4])
