"""What a projection's actors count, and the bound on events under way."""

from __future__ import annotations

import itertools
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
        # One number only ever grows by C code that no thread can interrupt, the other under a lock once a
        # turn: a lock a dispatch was a quarter of what a dispatch took.
        self._accepted = itertools.count()
        self._settled = 0
        self._lock = threading.Lock()
        self._changed = threading.Condition(self._lock)
        self._waiting = 0

    @property
    def count(self) -> int:
        """How many are under way."""
        # A count tells where it is, without moving on, by its repr alone: "count(7)".
        return int(repr(self._accepted)[6:-1]) - self._settled

    def accept(self) -> bool:
        """Count one event as accepted. False, and it is not counted: the limit is reached."""
        if next(self._accepted) - self._settled < self.limit:
            return True
        self.settle(1)
        return False

    def settle(self, events: int) -> None:
        """Count events as committed, failed or refused after all."""
        with self._lock:
            self._settled += events
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
