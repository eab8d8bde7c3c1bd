"""Server-Sent Events: the same channel, for whoever can't have a WebSocket."""

from __future__ import annotations

from ..channels.batch import Batch
from ..connections.subscription import Subscription
from .connection import Connection

_RETRY_MS = 2_000

PREAMBLE = b"retry: %d\n\n" % _RETRY_MS
"""How an event stream begins: when to come back after it broke off."""


class EventStream(Connection):
    """A response that does not end. Its client says nothing, and comes back by itself."""

    __slots__ = ()

    must_answer = False

    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        for data, frames in batch.for_streams:
            self.push(data, frames, subscription)

    def received(self, data: bytes) -> None:  # noqa: ARG002
        """End it: a stream is asked for once, and whatever else is sent would be read for nothing."""
        self.host.counts["garbage"] += 1
        self.end()

    def ping(self) -> None:
        self.push(b":\n\n")

    def farewell(self, code: int, reason: str) -> bytes:  # noqa: ARG002
        """Nothing: it is only the reconnecting request that can be told why."""
        return b""

    def expel(self, subscription: Subscription) -> None:  # noqa: ARG002
        self.close(0, "")
