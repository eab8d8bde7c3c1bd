"""The reports of processes."""

from __future__ import annotations

import pytest
from keyfold.store import SnapshotStore
from keyfold.store import processes as module
from keyfold.store.processes import Processes


@pytest.fixture
def now(monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The time, for the test to change."""
    moment = [1_000_000.0]
    monkeypatch.setattr(module, "time", lambda: moment[0])
    return moment


def test_a_report_replaces_the_one_before(store: SnapshotStore, now: list[float]) -> None:
    """Each says how old it is; old ones are left out."""
    processes = Processes(store)
    processes.report("one", {"process": "one", "rows": 1})
    processes.report("two", {"process": "two"})
    now[0] += 30
    processes.report("one", {"process": "one", "rows": 2})
    assert processes.recent(60) == [
        {"process": "one", "rows": 2, "reported_ago": 0.0},
        {"process": "two", "reported_ago": 30.0},
    ]
    assert [report["process"] for report in processes.recent(20)] == ["one"]


def test_a_process_that_leaves_is_removed(store: SnapshotStore, now: list[float]) -> None:
    """At once."""
    processes = Processes(store)
    processes.report("one", {})
    processes.leave("one")
    assert processes.recent(60) == []


def test_silent_processes_are_removed_by_the_others(store: SnapshotStore, now: list[float]) -> None:
    """Once per hour, those without a report for an hour."""
    processes = Processes(store)
    processes.report("killed", {})
    now[0] += 3_700
    processes.report("alive", {})
    assert len(processes.recent(1_000_000)) == 1


def test_a_clock_that_is_behind_makes_no_negative_age(store: SnapshotStore, now: list[float]) -> None:
    """Clocks of several machines agree only roughly."""
    Processes(store).report("ahead", {})
    now[0] -= 5
    assert Processes(store).recent(60) == [{"reported_ago": 0.0}]
