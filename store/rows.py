"""The records of the store: positions, rows, dead letters, and the writes that are asked for."""

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
    """The position of a key: how many commits it has had in its current epoch.

    Positions are compared by equality only: versions of two epochs have no order.

    Attributes:
        epoch: A random word. A key gets a new one when it is wiped, and when its row has lost a commit.
        version: The number of commits in this epoch; 0 for a wiped key.
    """

    epoch: str
    version: int

    def __str__(self) -> str:
        return f"{self.epoch}:{self.version}"


def new_epoch() -> str:
    """Return a fresh random epoch: 12 URL-safe characters, no colon."""
    return secrets.token_urlsafe(9)


class _CommitIds:
    """Ids that are unique across commits and processes.

    Each is a random word of the process and a number. Asking the operating system for a random id per commit
    would release the interpreter's lock, and waiting for it again costs more than the commit's own work.
    """

    def __init__(self) -> None:
        self.renew()
        os.register_at_fork(after_in_child=self.renew)

    def renew(self) -> None:
        """Start anew, as a forked child is another process."""
        self._process, self._numbers = secrets.token_urlsafe(6), itertools.count()

    def __call__(self) -> str:
        return f"{self._process}{next(self._numbers):x}"


new_commit_id = _CommitIds()
"""Return a fresh id for one commit of one row: up to 24 characters.

It is a text, as PostgreSQL parses a number in JSON digit by digit, for each row of a commit.
"""


class Head(NamedTuple):
    """The commit that a row holds.

    As long as a database loses nothing, a position identifies a commit. A restored backup, or a replica that
    was promoted too early, reaches the same position again with other events, and another ``commit_id``.
    """

    epoch: str
    version: int
    commit_id: str | None = None
    """None if it is not known, as the row was written by an older release or in SQL."""

    @classmethod
    def end_of(cls, epoch: str) -> Self:
        """Return a commit that is ahead of all rows of an epoch."""
        return cls(epoch, 2**63 - 1)

    @property
    def position(self) -> Position:
        """The position of the key."""
        return Position(self.epoch, self.version)

    def is_gone_from(self, row: Head) -> bool:
        """Return whether a row that was read after this commit has lost it, so that the row has gone back.

        In one epoch versions only grow, and each of them is committed once.
        """
        if self.epoch != row.epoch or self.version < row.version:
            return False
        return self.version > row.version or differ(self.commit_id, row.commit_id)


def differ(one: str | None, other: str | None) -> bool:
    """Return whether two commit ids are known to be different; None fits any."""
    return one is not None and other is not None and one != other


class Row(NamedTuple):
    """One row of projection_snapshots, with its state as JSON."""

    epoch: str
    version: int
    schema_version: int
    state: bytes
    updated_at: datetime
    halted: bool = False
    """Events for the key are parked as dead letters until an operator resumes it."""
    commit_id: str | None = None

    @property
    def position(self) -> Position:
        """The position of the key."""
        return Position(self.epoch, self.version)

    @property
    def head(self) -> Head:
        """The commit that the row holds."""
        return Head(self.epoch, self.version, self.commit_id)

    @property
    def is_tombstone(self) -> bool:
        """True for a wiped key, whose row stays so that its old epoch does not come back."""
        return self.version == 0


@dataclass(frozen=True, slots=True)
class Snapshot(Generic[StateT]):
    """The committed state of a key.

    Attributes:
        state: The state, decoded as the projection's type.
        epoch: The epoch of its position.
        version: The version of its position.
        updated_at: When it was committed, as an aware datetime in UTC.
    """

    state: StateT
    epoch: str
    version: int
    updated_at: datetime


class Save(NamedTuple):
    """A request to write one row over the position that its state was folded from, and over no other.

    ``base`` is None if the load found no row: the row is then inserted, if it still is absent.
    ``base_commit_id`` is the commit id of the row at ``base``; None fits any.
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
    """A request for another epoch of a row that has lost a commit. Its state and its version stay.

    ``epoch``, ``version`` and ``commit_id`` are those of the lost commit; ``new`` is the new epoch.
    """

    name: str
    key: str
    epoch: str
    version: int
    commit_id: str | None
    new: str


class DeadLetter(NamedTuple):
    """An event that could not be folded, to be inserted for the operator.

    ``event`` is its JSON, or its repr if it can't be encoded.
    """

    name: str
    key: str
    event_type: str
    event: str
    error: str
    traceback: str
    parked: bool = False
    """The key is halted, and the event waits, with all later ones, until it is resumed."""


class StoredLetter(NamedTuple):
    """A dead letter as it is in the database.

    Attributes:
        id: Its number. Later letters have larger ones.
        name: The name of the projection.
        key: The key that the event was routed to.
        event_type: The name of the event's class.
        event: The event as JSON, or its repr if it could not be encoded.
        error: The class and the text of the error.
        traceback: The traceback of the error as text.
        parked: The event waits for its key to be resumed.
        at: When it was inserted, as an aware datetime in UTC.
    """

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
    """A request to change, over one position, a row and the dead letters of its key together.

    ``base`` is None if there is no row: one is inserted. The commit ids are as in a Save. With ``state`` None
    the state, the version and the commit stay as they are, and the epoch becomes that of ``position``.
    All letters of ``removed`` must still exist, or nothing is done. With ``halt`` the key is halted from
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
    """Return a moment as either database gives it as a datetime in UTC."""
    moment = datetime.fromisoformat(value) if isinstance(value, str) else value
    return moment.replace(tzinfo=UTC) if moment.tzinfo is None else moment.astimezone(UTC)
