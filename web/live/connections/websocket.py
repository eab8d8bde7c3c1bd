"""WebSocket connections: the messages of their clients, and the answers."""

from __future__ import annotations

import socket
from typing import TYPE_CHECKING, Any

import msgspec
from wsproto.frame_protocol import CloseReason, Opcode

from ....actors import InvalidKey
from ....actors.broadcaster import channel_of
from ....actors.errors import UnknownProjection
from ..channels.batch import Batch
from ..protocol.messages import (
    PONG,
    error_message,
    parse_position,
    subscribed_message,
    unsubscribed_message,
)
from ..protocol.websocket_frames import (
    PING,
    FrameReader,
    MessageReader,
    ProtocolViolation,
    close_frame,
    pong_frame,
    text_frame,
)
from .client_identity import ClientIdentity, Permission
from .connection import FORBIDDEN, LIMIT, UNAUTHENTICATED, Connection
from .connection_limits import HeldSlot, TooManyConnections
from .subscription import Subscription

if TYPE_CHECKING:
    from ....store import Position
    from ..hub import Hub

_FRAMES_PER_SECOND = 20
_MAX_CHANNEL_LENGTH = len("projection.") + 128 + len(".") + 512
"""The length with the longest name and the longest key."""
_MAX_TYPE_QUOTED = 100


class _Message(msgspec.Struct):
    """A message of a client."""

    type: str
    channel: str | None = None
    projection: str | None = None
    key: str | None = None
    since: str | None = None
    ticket: str | None = None


