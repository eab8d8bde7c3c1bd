"""The messages that the SnapshotWriter could not commit yet, although others go on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from .writer_messages import size_of

if TYPE_CHECKING:
    from ..errors import StatementRefused
    from .writer_messages import Message
    from .writer_stats import WriterStats

_logger = logging.getLogger("keyfold.writer")

_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.05, 2.0
_LOOK_UP = 0.05
"""How often the writer looks, while something is deferred, whether the system closes."""


@dataclass(slots=True, eq=False)
class _Deferral:
    message: Message
    since: float
    due: float
    backoff: float = 0.0
    reason: str = ""
    row_is_locked: bool = False


class Deferrals:
    """Each message waits with a backoff of its own, so that one row that stays locked keeps no other one waiting."""

    def __init__(self, facts: WriterStats) -> None:
        self._facts = facts
        # By the id of the message, which lives as long as its entry.
        self._waiting: dict[int, _Deferral] = {}
        self._others_went_on_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    def add(self, message: Message, error: StatementRefused, *, guilty: bool, row_is_locked: bool) -> None:
        """Let a message wait, longer each time.

        Args:
            message: It may wait already.
            error: Why it can't be committed.
            guilty: It was refused alone, or its row is locked. Otherwise it was in a group with a guilty one,
                which there was no time to find; it is soon tried again.
            row_is_locked: It is only this row, for certain.
        """
        now = monotonic()
        deferral = self._waiting.get(id(message))
        if deferral is None:
            deferral = self._waiting[id(message)] = _Deferral(message, now, now)
        if guilty:
            name, key = message.row_key
            reason = str(error).removeprefix("projection: ")
            if not deferral.reason:
                facts = {"projection": name, "key": key}
                _logger.warning("%s: key %r waits, the others go on: %s", name, key, reason, extra=facts)
            deferral.backoff = min(_LONGEST_BACKOFF, 2 * deferral.backoff or _FIRST_BACKOFF)
            deferral.reason = f"row ({name}, {key}): {reason}"
        deferral.row_is_locked = row_is_locked
        deferral.due = now + (deferral.backoff if guilty else _FIRST_BACKOFF)
        self._note()

    def forget(self, message: Message) -> None:
        """Let a message go that is answered."""
        if self._waiting.pop(id(message), None) is not None:
            self._note()

    def messages(self) -> list[Message]:
        """Return all messages that wait."""
        return [deferral.message for deferral in self._waiting.values()]

    def due(self, limit: int, max_bytes: int) -> list[Message]:
        """Return the messages that are to be tried again by now, within the limits of a commit.

        Those that have waited longest for it come first.
        """
        now = monotonic()
        waiting = [deferral for deferral in self._waiting.values() if deferral.due <= now]
        due, size = [], 0
        for deferral in sorted(waiting, key=lambda deferral: deferral.due)[:limit]:
            if size < max_bytes:
                due.append(deferral.message)
                size += size_of(deferral.message)
        return due

    def look_at(self) -> float | None:
        """Return when the writer has to look again, as monotonic time; None if nothing waits."""
        if not self._waiting:
            return None
        return min(monotonic() + _LOOK_UP, *(deferral.due for deferral in self._waiting.values()))

    def others_go_on(self) -> None:
        """Take note that something was committed."""
        if self._waiting:
            self._others_went_on_at = monotonic()

    def nothing_goes_on(self) -> bool:
        """Return whether it looks as if nothing at all could be written, not only these rows.

        So it does when several messages wait, not for locks of their rows, and none was committed since.
        """
        since = self._others_went_on_at
        waiting = (d for d in self._waiting.values() if not d.row_is_locked and d.since > since)
        return next(waiting, None) is not None and next(waiting, None) is not None

    def _note(self) -> None:
        self._facts.waiting = len(self._waiting)
        self._facts.waiting_reason = next((d.reason for d in self._waiting.values() if d.reason), "")
