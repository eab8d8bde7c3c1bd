"""One connection's interest in one channel."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..store import Position
    from .channel import Channel
    from .connection import Connection


class Subscription:
    """Who watches what. Where it stands is known to the channel, which has it in one of its sets."""

    __slots__ = ("channel", "connection", "since")

    def __init__(self, connection: Connection, channel: Channel, since: Position | None) -> None:
        self.connection = connection
        self.channel = channel
        self.since = since
        """The position from which the client would like to go on."""
