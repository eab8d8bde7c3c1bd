"""The messages that the SnapshotWriter could not commit yet, although others go on."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from time import monotonic
from typing import TYPE_CHECKING

from .writer_messages import size_of

if TYPE_CHECKING:
    from ..errors import StatementRefused
    from .writer_messages import WriterMessage

_logger = logging.getLogger("keyfold.writer")

_FIRST_BACKOFF, _MAX_BACKOFF = 0.05, 2.0
_CHECK_SECONDS = 0.05
"""How often the writer checks, while messages are deferred, whether the system closes."""


@dataclass(slots=True, eq=False)
class _Deferral:
    message: WriterMessage
    since: float
    due: float
    backoff: float = 0.0
    reason: str = ""
    row_is_locked: bool = False


class Deferrals:
    """Each message waits with its own backoff, so that one row that stays locked delays no other."""

    def __init__(self) -> None:
        # By the id of the message, which lives as long as its entry.
        self._waiting: dict[int, _Deferral] = {}
        self._committed_at = 0.0

    def __len__(self) -> int:
        return len(self._waiting)

    @property
    def reason(self) -> str:
        """Why one of the messages waits, with its row; empty if none is known to be at fault."""
        return next((deferral.reason for deferral in self._waiting.values() if deferral.reason), "")

    def add(
        self, message: WriterMessage, error: StatementRefused, *, at_fault: bool, row_is_locked: bool
    ) -> None:
        """Let a message wait, longer each time.

        Args:
            message: The message; it may wait already.
            error: Why it can't be committed.
            at_fault: It was refused alone, or its row is locked. Otherwise it was in a group with a message
                at fault that there was no time to find, and it is tried again soon.
            row_is_locked: The lock of this row is certain to be the only reason.
        """
        now = monotonic()
        deferral = self._waiting.get(id(message))
        if deferral is None:
            deferral = self._waiting[id(message)] = _Deferral(message, now, now)
        if at_fault:
            name, key = message.row_key
            reason = str(error).removeprefix("projection: ")
            if not deferral.reason:
                details = {"projection": name, "key": key}
                _logger.warning("%s: key %r waits, the others go on: %s", name, key, reason, extra=details)
            deferral.backoff = min(_MAX_BACKOFF, 2 * deferral.backoff or _FIRST_BACKOFF)
            deferral.reason = f"row ({name}, {key}): {reason}"
        deferral.row_is_locked = row_is_locked
        deferral.due = now + (deferral.backoff if at_fault else _FIRST_BACKOFF)

    def remove(self, message: WriterMessage) -> bool:
        """Remove a message that is answered, and return whether it waited."""
        return self._waiting.pop(id(message), None) is not None

    def messages(self) -> list[WriterMessage]:
        """Return all messages that wait."""
        return [deferral.message for deferral in self._waiting.values()]

    def due(self, max_messages: int, max_bytes: int) -> list[WriterMessage]:
        """Return the messages to try again now, within the limits of a commit; those due first come first."""
        now = monotonic()
        waiting = [deferral for deferral in self._waiting.values() if deferral.due <= now]
        due, size = [], 0
        for deferral in sorted(waiting, key=lambda deferral: deferral.due)[:max_messages]:
            if size < max_bytes:
                due.append(deferral.message)
                size += size_of(deferral.message)
        return due

    def next_check_at(self) -> float | None:
        """Return when the writer has to check again, as monotonic time; None if no message waits."""
        if not self._waiting:
            return None
        return min(monotonic() + _CHECK_SECONDS, *(deferral.due for deferral in self._waiting.values()))

    def note_commit(self) -> None:
        """Take note that other messages were committed."""
        if self._waiting:
            self._committed_at = monotonic()

    def is_everything_stuck(self) -> bool:
        """Return whether probably nothing at all can be written, and not only these rows.

        That is so when several messages wait for another reason than locks of their rows, and none was
        committed since.
        """
        since = self._committed_at
        waiting = (d for d in self._waiting.values() if not d.row_is_locked and d.since > since)
        return next(waiting, None) is not None and next(waiting, None) is not None
