"""What a projection's actors count, and the bound on events under way."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic


class Counters:
    """Totals of one projection since the process began. Changed a turn at a time, under a lock."""

    NAMES = (
        "broadcast_errors",
        "conflicts",
        "dead_letters",
        "events",
        "halts",
        "hook_errors",
        "loads",
        "parked",
        "refused",
        "retried",
        "retired",
        "spawned",
        "turns",
    )

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._totals = dict.fromkeys(self.NAMES, 0)

    def add(self, **increments: int) -> None:
        """Add to the named totals."""
        with self._lock:
            for name, increment in increments.items():
                self._totals[name] += increment

    def __getitem__(self, name: str) -> int:
        return self._totals[name]

    def totals(self) -> dict[str, int]:
        """Return a consistent copy of all totals."""
        with self._lock:
            return dict(self._totals)


class InFlight:
    """Events accepted and not yet settled, over all keys: the process-wide bound, and what close waits for."""

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.count = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0

    def accept(self) -> bool:
        """Count one event as accepted. False, and it is not counted: the limit is reached."""
        with self._lock:
            if self.count >= self.limit:
                return False
            self.count += 1
            return True

    def settle(self, events: int) -> None:
        """Count events as committed, failed or refused after all."""
        with self._lock:
            self.count -= events
            if self._waiting:
                self._changed.notify_all()

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until the count is below the limit. False once the deadline has passed."""
        return self._wait_until(lambda: self.count < self.limit, deadline)

    def wait_for_none(self, deadline: float) -> bool:
        """Wait until nothing is under way. False once the deadline has passed."""
        return self._wait_until(lambda: self.count == 0, deadline)

    def _wait_until(self, predicate: Callable[[], bool], deadline: float) -> bool:
        with self._lock:
            self._waiting += 1
            try:
                return self._changed.wait_for(predicate, max(0.0, deadline - monotonic()))
            finally:
                self._waiting -= 1
