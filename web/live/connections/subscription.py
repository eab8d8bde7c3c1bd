"""One connection's subscription to one channel."""

from __future__ import annotations

from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ....store import Position
    from ....store.rows import RowKey
    from ..channels.channel import Channel
    from .connection import Connection


class TicketGrant(NamedTuple):
    """The right that a ticket gave. It can't be checked again, so it ends at ``until`` (hub's clock)."""

    user: str | None
    until: float


class Subscription:
    """A subscription, in ``connection.subscriptions`` from the moment it is asked for until it ends.

    Without a channel it waits for its check, and with one it is live. Once it is no longer in there it has
    ended, and answers that still come for it are ignored. A client that subscribes to the same key again gets
    a new subscription. The channel holds a live one in one of its sets, or the connection lets it wait for
    its row.
    """

    __slots__ = ("channel", "connection", "opened_by", "row_key", "since")

    def __init__(
        self,
        connection: Connection,
        channel: Channel | None,
        since: Position | None,
        *,
        row_key: RowKey | None = None,
        opened_by: str | TicketGrant | None = None,
    ) -> None:
        self.connection = connection
        self.channel = channel
        self.row_key = (channel.name, channel.key) if channel is not None else row_key or ("", "")
        self.since = since
        """The position that the client has, from which it would like to go on."""
        self.opened_by = opened_by
        """Before its check, the ticket that the client showed, if any; afterwards the right that it gave."""

    @property
    def ticket_grant(self) -> TicketGrant | None:
        """The right of a ticket that it is live by. None stands for the client's own right."""
        return self.opened_by if isinstance(self.opened_by, TicketGrant) else None

    def leave(self) -> None:
        """Leave its channel, which sends it nothing more."""
        if self.channel is not None:
            self.channel.leave(self)
