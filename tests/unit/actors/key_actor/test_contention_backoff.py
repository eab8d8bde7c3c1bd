"""Between processes that write one key: the winner steps back, and nothing is lost by that."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import ClassVar

import pytest
from keyfold.actors import EventBus, ProjectionSystem, Receipt, engine
from keyfold.actors.broadcaster import Committed
from keyfold.actors.key_actor import contention_backoff
from keyfold.actors.key_actor.contention_backoff import ContentionBackoff
from keyfold.actors.pool.timer import Timer
from support.counting import Added, RecordingBroadcaster, Totals
from support.parking import DEADLINE


class HandTimer(Timer):
    """Makes a call when the test says so."""

    made: ClassVar[list[HandTimer]] = []

    def __init__(self) -> None:
        super().__init__()
        self.made.append(self)
        self.pauses: list[float] = []
        self._calls: list[Callable[[], object]] = []
        self._added = threading.Semaphore(0)

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        self.pauses.append(seconds)
        self._calls.append(call)
        self._added.release()

    def wait_for_a_pause(self) -> None:
        """Return once an actor pauses."""
        assert self._added.acquire(timeout=DEADLINE)

    def go_on(self) -> None:
        """Make the oldest call."""
        self._calls.pop(0)()


class Clock:
    """Stands still until the test moves it."""

    now = 1000.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the contention backoff."""
    clock = Clock()
    monkeypatch.setattr(contention_backoff, "monotonic", clock)
    return clock


@pytest.fixture
def timers(monkeypatch: pytest.MonkeyPatch) -> list[HandTimer]:
    """The timers of the systems that are made, in that order."""
    monkeypatch.setattr(engine, "Timer", HandTimer)
    monkeypatch.setattr(HandTimer, "made", [])
    return HandTimer.made


class Follower(RecordingBroadcaster):
    """Dispatches one event in the middle of a turn's end: more is waiting by then, as for a busy key."""

    def __init__(self) -> None:
        super().__init__(self._follow)
        self.bus: EventBus | None = None
        self.receipts: list[Receipt] = []

    def _follow(self, committed: Committed) -> None:
        if self.bus is not None:
            bus, self.bus = self.bus, None
            self.receipts.append(bus.dispatch(Added(committed.key)))


def test_the_winner_of_a_contended_key_steps_back(
    make_system: Callable[..., ProjectionSystem], timers: list[HandTimer], clock: Clock
) -> None:
    """After a conflict it pauses, and folds all that has come meanwhile in one turn.

    Without one it does not.
    """
    follower = Follower()
    ours, theirs = make_system(broadcaster=follower), make_system()
    ours.register(Totals())
    theirs.register(Totals())
    ours.bus.dispatch(Added("a")).result(DEADLINE)
    [timer] = timers
    follower.bus = ours.bus
    ours.bus.dispatch(Added("a")).result(DEADLINE)
    assert follower.receipts.pop().result(DEADLINE)[0].version == 3
    assert timer.pauses == []  # no other process writes the key
    theirs.bus.dispatch(Added("a")).result(DEADLINE)
    follower.bus = ours.bus
    assert ours.bus.dispatch(Added("a")).result(DEADLINE)[0].version == 5
    turns = ours.stats()["projections"]["test.totals"]["turns"]
    more = [*follower.receipts, *(ours.bus.dispatch(Added("a")) for _ in range(3))]
    timer.wait_for_a_pause()
    assert theirs.bus.dispatch(Added("a")).result(DEADLINE)[0].version == 6  # there is room for it
    assert not any(receipt.done() for receipt in more)
    clock.now += timer.pauses[0]
    timer.go_on()
    assert [receipt.result(DEADLINE)[0].version for receipt in more] == [7, 8, 9, 10]
    assert ours.stats()["projections"]["test.totals"]["turns"] == turns + 1


def test_the_pauses_are_bounded(clock: Clock) -> None:
    """Eight turns, and never over 50 ms, however long a commit took."""
    owed = ContentionBackoff()
    for left in range(7, -1, -1):
        assert owed.committed(60.0) == (left > 0)
        assert 0.0 <= owed.pause() <= 0.05
        clock.now += 0.051
        assert owed.pause() < 0.0


def test_what_waits_for_a_pause_is_committed_by_a_close(make_system: Callable[..., ProjectionSystem]) -> None:
    """Two systems at one key as fast as they can, and closed at once: each event is there once."""
    systems = [make_system() for _ in range(2)]
    for system in systems:
        system.register(Totals())
    receipts = [system.bus.dispatch(Added("a")) for _ in range(500) for system in systems]
    for system in systems:
        system.close()
    versions = sorted(receipt.result(0)[0].version for receipt in receipts)
    assert versions == list(range(1, 1001))
