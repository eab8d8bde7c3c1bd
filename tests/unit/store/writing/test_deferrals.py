"""Messages that wait: when they are tried again, and when they mean trouble."""

from __future__ import annotations

import pytest
from keyfold.store.errors import StatementRefused
from keyfold.store.rows import Save
from keyfold.store.writing import deferrals as module
from keyfold.store.writing.deferrals import Deferrals
from keyfold.store.writing.writer_messages import Answer, Write

LOCKED = StatementRefused("the row is locked", locked=True)
REFUSED = StatementRefused("no permission")


class Clock:
    """A monotonic clock that the test advances."""

    def __init__(self) -> None:
        self.now = 100.0

    def __call__(self) -> float:
        return self.now


@pytest.fixture
def clock(monkeypatch: pytest.MonkeyPatch) -> Clock:
    """The clock of the module."""
    clock = Clock()
    monkeypatch.setattr(module, "monotonic", clock)
    return clock


def write(key: str, size: int = 1) -> Write:
    def ignore(_answer: Answer, /) -> None:
        pass

    return Write(Save("test", key, None, "e", 1, b"1" * size), ignore)


def test_a_message_at_fault_waits_twice_as_long_each_time_and_at_most_two_seconds(clock: Clock) -> None:
    """Counted from each refusal."""
    deferrals, message = Deferrals(), write("a")
    pauses = []
    for _ in range(8):
        deferrals.add(message, REFUSED, at_fault=True, row_is_locked=False)
        start = clock.now
        while not deferrals.due(10, 1_000):
            clock.now += 0.01
        pauses.append(round(clock.now - start, 1))
    assert pauses[0] <= 0.1
    assert pauses == sorted(pauses)
    assert pauses[-1] == 2.0
    assert len(deferrals) == 1


def test_each_message_has_a_backoff_of_its_own(clock: Clock) -> None:
    """A new one is due long before one that was refused often."""
    deferrals, old, new = Deferrals(), write("old"), write("new")
    for _ in range(6):
        deferrals.add(old, REFUSED, at_fault=True, row_is_locked=False)
    deferrals.add(new, REFUSED, at_fault=False, row_is_locked=False)
    clock.now += 0.06
    assert deferrals.due(10, 1_000) == [new]


def test_due_messages_come_longest_due_first_within_the_limits_of_a_commit(clock: Clock) -> None:
    """Their number and their bytes."""
    deferrals = Deferrals()
    messages = [write(key, 10) for key in "abc"]
    for message in messages:
        deferrals.add(message, REFUSED, at_fault=False, row_is_locked=False)
        clock.now += 0.001
    clock.now += 1
    assert deferrals.due(10, 1_000) == messages
    assert deferrals.due(2, 1_000) == messages[:2]
    assert deferrals.due(10, 15) == messages[:2]


def test_the_reason_is_that_of_a_message_at_fault(clock: Clock) -> None:
    """It goes with the message; one that was in the same group by accident has none."""
    deferrals, innocent, locked = Deferrals(), write("innocent"), write("a")
    deferrals.add(innocent, LOCKED, at_fault=False, row_is_locked=False)
    assert deferrals.reason == ""
    deferrals.add(locked, LOCKED, at_fault=True, row_is_locked=True)
    assert deferrals.reason == "row (test, a): the row is locked"
    assert deferrals.remove(locked)
    assert not deferrals.remove(locked)
    assert deferrals.reason == ""
    assert deferrals.messages() == [innocent]


def test_everything_is_stuck_when_several_messages_wait_and_none_is_committed(clock: Clock) -> None:
    """Locked rows tell nothing of the others, and neither does a single message."""
    deferrals = Deferrals()
    deferrals.add(write("a"), REFUSED, at_fault=True, row_is_locked=False)
    deferrals.add(write("b"), LOCKED, at_fault=True, row_is_locked=True)
    assert not deferrals.is_everything_stuck()
    deferrals.add(write("c"), REFUSED, at_fault=True, row_is_locked=False)
    assert deferrals.is_everything_stuck()
    clock.now += 1
    deferrals.note_commit()
    assert not deferrals.is_everything_stuck()


def test_the_writer_checks_often_while_messages_wait(clock: Clock) -> None:
    """For the system that closes; it sleeps when none waits."""
    deferrals = Deferrals()
    assert deferrals.next_check_at() is None
    for _ in range(8):
        deferrals.add(write("a"), REFUSED, at_fault=True, row_is_locked=False)
    checked = deferrals.next_check_at()
    assert checked is not None
    assert clock.now < checked <= clock.now + 0.05