class _Heading(msgspec.Struct):
    """The part of an unreadable message that names its channel."""

    channel: Any = None
    projection: Any = None
    key: Any = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_heading = msgspec.json.Decoder(_Heading).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class WebSocketConnection(Connection):
    """Speaks RFC 6455 to one client. With ``many``, the client names its channels by messages."""

    __slots__ = ("_allowance", "_counted_at", "_many", "_reader", "_unanswered_pings")

    max_message_bytes = 32 * 1024
    """The size limit of a client's message: the largest legal ``subscribe``, and a little more.

    A key of 512 characters, each of them a pair of ``\\uXXXX``, is 6 KiB. It is in ``channel``, in ``key``
    and in the ticket, whose JSON is base64: at most 8 KiB there, and 8 KiB more for a user's name of that
    length. The rest, names and position included, is under 1 KiB: 29 KiB in all.
    """

    def __init__(
        self,
        sock: socket.socket,
        hub: Hub,
        identity: ClientIdentity,
        slot: HeldSlot,
        checked_at: float | None = None,
        *,
        many: bool,
        reader: MessageReader | None = None,
    ) -> None:
        """Wrap a socket after its handshake. The further arguments are those of ``Connection``.

        Args:
            sock: The client's socket.
            hub: The hub that will adopt the connection.
            identity: The client.
            slot: Given back when the connection ends.
            checked_at: The time at which the check of the client began.
            many: Whether the client names its channels by messages.
            reader: The reader that has begun to read the client's bytes. None: one is made when bytes come.
        """
        super().__init__(sock, hub, identity, slot, checked_at)
        self._many = many
        self._reader = reader
        self._allowance = self._max_allowance
        """The number of frames that the client may send now."""
        self._counted_at = self.heard_at
        self._unanswered_pings = 0

    def subscribe(self, name: str, key: str, since: Position | None) -> None:
        if self._many:
            self.send_message(subscribed_message(channel_of(name, key)))
        if self.is_open:  # the socket may have broken by that
            super().subscribe(name, key, since)

    # -- sending

    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        for data, frames in batch.for_sockets:
            self.push(data, frames, subscription)

    def ping(self) -> None:
        self._unanswered_pings += 1
        self.push(PING)

    def closing_bytes(self, code: int, reason: str) -> bytes:
        return close_frame(code, reason)

    def send_message(self, payload: bytes) -> None:
        """Send a message that is for no subscription."""
        self.push(text_frame(payload))

    # -- receiving

    def received(self, data: bytes) -> None:
        if self._reader is None:  # most clients never send more than pongs
            self._reader = FrameReader(self.max_message_bytes)
        earlier, self._counted_at = self._counted_at, self.heard_at
        gained = (self.heard_at - earlier) * _FRAMES_PER_SECOND
        self._allowance = min(self._max_allowance, self._allowance + gained)
        try:
            for opcode, payload, code in self._reader.feed(data):
                if opcode is Opcode.PONG and self._unanswered_pings:
                    self._unanswered_pings -= 1  # it was asked for, so it costs nothing
                    continue
                if not self._charge(1):
                    return
                if opcode is Opcode.CLOSE:
                    self.close(code, "")
                elif opcode is Opcode.PING:
                    self.push(pong_frame(payload))
                elif opcode is not Opcode.PONG:
                    self.message(opcode, payload)
                if not self.is_open:
                    return
        except ProtocolViolation as error:
            self.hub.counts["garbage"] += 1
            self.close(error.code, str(error))

    def _charge(self, count: int) -> bool:
        """Take frames off the allowance. If it is used up, close the connection and return False."""
        self._allowance -= count
        if self._allowance >= 0:
            return True
        self.hub.counts["flooding"] += 1
        self.close(LIMIT, f"more than {_FRAMES_PER_SECOND} frames per second")
        return False

    def message(self, opcode: Opcode, payload: bytes) -> None:
        """Handle a message of the client."""
        if opcode is Opcode.BINARY:
            self.hub.counts["garbage"] += 1
            self.close(CloseReason.UNSUPPORTED_DATA, "messages are text")
            return
        try:
            message = _decode(payload)
        except _UNREADABLE as error:
            self.hub.counts["garbage"] += 1
            self._send_error(
                "malformed", f"this is no valid message: {error}", _channel_of_unreadable(payload)
            )
            return
        if message.type == "ping":
            self.send_message(PONG)
        elif message.type == "resync":
            self._resync(message)
        elif message.type == "subscribe" and self._many:
            self._subscribe(message)
        elif message.type == "unsubscribe" and self._many:
            self._unsubscribe(message)
        else:
            text = f"no message here is of type {message.type[:_MAX_TYPE_QUOTED]!r}"
            self._send_error("unknown_type", text, _named_channel(message))

    def _send_error(self, code: str, text: str, channel: str | None) -> None:
        self.send_message(
            error_message(code, text, None if channel is None else channel[:_MAX_CHANNEL_LENGTH])
        )

    def _resync(self, message: _Message) -> None:
        if _named_channel(message) is None:
            live = [one for one in self.subscriptions.values() if one.channel is not None]
        else:
            subscription = self._find(message)
            if subscription is None:
                return self._send_error(
                    "not_subscribed", "you do not watch this channel", _named_channel(message)
                )
            live = [subscription]
        # The frame is charged already. One that asks for many snapshots counts as that many frames.
        if self._charge(max(0, len(live) - 1)):
            for subscription in live:
                self.refresh(subscription, "resync")
        return None

    def _find(self, message: _Message) -> Subscription | None:
        """Return the subscription that a message is about."""
        if message.projection is not None and message.key is not None:
            return self.subscriptions.get((message.projection, message.key))
        try:
            found = self.subscriptions.get(self.hub.sources.resolve(message.channel, None, None))
        except (UnknownProjection, InvalidKey):
            return None
        if found is None:
            # One text can stand for two row keys: this socket may subscribe to the other one.
            texts = ((channel_of(*row_key), one) for row_key, one in self.subscriptions.items())
            found = next((one for text, one in texts if text == message.channel), None)
        return found

    # -- many channels

    def _subscribe(self, message: _Message) -> None:
        try:
            row_key = self.hub.sources.resolve(message.channel, message.projection, message.key)
        except UnknownProjection as error:
            return self._send_error("unknown_projection", str(error), _named_channel(message) or "")
        except InvalidKey as error:
            return self._send_error("malformed", str(error), _named_channel(message) or "")
        channel = channel_of(*row_key)
        try:
            since = None if message.since is None else parse_position(message.since)
        except ValueError as error:
            return self._send_error("malformed", str(error), channel)
        if row_key in self.subscriptions:
            return self._send_error("subscribed_already", "you watch this channel already", channel)
        max_channels = self.hub.settings.max_channels_per_socket
        if len(self.subscriptions) >= max_channels:
            self.hub.counts["refused_channels"] += 1
            return self._send_error("limit", f"a socket may watch {max_channels} channels", channel)
        subscription = Subscription(self, None, since, row_key=row_key, opened_by=message.ticket)
        self.subscriptions[row_key] = subscription
        if message.ticket is None and self.hub.sources.is_public(row_key[0]):
            self._accept(subscription)
        else:
            self.hub.checks.ask(subscription)
        return None

    def on_checked(
        self, subscription: Subscription, permission: Permission | None, started_at: float
    ) -> None:
        """Accept or refuse a new subscription, unless it has ended meanwhile."""
        if not self.has(subscription):
            return None
        if permission is None:
            text = f"you may not read {subscription.row_key[0]!r}"
            return self._refuse(subscription, "forbidden", text)
        if subscription.opened_by is None:
            self._note_allowed(started_at)
        elif self.hub.sign_outs.since(permission.user, started_at):
            return self.sign_out()
        else:
            try:
                self._add_ticket_user(permission.user)
            except TooManyConnections as error:
                return self._refuse(subscription, "limit", str(error))
            subscription.opened_by = self._grant(permission.user, started_at)
        return self._accept(subscription)

    def _add_ticket_user(self, user: str | None) -> None:
        """Count the connection once for the user of a ticket. Raises TooManyConnections."""
        if user is None or user in self.users:
            return
        slot = self.hub.connection_limits.enter_user(user)
        self.ticket_users = {**(self.ticket_users or {}), user: slot}

    def _accept(self, subscription: Subscription) -> None:
        self.send_message(subscribed_message(channel_of(*subscription.row_key)))
        if self.has(subscription):  # the socket may have broken by that
            self.go_live(subscription)

    def _refuse(self, subscription: Subscription, code: str, text: str) -> None:
        self.hub.counts["refused_channels"] += 1
        self.unsubscribe(subscription)
        self._send_error(code, text, channel_of(*subscription.row_key))

    def _unsubscribe(self, message: _Message) -> None:
        subscription = self._find(message)
        if subscription is None:
            return self._send_error(
                "not_subscribed", "you do not watch this channel", _named_channel(message) or ""
            )
        self.unsubscribe(subscription)
        return self.send_message(unsubscribed_message(channel_of(*subscription.row_key)))

    def revoke(self, subscription: Subscription) -> None:
        text = "you may no longer read this"
        if self._many:
            self.unsubscribe(subscription)
            self._send_error("forbidden", text, channel_of(*subscription.row_key))
        elif subscription.ticket_grant is None:
            self.close(FORBIDDEN, text)
        else:
            self.close(UNAUTHENTICATED, "the time of the ticket is over")

    @property
    def _max_allowance(self) -> float:
        # A page subscribes to all its channels at once.
        return _FRAMES_PER_SECOND + self.hub.settings.max_channels_per_socket


def _named_channel(message: _Message | _Heading) -> str | None:
    """Return the channel that a client names, in either way."""
    if message.projection is not None and message.key is not None:
        return f"projection.{message.projection}.{message.key}"
    return message.channel if isinstance(message.channel, str) else None


def _channel_of_unreadable(payload: bytes) -> str | None:
    """Return the channel that an unreadable message names, as far as it can be found."""
    try:
        return _named_channel(_decode_heading(payload))
    except _UNREADABLE:
        return None
