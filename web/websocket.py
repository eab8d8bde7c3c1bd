"""A WebSocket: what its client may say, and what it is answered."""

from __future__ import annotations

import socket

import msgspec
from wsproto.frame_protocol import CloseReason, Opcode

from ..actors import InvalidKey, UnknownProjection
from ..store import Position
from .admission import Place
from .connection import FORBIDDEN, LIMIT, UNAUTHENTICATED, Connection
from .frames import PONG, error_frame, subscribed_frame, unsubscribed_frame
from .host import Host
from .parcel import Parcel
from .positions import parse_position
from .subscription import Subscription
from .visitor import Visitor
from .wire import PING, Broken, FrameReader, close_frame, pong_frame, text_frame

_FRAMES_A_SECOND = 20


class _Message(msgspec.Struct):
    """What a client may send."""

    type: str
    channel: str | None = None
    projection: str | None = None
    key: str | None = None
    since: str | None = None
    ticket: str | None = None


_decode = msgspec.json.Decoder(_Message).decode


class WebSocketConnection(Connection):
    """Speaks RFC 6455 to one client. ``many``: the client says which channels it watches."""

    __slots__ = ("_allowance", "_counted_at", "_many", "_reader", "_wishes")

    most_inbound = 4096
    """Bytes that a message of a client may have."""

    def __init__(
        self, sock: socket.socket, host: Host, visitor: Visitor, place: Place, *, many: bool
    ) -> None:
        super().__init__(sock, host, visitor, place)
        self._many = many
        self._reader: FrameReader | None = None
        self._wishes: dict[tuple[str, str], Position | None] | None = None
        self._allowance = self._most_allowance
        self._counted_at = self.heard_at

    # -- out

    def deliver(self, parcel: Parcel, subscription: Subscription) -> None:
        for data, frames in parcel.for_sockets:
            self.push(data, frames, subscription)

    def ping(self) -> None:
        self.push(PING)

    def farewell(self, code: int, reason: str) -> bytes:
        return close_frame(code, reason)

    def say(self, payload: bytes) -> None:
        """Send a message that belongs to no channel."""
        self.push(text_frame(payload))

    # -- in

    def received(self, data: bytes) -> None:
        if self._reader is None:  # most clients never say more than a pong
            self._reader = FrameReader(self.most_inbound)
        earlier, self._counted_at = self._counted_at, self.heard_at
        gained = (self.heard_at - earlier) * _FRAMES_A_SECOND
        self._allowance = min(self._most_allowance, self._allowance + gained)
        try:
            for opcode, payload, code in self._reader.feed(data):
                self._allowance -= 1
                if self._allowance < 0:
                    self.host.counts["flooding"] += 1
                    self.close(LIMIT, f"more than {_FRAMES_A_SECOND} frames a second")
                elif opcode is Opcode.CLOSE:
                    self.close(code, "")
                elif opcode is Opcode.PING:
                    self.push(pong_frame(payload))
                elif opcode is not Opcode.PONG:
                    self.message(opcode, payload)
                if not self.is_open:
                    return
        except Broken as error:
            self.host.counts["garbage"] += 1
            self.close(error.code, str(error))

    def message(self, opcode: Opcode, payload: bytes) -> None:
        """Do what a client's message asks for."""
        if opcode is Opcode.BINARY:
            self.host.counts["garbage"] += 1
            self.close(CloseReason.UNSUPPORTED_DATA, "messages are text")
            return
        try:
            message = _decode(payload)
        except (msgspec.MsgspecError, UnicodeDecodeError) as error:
            self.host.counts["garbage"] += 1
            self.say(error_frame("malformed", f"this is no frame: {error}"))
            return
        if message.type == "ping":
            self.say(PONG)
        elif message.type == "resync":
            self._resync(message)
        elif message.type == "subscribe" and self._many:
            self._subscribe(message)
        elif message.type == "unsubscribe" and self._many:
            self._unsubscribe(message)
        else:
            self.say(error_frame("unknown_type", f"no frame here is of type {message.type[:100]!r}"))

    def _resync(self, message: _Message) -> None:
        for subscription in list(self.subscriptions.values()):
            if message.channel in (None, subscription.channel.text):
                subscription.channel.ask(subscription, "resync")

    # -- many channels

    def _subscribe(self, message: _Message) -> None:
        channel = message.channel or f"projection.{message.projection}.{message.key}"
        try:
            name, key = self.host.address_of(message.channel, message.projection, message.key)
            since = None if message.since is None else parse_position(message.since)
        except UnknownProjection as error:
            return self.say(error_frame("unknown_projection", str(error), channel))
        except (InvalidKey, ValueError) as error:
            return self.say(error_frame("malformed", str(error), channel))
        if any(text == channel for text in self._texts()):
            return self.say(error_frame("subscribed_already", "you watch this channel already", channel))
        wishes = self._wishes = self._wishes or {}
        most = self.host.settings.max_channels_per_socket
        if len(self.subscriptions) + len(wishes) >= most:
            self.host.counts["refused_channels"] += 1
            return self.say(error_frame("limit", f"a socket may watch {most} channels", channel))
        wishes[name, key] = since
        return self.host.check(self, name, key, message.ticket)

    def _unsubscribe(self, message: _Message) -> None:
        for address, subscription in list(self.subscriptions.items()):
            if subscription.channel.text == message.channel:
                self.unsubscribe(*address)
                self.say(unsubscribed_frame(message.channel))
                return
        channel = message.channel or ""
        self.say(error_frame("not_subscribed", "you do not watch this channel", channel))

    def _texts(self) -> list[str]:
        return [subscription.channel.text for subscription in self.subscriptions.values()]

    def decided(self, name: str, key: str, *, may: bool) -> None:
        if not self.is_open:
            return
        address = name, key
        watched = self.subscriptions.get(address)
        if watched is not None:
            if not may:
                self._expel(watched)
        elif self._wishes and address in self._wishes:
            since = self._wishes.pop(address)
            channel = f"projection.{name}.{key}"
            if may:
                self.say(subscribed_frame(channel))
                self.subscribe(name, key, since)
            else:
                self.host.counts["refused_channels"] += 1
                self.say(error_frame("forbidden", f"you may not read {name!r}", channel))

    def _expel(self, subscription: Subscription) -> None:
        self.host.counts["expelled"] += 1
        if self.visitor.by_ticket:
            self.close(UNAUTHENTICATED, "the ticket has had its time")
        elif not self._many:
            self.close(FORBIDDEN, "you may no longer read this")
        else:
            channel = subscription.channel
            self.unsubscribe(channel.name, channel.key)
            self.say(error_frame("forbidden", "you may no longer read this", channel.text))

    @property
    def _most_allowance(self) -> float:
        # A page subscribes to all it shows at once.
        return _FRAMES_A_SECOND + self.host.settings.max_channels_per_socket
