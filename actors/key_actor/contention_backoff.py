"""Between processes that write one key: the winner of a conflict steps back for a moment."""

from __future__ import annotations

import random
from time import monotonic

_COMMITS = 8
"""How many commits are followed by a pause."""
_MAX_COMMIT_TIMES = 3
"""A pause is at most as long as so many commits,"""
_MAX_SECONDS = 0.05
"""and never longer than this."""


class ContentionBackoff:
    """Pauses an actor after each of its next commits, since another process writes the key as well.

    The process that has the newest state wins again and again, as it only has to commit, while the others
    have to load first. So the winner leaves them about the time for both, and folds the events that come
    meanwhile in one batch. If the loser waited instead, one process would soon have the key for itself
    (benchmarks/contention.py).
    """

    __slots__ = ("_commits_left", "_until")

    def __init__(self) -> None:
        self._commits_left = _COMMITS
        self._until = 0.0

    def committed(self, seconds: float) -> bool:
        """Take note of a commit that took so many seconds. False: it was the last one with a pause."""
        self._commits_left -= 1
        pause = random.uniform(0.0, min(_MAX_SECONDS, _MAX_COMMIT_TIMES * seconds))  # noqa: S311  # jitter
        self._until = monotonic() + pause
        return self._commits_left > 0

    def pause(self) -> float:
        """Return for how many seconds no turn should fold; not above zero if one may."""
        return self._until - monotonic()
