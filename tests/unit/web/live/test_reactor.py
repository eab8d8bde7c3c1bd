"""The reactor: callbacks in order on one thread, which starts with the first call."""

from __future__ import annotations

import queue
import socket
import threading
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pytest
from keyfold.web.live.reactor import READABLE, Reactor
from support.parking import DEADLINE, Parking, wait_until


@pytest.fixture
def done() -> queue.SimpleQueue[Any]:
    return queue.SimpleQueue()


@pytest.fixture
def reactor(done: queue.SimpleQueue[Any]) -> Iterator[Reactor]:
    reactor = Reactor("test-reactor", lambda: done.put("started"))
    yield reactor
    if reactor.is_alive:
        assert reactor.stop(DEADLINE)


def test_it_has_no_thread_before_the_first_call(reactor: Reactor, done: queue.SimpleQueue[Any]) -> None:
    """on_start runs before that call, whichever thread makes it."""
    assert not reactor.is_started
    assert not reactor.is_alive
    reactor.call(done.put, "called")
    assert reactor.is_alive
    assert [done.get(timeout=DEADLINE) for _ in range(2)] == ["started", "called"]


def test_two_first_calls_start_one_thread(reactor: Reactor, done: queue.SimpleQueue[Any]) -> None:
    """It is started once."""
    barrier = threading.Barrier(8)

    def first() -> None:
        barrier.wait(DEADLINE)
        reactor.call(done.put, "called")

    callers = [threading.Thread(target=first) for _ in range(8)]
    for caller in callers:
        caller.start()
    for caller in callers:
        caller.join(DEADLINE)
    assert [done.get(timeout=DEADLINE) for _ in range(9)] == ["started", *["called"] * 8]
    assert [thread.name for thread in threading.enumerate()].count("test-reactor") == 1


def test_calls_are_made_in_order_and_an_error_harms_no_other(
    reactor: Reactor, done: queue.SimpleQueue[Any], caplog: pytest.LogCaptureFixture
) -> None:
    """It is logged."""

    def fail() -> None:
        raise ValueError

    reactor.call(done.put, 1)
    reactor.call(fail)
    reactor.call(done.put, 2)
    assert [done.get(timeout=DEADLINE) for _ in range(3)] == ["started", 1, 2]
    assert "test-reactor" in caplog.text


def test_timers_are_run_in_the_order_of_their_times(reactor: Reactor, done: queue.SimpleQueue[Any]) -> None:
    """Not in the order in which they were set."""

    def set_timers() -> None:
        reactor.call_later(0.02, done.put, "later")
        reactor.call_later(0.0, done.put, "soon")
        reactor.call_later(3600.0, done.put, "never")

    reactor.call(set_timers)
    assert [done.get(timeout=DEADLINE) for _ in range(3)] == ["started", "soon", "later"]


def test_a_socket_that_is_readable_wakes_it(reactor: Reactor, done: queue.SimpleQueue[Any]) -> None:
    """Until it is forgotten."""
    ours, theirs = socket.socketpair()
    with ours, theirs:

        def ready(events: int) -> None:
            done.put((events, ours.recv(10)))

        reactor.call(reactor.watch, ours, READABLE, ready)
        theirs.send(b"1")
        assert [done.get(timeout=DEADLINE) for _ in range(2)] == ["started", (READABLE, b"1")]
        reactor.call(reactor.forget, ours)
        reactor.call(reactor.forget, ours)  # the second time has no effect
        reactor.call(done.put, "forgotten")
        assert done.get(timeout=DEADLINE) == "forgotten"
        theirs.send(b"2")
        reactor.call(done.put, "after")
        assert done.get(timeout=DEADLINE) == "after"


def test_a_callback_that_hangs_is_seen_in_its_health(reactor: Reactor) -> None:
    """And the end of the thread too."""
    parking = Parking()
    reactor.call(parking.park)
    parking.wait_for_arrival()
    assert reactor.health(monotonic() + 100).trouble(50) is not None
    parking.release()
    wait_until(lambda: reactor.health(monotonic()).busy_seconds == 0)
    assert reactor.stop(DEADLINE)
    assert reactor.health(monotonic()).trouble(50) == "has ended"
    reactor.call(parking.park)  # a late call harms nobody
    reactor.start()


def test_stop_on_its_own_thread_does_not_wait_for_itself(
    reactor: Reactor, done: queue.SimpleQueue[Any]
) -> None:
    """It ends all the same."""
    reactor.call(lambda: done.put(reactor.stop(DEADLINE)))
    assert [done.get(timeout=DEADLINE) for _ in range(2)] == ["started", False]
    wait_until(lambda: not reactor.is_alive)
