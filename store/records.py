"""What passes between the store and the rest: positions, rows, and the writes that are asked for."""

from __future__ import annotations

import secrets
from dataclasses import dataclass
from typing import TYPE_CHECKING, Generic, NamedTuple, TypeVar

if TYPE_CHECKING:
    from datetime import datetime

StateT = TypeVar("StateT")

Address = tuple[str, str]
"""(projection name, key): the primary key of a row."""


class Position(NamedTuple):
    """Where a key stands. Compared by equality only: versions of two epochs have no order."""

    epoch: str
    version: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.version}"


def new_epoch() -> str:
    """Return a fresh random epoch: 12 URL-safe characters, no colon."""
    return secrets.token_urlsafe(9)


class Row(NamedTuple):
    """One row of projection_snapshots, its state still encoded."""

    epoch: str
    version: int
    schema_version: int
    state: bytes
    updated_at: datetime

    @property
    def is_tombstone(self) -> bool:
        """True for a wiped key: the row only keeps the epoch from coming back."""
        return self.version == 0


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[StateT]):
    """The committed state of a key. ``updated_at`` is in UTC, with its zone."""

    state: StateT
    epoch: str
    version: int
    updated_at: datetime


class Save(NamedTuple):
    """Ask for one row to be written over the position it was folded from, and over no other.

    ``base`` is None where the load found no row: the row is then inserted, if it still is absent.
    """

    name: str
    key: str
    base: Position | None
    epoch: str
    version: int
    state: bytes
    schema_version: int = 1


class DeadLetter(NamedTuple):
    """An event that could not be folded, as it is kept for the operator.

    ``event`` is its JSON, or its repr where it has none.
    """

    name: str
    key: str
    event_type: str
    event: str
    error: str
    traceback: str
