"""What an actor asks of the SnapshotWriter, and what it is answered."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

from .errors import StoreError
from .records import Address, Amendment, DeadLetter, Row, Save


class Loaded(NamedTuple):
    """The committed row, or None where there is none. The letters of the Load are committed too."""

    row: Row | None


class Saved(NamedTuple):
    """The row is committed."""


class Conflict(NamedTuple):
    """The row was no longer at the base of the Save. Nothing of the Save was written."""


class Rejected(NamedTuple):
    """Nothing of the message is committed: its data is refused for good (StoreRejected), or the writer ends."""

    error: StoreError


Answer = Loaded | Saved | Conflict | Rejected
Reply = Callable[[Answer], None]


class Load(NamedTuple):
    """Read one row; first bury the letters, in a transaction that is committed before the answer."""

    address: Address
    letters: tuple[DeadLetter, ...]
    reply: Reply


class Write(NamedTuple):
    """Write one row, version-checked. Answered by Saved, Conflict or Rejected, after the commit."""

    save: Save
    reply: Reply

    @property
    def address(self) -> Address:
        """The row that is written."""
        return (self.save.name, self.save.key)


class Amend(NamedTuple):
    """Amend one row and its letters, version-checked. Answered as a Write is."""

    amendment: Amendment
    reply: Reply

    @property
    def address(self) -> Address:
        """The row that is amended."""
        return (self.amendment.name, self.amendment.key)


Message = Load | Write | Amend


SAVED = Saved()
CONFLICT = Conflict()
