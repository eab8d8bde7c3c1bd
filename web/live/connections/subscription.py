"""One connection's interest in one channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ....store import Position
    from ..channels.channel import Channel
    from .connection import Connection


class Guest(NamedTuple):
    """The right that a ticket gave. Nobody can be asked about it again, so it ends at its time."""

    user: str | None
    until: float


class Subscription:
    """One life of one interest: in ``connection.subscriptions`` from the moment it is asked for until it ends.

    Without a channel it waits for its check, with one it is live, and once it is not in there any more it
    has ended, whatever answer still comes for it. A client that subscribes to the same key again begins
    another life. The channel knows where a live one stands: it has it in one of its sets, or the connection lets it
    wait until its socket takes a snapshot.
    """

    __slots__ = ("address", "channel", "connection", "opened_by", "since")

    def __init__(
        self,
        connection: Connection,
        channel: Channel | None,
        since: Position | None,
        *,
        address: tuple[str, str] | None = None,
        opened_by: str | Guest | None = None,
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.address = (channel.name, channel.key) if channel is not None else address or ("", "")
        self.since = since
        """The position from which the client would like to go on."""
        self.opened_by = opened_by
        """Before its check the ticket that the client has shown, if any; afterwards the right that it gave."""

    @property
    def guest(self) -> Guest | None:
        """The right of a ticket, by which it is live. None: the visitor's own right."""
        return self.opened_by if isinstance(self.opened_by, Guest) else None

    def leave(self) -> None:
        """Send it nothing more of its channel."""
        if self.channel is not None:
            self.channel.leave(self)
