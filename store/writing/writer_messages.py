"""The actor messages to the SnapshotWriter, and its answers."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from typing import NamedTuple, Protocol

from ..errors import StoreError
from ..rows import Amendment, DeadLetter, Row, RowKey, Save


class Loaded(NamedTuple):
    """The committed row, or None if there is none. The letters of the Load are committed too."""

    row: Row | None


class Saved(NamedTuple):
    """The row is committed."""


class Conflict(NamedTuple):
    """The row was no longer at the base of the Save or Amendment, and nothing of that was written."""


class Rejected(NamedTuple):
    """Nothing of the message is committed: its data is refused for good (StoreRejected), or the writer ends.

    If ``error`` is a CommitInDoubt, the message may be committed.
    """

    error: StoreError


Answer = Loaded | Saved | Conflict | Rejected


class Reply(Protocol):
    """Takes the answer to one message.

    The SnapshotWriter calls it once per message, on its own thread, after the commit. It has to return soon,
    as all other answers wait for it; an exception is logged and has no other effect.
    """

    def __call__(self, answer: Answer, /) -> None:
        """Take the answer."""


class Load(NamedTuple):
    """Read one row, and insert dead letters in a transaction that is committed before the answer."""

    row_key: RowKey
    letters: tuple[DeadLetter, ...]
    reply: Reply


class Write(NamedTuple):
    """Write one row if it still is at its base. Answered by Saved, Conflict or Rejected, after the commit."""

    save: Save
    reply: Reply

    @property
    def row_key(self) -> RowKey:
        """The row that is written."""
        return (self.save.name, self.save.key)


class Amend(NamedTuple):
    """Amend one row and its letters, if they still are as they were read. Answered as a Write is."""

    amendment: Amendment
    reply: Reply

    @property
    def row_key(self) -> RowKey:
        """The row that is amended."""
        return (self.amendment.name, self.amendment.key)


WriterMessage = Load | Write | Amend
MESSAGE_TYPES = (Load, Write, Amend)
"""The same for ``isinstance``, which takes three times as long with a union."""

SAVED = Saved()
CONFLICT = Conflict()


def size_of(message: WriterMessage) -> int:
    """Return how many bytes a message adds to a transaction, roughly."""
    return len(message.save.state) if type(message) is Write else 0


def answers_to(
    group: Collection[WriterMessage], written: Sequence[bool], rows: dict[RowKey, Row]
) -> list[Answer]:
    """Return the answer to each message of a group.

    Args:
        group: The messages.
        written: The result of the commit for the saves and then for the amendments, in the group's order.
        rows: The rows that the loads found.
    """
    writes = sum(type(message) is Write for message in group)
    saved, amended = iter(written[:writes]), iter(written[writes:])
    answers: list[Answer] = []
    for message in group:
        if type(message) is Load:
            answers.append(Loaded(rows.get(message.row_key)))
        else:
            answers.append(SAVED if next(saved if type(message) is Write else amended) else CONFLICT)
    return answers
