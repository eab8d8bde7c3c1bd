"""Throttles the log of an event that may happen many times per second."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

_SECONDS = 60.0


class LogThrottle:
    """Allows one line per minute. The line should give the number of events so far."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = -inf

    def is_due(self) -> bool:
        """Return whether a line may be logged now; if so, the next minute begins."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + _SECONDS
        return True
