"""Who was disconnected when: what was checked before that holds no longer, wherever it was meanwhile."""

from __future__ import annotations

import math
import threading

_MOST = 10_000


class SignOuts:
    """The last disconnect of each user. Bounded: of those beyond it the latest time holds for everybody. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._of_all = -math.inf

    def note(self, user: str, now: float) -> None:
        """Remember that a user was disconnected."""
        with self._lock:
            self._times.pop(user, None)
            self._times[user] = now
            if len(self._times) > _MOST:
                oldest = next(iter(self._times))
                self._of_all = max(self._of_all, self._times.pop(oldest))

    def since(self, user: str | None, checked_at: float) -> bool:
        """Say whether a user was disconnected after a check of them had begun. In doubt, yes."""
        if user is None:
            return False
        with self._lock:
            return checked_at <= self._times.get(user, self._of_all)
