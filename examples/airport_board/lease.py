"""Which of several processes replays: the one whose name stands in a row, for as long as it renews it."""

from __future__ import annotations

import os
import secrets
import time
from dataclasses import dataclass, replace

import msgspec
from keyfold.store import Position, SnapshotStore, VersionConflict

_ROW = ("airports.replay", "lease")
_SECONDS = 3.0


@dataclass
class Turn:
    """Who replays until when (seconds since 1970), and how far all is committed. ``round`` counts the beginnings."""

    owner: str = ""
    until: float = 0.0
    number: int = 0
    round: int = 0


class Lease:
    """One value in the ``SnapshotStore``. Whoever writes it names the position it has read: of two, one is refused.

    A process that freezes may go on for a moment after its turn has ended. No harm is done: what both dispatch, the
    boards have already, and ignore.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._me = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._position: Position | None = None
        self.turn = Turn()

    def look(self) -> Turn:
        """Read the row."""
        row = self._store.row(*_ROW)
        self._position = None if row is None else row.position
        self.turn = Turn() if row is None else msgspec.json.decode(row.state, type=Turn)
        return self.turn

    @property
    def is_mine(self) -> bool:
        """It is this process's turn, as far as it knows."""
        return self.turn.owner == self._me

    def take(self) -> bool:
        """Begin a turn, unless another process has one."""
        return self.look().until < time.time() and self.renew()

    def renew(self, number: int | None = None, began: int | None = None) -> bool:
        """Say how far it is, and go on. False: another process has taken over."""
        changes = {"number": self.turn.number if number is None else number}
        changes["round"] = self.turn.round if began is None else began
        return self._write(replace(self.turn, owner=self._me, until=time.time() + _SECONDS, **changes))

    def give_back(self) -> None:
        """End the turn at once, so that another process need not wait for that."""
        self._write(replace(self.turn, owner="", until=0.0))

    def _write(self, turn: Turn) -> bool:
        try:
            self._position = self._store.write(*_ROW, turn, expected=self._position)
        except VersionConflict:
            self.look()
            return False
        self.turn = turn
        return True
