"""The seam between the actors and whatever shows their changes to the world."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from ..store import Position
from .pool.threads import ThreadHealth


def channel_of(projection: str, key: str) -> str:
    """Return the channel on which a key's changes are published."""
    return f"projection.{projection}.{key}"


class Committed(msgspec.Struct, frozen=True):
    """One committed turn of one key: the deltas of consecutive versions, as JSON.

    ``deltas[i]`` led from version ``base_version + i`` to ``base_version + i + 1``, all of one epoch.
    ``commit_id`` is of the row after this turn, ``base_commit_id`` of the row that it was folded on; None: not known.
    """

    projection: str
    key: str
    epoch: str
    base_version: int
    deltas: list[bytes]
    event_name: str = "delta"
    decode_delta: Callable[[bytes], Any] = msgspec.json.decode
    base_commit_id: str | None = None
    commit_id: str | None = None

    @property
    def version(self) -> int:
        """The version of the row after this turn."""
        return self.base_version + len(self.deltas)

    @property
    def channel(self) -> str:
        """The channel that these deltas belong to."""
        return channel_of(self.projection, self.key)


class Broadcaster(Protocol):
    """Takes what is committed to whoever watches. Called by actors, after the commit, in version order.

    No method may block: a slow subscriber is the broadcaster's affair, never the actor's. An
    exception reaches the Receipts as BroadcastError and harms nothing else.
    """

    def publish(self, committed: Committed) -> None:
        """Show the deltas of one turn to the channel's subscribers."""

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        """Show a whole new state (JSON) to the channel's subscribers: it was rebuilt or wiped."""

    def invalidate(self, projection: str, key: str) -> None:
        """Say that a publish failed: bring the channel's subscribers back by a snapshot of the row."""

    def close(self, timeout: float) -> None:  # noqa: ARG002
        """Tell the subscribers, within timeout seconds, that nothing more will come: the system has closed."""
        return

    def after_fork(self) -> None:
        """In a forked child: forget the parent's subscribers, and the locks that it may have held."""
        return

    def loops(self) -> list[ThreadHealth]:
        """Return how the threads of its own fare."""
        return []

    def stats(self) -> dict[str, Any]:
        """Return facts for the operator, JSON-able: the ``sockets`` part of the system's stats."""
        return {}
