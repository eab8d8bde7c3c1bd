"""What may happen many times a second, and is worth a line in the log once a minute."""

from __future__ import annotations

from collections.abc import Callable
from math import inf

_SECONDS = 60.0


class LogThrottle:
    """Says whether another line is due. Whoever writes it says how many there were."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self._next = -inf

    def is_due(self) -> bool:
        """Return whether the last one was a minute ago; then the next minute begins."""
        now = self._clock()
        if now < self._next:
            return False
        self._next = now + _SECONDS
        return True
