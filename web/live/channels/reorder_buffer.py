"""Turns that came before the one they follow: it is on its way from another process."""

from __future__ import annotations

from .inbox import Turn

_MOST = 64


class ReorderBuffer:
    """Keeps a few turns of one epoch until what leads to them has come."""

    __slots__ = ("_since", "_turns")

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._since = 0.0

    def keep(self, turn: Turn, now: float) -> bool:
        """Keep a turn. False, and it is not kept: there are too many, or they are of another epoch."""
        if len(self._turns) >= _MOST or any(kept.epoch != turn.epoch for kept in self._turns.values()):
            return False
        if not self._turns:
            self._since = now
        self._turns[turn.base_version] = turn
        return True

    def take(self, version: int | None = None) -> list[Turn]:
        """Return and remove, in order, the turns that begin at version or before it; all for None."""
        if not self._turns:
            return []
        due = sorted(base for base in self._turns if version is None or base <= version)
        return [self._turns.pop(base) for base in due]

    def waited(self, seconds: float, now: float) -> bool:
        """Say whether the oldest has waited for so long."""
        return bool(self._turns) and now - self._since >= seconds
