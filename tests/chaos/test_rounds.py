"""A few short rounds of ``make chaos``: two processes, one database, all features and faults at once."""

from __future__ import annotations

import os
import random
from pathlib import Path

import pytest
from rounds import play, report

SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
SECONDS = 3.0


@pytest.mark.timeout(400)  # a process that hangs shows its threads before that
@pytest.mark.parametrize("number", [1, 2, 3])
def test_no_promise_is_broken(number: int, database_url: str, tmp_path: Path) -> None:
    """An accepted event is folded once, in order, or is a letter; no state is half changed, nothing left."""
    kind = database_url.partition(":")[0]
    print(f"CHAOS_SEED={SEED}, round {number} on {kind}")  # noqa: T201
    round_ = play(database_url, f"{SEED} {number}", SECONDS, tmp_path)
    assert not round_.violations, report(round_, f"make chaos SEED={SEED} ROUND={number} DATABASE={kind}")
    assert round_.counts["committed"] > 0
