"""A place where a test holds a thread, to turn a race into an order."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic

DEADLINE = 20.0
"""Seconds after which a test that waits has failed. Nothing takes this long."""


class Parking:
    """``park()`` blocks its thread until ``release()``; ``wait_for_arrival()`` waits for a parked thread."""

    def __init__(self) -> None:
        self._arrived = threading.Semaphore(0)
        self._leave = threading.Event()

    def park(self) -> None:
        """Wait here until released."""
        self._arrived.release()
        assert self._leave.wait(DEADLINE), "nobody released the parked thread"

    def wait_for_arrival(self) -> None:
        """Return when one more thread is parked, or has been."""
        assert self._arrived.acquire(timeout=DEADLINE), "nobody came to park"

    def release(self) -> None:
        """Release all threads, now and later."""
        self._leave.set()


def wait_until(predicate: Callable[[], bool]) -> None:
    """Poll a condition every few milliseconds until it is true. Fails at the deadline."""
    condition, ends = threading.Condition(), monotonic() + DEADLINE
    with condition:
        while not predicate():
            assert monotonic() < ends, "it did not come to that"
            condition.wait(0.005)
