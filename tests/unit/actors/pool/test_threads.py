"""A WatchedThread works on one item after another, shows how long a step takes, and can be ended."""

from __future__ import annotations

import queue
from importlib import import_module
from time import monotonic

import pytest
from keyfold.actors import system
from keyfold.actors.pool.threads import (
    ThreadHealth,
    WatchedThread,
    on_dispatcher_thread,
    on_own_thread,
    role_of_thread,
)
from support.parking import DEADLINE, Parking, wait_until


def test_a_step_that_raises_is_followed_by_the_next(caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit included: the thread is needed for the others."""
    items: queue.SimpleQueue[str | None] = queue.SimpleQueue()
    done: list[str] = []

    def work(item: str) -> None:
        if item == "poison":
            raise SystemExit
        done.append(item)

    thread = WatchedThread("keyfold-test", items.get, work)
    for item in ("a", "poison", "b", None):
        items.put(item)
    thread.start()
    assert thread.join(monotonic() + DEADLINE)
    assert done == ["a", "b"]
    assert "a step of keyfold-test failed" in caplog.text


def test_the_health_of_a_thread_tells_a_step_that_hangs() -> None:
    """And a thread that waits, which is well however long that takes, from one that has ended."""
    items: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    parking = Parking()
    thread = WatchedThread("keyfold-test", items.get, lambda _item: parking.park())
    thread.start()
    later = monotonic() + 60.0
    assert thread.health(later) == ThreadHealth("keyfold-test", alive=True, busy_seconds=0.0)
    items.put(1)
    parking.wait_for_arrival()
    assert "has been in one step for" in str(thread.health(later).trouble(10.0))
    assert thread.health(later).trouble(3600.0) is None
    assert not thread.join(monotonic() + 0.01)
    parking.release()
    wait_until(lambda: thread.health(later).trouble(10.0) is None)
    items.put(None)
    assert thread.join(monotonic() + DEADLINE)
    assert thread.health(later).trouble(10.0) == "has ended"


def test_a_thread_that_was_never_started_has_nothing_to_be_waited_for() -> None:
    """A start that fails half way stops all of them."""
    thread: WatchedThread[int] = WatchedThread("keyfold-test", lambda: None, lambda _item: None)
    assert thread.ident is None
    assert thread.join(monotonic())
    assert not thread.is_alive()


def test_a_thread_has_a_role_and_a_beginning_and_an_end() -> None:
    """The end is called also where ``take`` raises, which ends the thread."""
    seen: list[object] = []
    items: queue.SimpleQueue[int | None] = queue.SimpleQueue()
    thread: WatchedThread[int] = WatchedThread(
        "keyfold-test",
        items.get,
        lambda _item: seen.append((role_of_thread(), on_dispatcher_thread(), thread.is_current())),
        role="dispatcher",
        on_start=lambda: seen.append("start"),
        on_end=lambda: seen.append("end"),
    )
    items.put(1)
    items.put(None)
    thread.start()
    assert thread.join(monotonic() + DEADLINE)
    assert seen == ["start", ("dispatcher", True, True), "end"]
    assert not on_own_thread()
    assert not thread.is_current()


def test_the_modules_that_hold_locks_are_there() -> None:
    """A close in a signal handler looks for them by name, on the stack that was interrupted."""
    for module in system._WITH_LOCKS:
        assert import_module(module)
