"""The totals of a projection, and the bound on events under way."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable
from time import monotonic
from typing import Any


class Counters:
    """Totals of one projection since the process began. Changed once per commit, under a lock."""

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
    """All events and commands that were accepted and have no outcome yet, over all keys of a process.

    Their number is bounded; a close waits until there are none, and fails those that are left. The number is
    the size of a set and not a counter, so it is right wherever an exception was raised in between. Adding
    and removing are single calls into C, and doing either twice does no harm.
    """

    def __init__(self, limit: int) -> None:
        self.limit = limit
        self.open: set[Any] = set()
        """A sender adds each message here first, and compares the size with the limit afterwards."""
        self._changed = threading.Condition()
        self._waiting = 0

    def __len__(self) -> int:
        return len(self.open)

    def remove(self, ended: Iterable[Any]) -> None:
        """Remove messages that have an outcome, or were refused after all."""
        self.open.difference_update(ended)
        # A thread that waits counts itself first and looks at the set second, so one of the two sees the
        # other.
        if self._waiting:
            with self._changed:
                self._changed.notify_all()

    def fail(self, messages: Iterable[Any], error: Exception) -> None:
        """End these messages with an error, and remove them. One that has an outcome keeps it."""
        ended = list(messages)
        for message in ended:
            message.fail(error)
        self.remove(ended)

    def fail_all(self, error: Exception) -> None:
        """End all messages that are left with an error."""
        while self.open:
            self.fail(list(self.open), error)

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until there are fewer than the limit. False once the deadline has passed."""
        return self._wait_until(lambda: len(self.open) < self.limit, deadline)

    def wait_for_none(self, deadline: float) -> bool:
        """Wait until there are none. False once the deadline has passed."""
        return self._wait_until(self._none_left, deadline)

    def _none_left(self) -> bool:
        # A message that has its outcome, and whose actor failed before it could remove it, holds up no close.
        if 0 < len(self.open) <= _FEW:
            self.open.difference_update([message for message in list(self.open) if message.is_over()])
        return not self.open

    def _wait_until(self, predicate: Callable[[], bool], deadline: float) -> bool:
        with self._changed:
            try:
                self._waiting += 1
                seconds = min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX)
                return self._changed.wait_for(predicate, seconds)
            finally:
                self._waiting -= 1
