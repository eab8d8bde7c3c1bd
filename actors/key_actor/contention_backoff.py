"""Between processes that write one key: who has just won steps back for a moment."""

from __future__ import annotations

import random
from time import monotonic

_TURNS = 8
_COMMITS = 3
_LONGEST = 0.05


class ContentionBackoff:
    """What an actor owes to others after a conflict: a pause after each of its next turns.

    Who has the newest state wins again and again, as it only has to save; the others have to load first. So the
    winner leaves them the time for both, more or less, and folds what comes meanwhile in one turn. Were it the loser
    that waits, one process would soon have the key for itself (benchmarks/contention.py).
    """

    __slots__ = ("_turns", "_until")

    def __init__(self) -> None:
        self._turns = _TURNS
        self._until = 0.0

    def committed(self, seconds: float) -> bool:
        """Take notice of a turn whose commit took so many seconds. False: enough was done."""
        self._turns -= 1
        self._until = monotonic() + random.uniform(0.0, min(_LONGEST, _COMMITS * seconds))  # noqa: S311  # jitter
        return self._turns > 0

    def pause(self) -> float:
        """Return for how many seconds no turn should begin; not above zero if one may."""
        return self._until - monotonic()
