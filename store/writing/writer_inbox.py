"""The inbox of the SnapshotWriter, which also wakes it by time."""

from __future__ import annotations

import queue
from time import monotonic
from typing import Any, Final, NamedTuple


class Retry(NamedTuple):
    """Says that it is time to look at the deferred messages."""


RETRY: Final = Retry()


class _Envelope(NamedTuple):
    """What Pykka's loop asks of an envelope."""

    message: Retry
    reply_to: None = None


_WAKE_UP = _Envelope(RETRY)


class WriterInbox:
    """A queue whose ``get`` returns RETRY at the time ``wake_at``, if that is set.

    Only the writer's own thread sets ``wake_at``. RETRY never comes twice in a row while messages wait. Pykka's own
    choice, queue.Queue, takes four times as long per message.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put = self._queue.put
        self.get_nowait = self._queue.get_nowait
        self.empty = self._queue.empty
        self.wake_at: float | None = None
        """As monotonic time."""
        self._retried = False

    def get(self) -> Any:
        """Return the next envelope, or one with RETRY in it."""
        if self.wake_at is None:
            return self._queue.get()
        pause = self.wake_at - monotonic()
        try:
            if pause > 0:
                return self._queue.get(timeout=pause)
            if self._retried:
                self._retried = False
                return self._queue.get_nowait()
        except queue.Empty:
            pass
        self._retried = True
        return _WAKE_UP

    def take_all(self, kinds: tuple[type, ...]) -> list[Any]:
        """Remove the messages of these kinds, as ``isinstance`` takes them, and return them in their order."""
        envelopes = []
        while not self.empty():
            envelopes.append(self.get_nowait())
        for envelope in envelopes:
            if not isinstance(envelope.message, kinds):
                self.put(envelope)
        return [envelope.message for envelope in envelopes if isinstance(envelope.message, kinds)]
