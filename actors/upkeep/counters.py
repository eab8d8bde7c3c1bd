"""What a projection's actors count, and the bound on events under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any


class Counters:
    """Totals of one projection since the process began. Changed a turn at a time, under a lock."""

    NAMES = (
        "broadcast_errors",
        "conflicts",
        "dead_letters",
        "events",
        "gone_back",
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


_FEW = 64


class InFlight:
    """All events and commands that were accepted and have no outcome yet, over all keys.

    The process-wide bound, what a close waits for, and the list by which it ends what is left. Nothing is
    counted up and down: the number is the size of a set, so it is right whatever raised in between. Adding and
    removing are single calls into C, and doing either twice does no harm.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Any] = set()
        """Who accepts one more adds it here, and compares the size with the limit afterwards."""
        self._changed = threading.Condition()
        self._waiting = 0

    def __len__(self) -> int:
        return len(self.open)

    def remove(self, ended: Iterable[Any]) -> None:
        """Take out those that have an outcome, or were refused after all."""
        self.open.difference_update(ended)
        # Who waits counts itself first and looks at the set second, so one of the two sees the other.
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def fail_all(self, error: Exception) -> None:
        """End with this error all that are left."""
        while self.open:
            left = list(self.open)
            for one in left:
                one.fail(error)
            self.remove(left)

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until there are fewer than the limit. False once the deadline has passed."""
        return self._wait_until(lambda: len(self.open) < self.limit, deadline)

    def wait_for_none(self, deadline: float) -> bool:
        """Wait until there are none. False once the deadline has passed."""
        return self._wait_until(self._none_left, deadline)

    def _none_left(self) -> bool:
        # One that has its outcome, and whose actor failed before it could say so, holds nobody up.
        if 0 < len(self.open) <= _FEW:
            self.open.difference_update([one for one in list(self.open) if one.is_over()])
        return not self.open

    def _wait_until(self, predicate: Callable[[], bool], deadline: float) -> bool:
        with self._changed:
            try:
                self._waiting += 1
                seconds = min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
                return self._changed.wait_for(predicate, seconds)
            finally:
                self._waiting -= 1
