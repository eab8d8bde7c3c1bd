"""What passes between the store and the rest: positions, rows, and the writes that are asked for."""

from __future__ import annotations

import itertools
import os
import secrets
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Generic, NamedTuple, Self, TypeVar

StateT = TypeVar("StateT")

RowKey = tuple[str, str]
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


class _CommitIds:
    """Ids that no other process, and no other commit of this one, has.

    Counted behind a random word for the process: to ask the operating system for each of them would give up the
    interpreter's lock once per commit, and waiting for it again costs more than the commit's own work.
    """

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Be another process."""
        self._process, self._numbers = secrets.token_urlsafe(6), itertools.count()

    def __call__(self) -> str:
        return f"{self._process}{next(self._numbers):x}"


new_commit_id = _CommitIds()
"""Return a fresh id for one commit of one row: up to 24 characters.

A text: PostgreSQL takes a number in JSON apart digit by digit, for each row of a commit.
"""


class Head(NamedTuple):
    """The commit that a row holds.

    Within one life of a database a position says which commit it is. A restored backup, or a replica that was
    promoted too early, comes to the same position once more with other events: ``commit_id`` tells the two apart.
    """

    epoch: str
    version: int
    commit_id: str | None = None
    """None: it is not known, as the row was written by an older release or in SQL."""

    @classmethod
    def end_of(cls, epoch: str) -> Self:
        """Return what no row of an epoch has come to: wherever it stands in that, it is behind."""
        return cls(epoch, 2**63 - 1)

    @property
    def position(self) -> Position:
        """Where the key stands."""
        return Position(self.epoch, self.version)

    def is_gone_from(self, row: Head) -> bool:
        """Return whether a row that was read after this was committed has lost it: the row went back since.

        In one epoch versions only grow, and each of them is committed once.
        """
        if self.epoch != row.epoch or self.version < row.version:
            return False
        return self.version > row.version or differ(self.commit_id, row.commit_id)


def differ(one: str | None, other: str | None) -> bool:
    """Return whether two ids are known to be of different commits."""
    return one is not None and other is not None and one != other


class Row(NamedTuple):
    """One row of projection_snapshots, its state still encoded."""

    epoch: str
    version: int
    schema_version: int
    state: bytes
    updated_at: datetime
    halted: bool = False
    """Events for the key are parked, as dead letters, until an operator resumes it."""
    commit_id: str | None = None

    @property
    def position(self) -> Position:
        """Where the key stands."""
        return Position(self.epoch, self.version)

    @property
    def head(self) -> Head:
        """The commit that the row holds."""
        return Head(self.epoch, self.version, self.commit_id)

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
    ``base_commit_id`` is that of the row at ``base``; None fits any.
    """

    name: str
    key: str
    base: Position | None
    epoch: str
    version: int
    state: bytes
    schema_version: int = 1
    base_commit_id: str | None = None
    commit_id: str | None = None


class Renewal(NamedTuple):
    """Ask for another epoch for a row that a commit is gone from. Its state and its version stay.

    ``epoch``, ``version`` and ``commit_id`` are of the commit that was lost.
    """

    name: str
    key: str
    epoch: str
    version: int
    commit_id: str | None
    new: str


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
    parked: bool = False
    """It waits, with what follows it, for its key to be resumed."""


class StoredLetter(NamedTuple):
    """A dead letter as it stands in the database."""

    id: int
    name: str
    key: str
    event_type: str
    event: str
    error: str
    traceback: str
    parked: bool
    at: datetime


class Amendment(NamedTuple):
    """Ask for what a Save can't do: to change, over one position, a row and the letters of its key together.

    ``base`` is None where there is no row: one is inserted. The ids of commits are as in a Save. ``state`` None
    leaves the state, the version and the commit as they are; the epoch becomes that of ``position``.
    All of ``removed`` must still be there, else nothing is done. With ``halt`` the key is halted from
    then on; without, it stays halted as long as letters of it are parked.
    """

    name: str
    key: str
    base: Position | None
    was_halted: bool
    position: Position
    state: bytes | None = None
    schema_version: int = 1
    halt: bool = False
    letters: tuple[DeadLetter, ...] = ()
    removed: tuple[int, ...] = ()
    base_commit_id: str | None = None
    commit_id: str | None = None


def as_utc(value: datetime | str) -> datetime:
    """Return what either database gives for a moment as a datetime in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
