"""One hub's side of the backplane: without a Redis, and the warning about other processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from keyfold.actors import ProjectionError, ProjectionSystem
from keyfold.web.live.backplane.cross_process_sync import CrossProcessSync, notice_of
from keyfold.web.live.channels.deltas import Missed
from keyfold.web.live.reactor import Reactor
from keyfold.web.live.settings import LiveSettings


@pytest.fixture
def bare_system() -> Iterator[ProjectionSystem]:
    """A system in memory."""
    system = ProjectionSystem("sqlite://", tuning={"report_seconds": 0})
    yield system
    system.close()


def sync_of(system: ProjectionSystem, **settings: Any) -> CrossProcessSync:
    """A part whose reactor is never started."""
    reactor = Reactor("test-reactor", lambda: None)
    return CrossProcessSync(LiveSettings(**settings), system, reactor, lambda: 0.0)


def test_without_redis_there_is_nothing_to_do(bare_system: ProjectionSystem) -> None:
    """No backplane is made, there are no stats or threads, and no commit waits for an earlier one."""
    sync = sync_of(bare_system)
    sync.invalidate("test.totals", "a", "gap")
    sync.hint("projection.test.totals.a")
    assert (sync.backplane, sync.stats(), sync.loops(), sync.patience) == (None, None, [], 0.0)


def test_before_its_first_use_the_stats_are_zeros(bare_system: ProjectionSystem) -> None:
    """With a Redis in the settings the stats exist at once, without a connection."""
    stats = sync_of(bare_system, redis="redis://127.0.0.1:1/0").stats()
    assert stats is not None
    assert stats["trouble"] is None
    assert stats["garbage"] == stats["published"] == 0


def test_a_wrong_url_is_an_error_at_the_start(bare_system: ProjectionSystem) -> None:
    """The error names the config key."""
    with pytest.raises(ProjectionError, match="KEYFOLD_REDIS is not a URL"):
        sync_of(bare_system, redis="nonsense")


def test_a_closed_part_makes_no_backplane(bare_system: ProjectionSystem) -> None:
    """A commit after the end starts no threads."""
    sync = sync_of(bare_system, redis="redis://127.0.0.1:1/0")
    sync.close(0.0)
    assert sync.backplane is None


@pytest.mark.parametrize(("count", "text"), [(1, "1 other process works"), (2, "2 other processes work")])
def test_other_processes_without_redis_are_warned_about_once(
    bare_system: ProjectionSystem, caplog: pytest.LogCaptureFixture, count: int, text: str
) -> None:
    """A process that reported before the first look does not count; one that reported since then does."""
    sync = sync_of(bare_system)
    sync.look_around(lambda: [{"reported_ago": 1.0}])
    assert not caplog.records
    for _ in range(2):
        sync.look_around(lambda: [{"reported_ago": -1.0}] * count)
    assert [text in record.getMessage() for record in caplog.records] == [True]


def test_the_search_for_other_processes_ends(bare_system: ProjectionSystem) -> None:
    """After twelve looks the database is not asked again."""
    looks: list[None] = []
    sync = sync_of(bare_system)
    for _ in range(20):
        sync.look_around(lambda: looks.append(None) or [])  # type: ignore[func-returns-value]
    assert len(looks) == 12


def test_a_missed_notice_needs_a_known_reason() -> None:
    """Any other reason comes from another release or another program."""
    assert notice_of("c", [1, "rebuild"]) == Missed("rebuild")
    assert notice_of("c", [1, "other"]) is None
    assert notice_of("c", [True, "gap"]) is None
