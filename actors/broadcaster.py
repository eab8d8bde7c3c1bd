"""A committed change, and the two seams that take it out of the actors: Broadcaster and Observer."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any, Protocol

import msgspec

from ..store import Position
from .pool.threads import ThreadHealth

if TYPE_CHECKING:
    from ..store import ProjectionError


def channel_of(projection: str, key: str) -> str:
    """Return the channel on which a key's changes are published."""
    return f"projection.{projection}.{key}"


class Committed(msgspec.Struct, frozen=True):
    """One commit of one key: the deltas of consecutive versions, all of one epoch.

    Attributes:
        projection: The name of the projection.
        key: The key.
        epoch: The epoch of the row.
        base_version: The version of the row that the events were folded on.
        deltas: Each as JSON; ``deltas[i]`` led from version ``base_version + i`` to ``base_version + i + 1``.
        event_name: The projection's ``broadcast_event_name``.
        decode_delta: Decodes one of ``deltas``, as the type that ``apply`` is annotated to return.
        base_commit_id: The commit id of the row that the events were folded on; None if it is not known.
        commit_id: The commit id of the row after this commit; None if it is not known.
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
        """The version of the row after this commit."""
        return self.base_version + len(self.deltas)

    @property
    def channel(self) -> str:
        """The channel that these deltas belong to."""
        return channel_of(self.projection, self.key)


class Broadcaster(Protocol):
    """Takes committed changes to subscribers.

    ``publish``, ``publish_snapshot`` and ``invalidate`` are called by actors on dispatcher threads, after the
    commit, for each key in the order of its versions. They may not block: an actor never waits for a slow
    subscriber. An exception reaches the Receipts as BroadcastError and harms nothing else. The other methods
    are called by the system: ``close`` and ``loops`` on any thread, ``after_fork`` in a forked child.
    """

    def publish(self, committed: Committed) -> None:
        """Show the deltas of one commit to the channel's subscribers."""

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        """Show a whole new state to the channel's subscribers: the key was rebuilt, repaired or wiped.

        Args:
            projection: The name of the projection.
            key: The key.
            position: The epoch and version of the new state.
            state: The state as JSON.
            reason: The ``reason`` of the snapshot message.
        """

    def invalidate(self, projection: str, key: str) -> None:
        """Send the channel's subscribers a snapshot of the row: a publish failed, or the row went back."""

    def close(self, timeout: float) -> None:  # noqa: ARG002
        """Tell the subscribers that the system has closed, within ``timeout`` seconds."""
        return

    def after_fork(self) -> None:
        """Forget the parent's subscribers, and the locks that it may have held. Called in a forked child."""
        return

    def loops(self) -> list[ThreadHealth]:
        """Return the health of the broadcaster's threads."""
        return []

    def stats(self) -> dict[str, Any]:
        """Return the ``sockets`` part of the system's stats: JSON-able."""
        return {}


class Observer(Protocol):
    """Is notified of commits and failures, for signals, traces or counters of the app.

    Called on a dispatcher thread, after the fact: keep it short. An exception is logged and harms nothing.
    """

    def applied(self, committed: Committed, seconds: float, /) -> None:
        """Take note of a commit, which is broadcast by now.

        Args:
            committed: The key, the versions and the deltas.
            seconds: How long the actor waited for the commit.
        """

    def failed(self, error: ProjectionError, event: object, /) -> None:
        """Take note of an event that could not be folded, and is a dead letter now.

        Args:
            error: The ApplyError, which names the projection, the key and the version; ``__cause__`` is the
                exception that ``apply`` raised.
            event: The event.
        """
