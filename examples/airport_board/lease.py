"""The lease of the replay: the process that is named in a row replays, as long as it renews the row."""

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
class LeaseState:
    """The value of the row.

    Attributes:
        owner: The process that replays.
        until: The end of its lease, in seconds since 1970.
        number: The number of the last flight up to which all flights are committed.
        round: The number of times that the replay was started over.
    """

    owner: str = ""
    until: float = 0.0
    number: int = 0
    round: int = 0


class Lease:
    """A value in the ``SnapshotStore`` that one of several processes holds.

    Each write expects the position that was read before, so one of two writers is refused. A process that was
    frozen may go on for a moment after its lease has ended. This does no harm: the boards ignore flights that
    they have already.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._me = f"{os.getpid()}:{secrets.token_hex(4)}"
        self._position: Position | None = None
        self.state = LeaseState()

    def look(self) -> LeaseState:
        """Read the row."""
        row = self._store.row(*_ROW)
        self._position = None if row is None else row.position
        self.state = LeaseState() if row is None else msgspec.json.decode(row.state, type=LeaseState)
        return self.state

    @property
    def is_mine(self) -> bool:
        """Whether this process holds the lease, as far as it knows."""
        return self.state.owner == self._me

    def take(self) -> bool:
        """Take the lease, unless another process holds it."""
        return self.look().until < time.time() and self.renew()

    def renew(self, number: int | None = None, round_: int | None = None) -> bool:
        """Renew the lease and its number. Return False if another process has taken over."""
        changes = {"number": self.state.number if number is None else number}
        changes["round"] = self.state.round if round_ is None else round_
        return self._write(replace(self.state, owner=self._me, until=time.time() + _SECONDS, **changes))

    def give_back(self) -> None:
        """End the lease, so that another process does not have to wait for its end."""
        self._write(replace(self.state, owner="", until=0.0))

    def _write(self, state: LeaseState) -> bool:
        try:
            self._position = self._store.write(*_ROW, state, expected=self._position)
        except VersionConflict:
            self.look()
            return False
        self.state = state
        return True
