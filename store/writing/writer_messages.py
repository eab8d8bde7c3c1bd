"""What an actor asks of the SnapshotWriter, and what it is answered."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import NamedTuple

from ..errors import StoreError
from ..rows import Amendment, DeadLetter, Row, RowKey, Save


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

    row_key: RowKey
    letters: tuple[DeadLetter, ...]
    reply: Reply


class Write(NamedTuple):
    """Write one row, version-checked. Answered by Saved, Conflict or Rejected, after the commit."""

    save: Save
    reply: Reply

    @property
    def row_key(self) -> RowKey:
        """The row that is written."""
        return (self.save.name, self.save.key)


class Amend(NamedTuple):
    """Amend one row and its letters, version-checked. Answered as a Write is."""

    amendment: Amendment
    reply: Reply

    @property
    def row_key(self) -> RowKey:
        """The row that is amended."""
        return (self.amendment.name, self.amendment.key)


Message = Load | Write | Amend
KINDS = (Load, Write, Amend)
"""The same for ``isinstance``, which takes a union three times as long."""

SAVED = Saved()
CONFLICT = Conflict()


def size_of(message: Message) -> int:
    """Return how many bytes a message adds to a transaction, roughly."""
    return len(message.save.state) if type(message) is Write else 0


def answers_to(group: Collection[Message], written: Sequence[bool], rows: dict[RowKey, Row]) -> list[Answer]:
    """Return what each message is told. ``written`` has the saves first, then the amendments."""
    writes = sum(type(message) is Write for message in group)
    saved, amended = iter(written[:writes]), iter(written[writes:])
    answers: list[Answer] = []
    for message in group:
        if type(message) is Load:
            answers.append(Loaded(rows.get(message.row_key)))
        else:
            answers.append(SAVED if next(saved if type(message) is Write else amended) else CONFLICT)
    return answers
