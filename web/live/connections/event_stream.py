"""Server-Sent Events: the same channels for clients without WebSockets."""

from __future__ import annotations

from ..channels.batch import Batch
from .connection import Connection
from .subscription import Subscription

_RETRY_MS = 2_000

PREAMBLE = b"retry: %d\n\n" % _RETRY_MS
"""The first bytes of an event stream: the time after which a client reconnects."""


class EventStream(Connection):
    """A response without an end. Its client sends nothing, and reconnects by itself."""

    __slots__ = ()

    must_answer = False

    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        for data, frames in batch.for_streams:
            self.push(data, frames, subscription)

    def received(self, data: bytes) -> None:  # noqa: ARG002
        """End the stream: its client has nothing to send, and reading more would only cost time."""
        self.hub.counts["garbage"] += 1
        self.end()

    def ping(self) -> None:
        self.push(b":\n\n")

    def closing_bytes(self, code: int, reason: str) -> bytes:  # noqa: ARG002
        """Return nothing. The answer to the next request of the client gives the reason."""
        return b""

    def revoke(self, subscription: Subscription) -> None:  # noqa: ARG002
        self.close(0, "")
