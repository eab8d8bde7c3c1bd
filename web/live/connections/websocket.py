"""A WebSocket: what its client may say, and what it is answered."""

from __future__ import annotations

import socket
from typing import Any

import msgspec
from wsproto.frame_protocol import CloseReason, Opcode

from ....actors import InvalidKey, UnknownProjection, channel_of
from ..channels.batch import Batch
from ..connections.subscription import Subscription
from ..host import Host
from ..protocol.messages import PONG, error_message, parse_position, subscribed_message, unsubscribed_message
from ..protocol.websocket_frames import PING, Broken, FrameReader, close_frame, pong_frame, text_frame
from .client_identity import ClientIdentity, Permission
from .connection import FORBIDDEN, LIMIT, UNAUTHENTICATED, Connection
from .connection_limits import Taken, TooManyConnections

_FRAMES_A_SECOND = 20
_LONGEST_CHANNEL = len("projection.") + 128 + len(".") + 512
"""Of the longest name and the longest key."""


class _Message(msgspec.Struct):
    """What a client may send."""

    type: str
    channel: str | None = None
    projection: str | None = None
    key: str | None = None
    since: str | None = None
    ticket: str | None = None


class _Heading(msgspec.Struct):
    """What a message that can't be read may be about."""

    channel: Any = None
    projection: Any = None
    key: Any = None


_decode = msgspec.json.Decoder(_Message).decode
_decode_heading = msgspec.json.Decoder(_Heading).decode
_UNREADABLE = (msgspec.MsgspecError, UnicodeDecodeError, RecursionError)


class WebSocketConnection(Connection):
    """Speaks RFC 6455 to one client. ``many``: the client says which channels it watches."""

    __slots__ = ("_allowance", "_counted_at", "_many", "_pings", "_reader")

    most_inbound = 32 * 1024
    """Bytes that a message of a client may have: the largest ``subscribe`` that is legal, and some.

    A key of 512 characters, each of them a pair of ``\\uXXXX``, is 6 KiB. It is in ``channel``, in ``key`` and in
    the ticket, whose JSON is base64: at most 8 KiB there, and 8 KiB more for as long a user's name. The rest,
    names and position included, is under 1 KiB: 29 KiB in all.
    """

    def __init__(
        self,
        sock: socket.socket,
        host: Host,
        identity: ClientIdentity,
        slot: Taken,
        checked_at: float | None = None,
        *,
        many: bool,
    ) -> None:
        super().__init__(sock, host, identity, slot, checked_at)
        self._many = many
        self._reader: FrameReader | None = None
        self._allowance = self._most_allowance
        self._counted_at = self.heard_at
        self._pings = 0
        """Those that were not answered so far."""

    # -- out

    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        for data, frames in batch.for_sockets:
            self.push(data, frames, subscription)

    def ping(self) -> None:
        self._pings += 1
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
                if opcode is Opcode.PONG and self._pings:
                    self._pings -= 1  # it was asked for, so it costs nothing
                    continue
                if not self._afford(1):
                    return
                if opcode is Opcode.CLOSE:
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

    def _afford(self, count: int) -> bool:
        """Take so many frames off the allowance. False: there is not enough left, so the connection is closed."""
        self._allowance -= count
        if self._allowance >= 0:
            return True
        self.host.counts["flooding"] += 1
        self.close(LIMIT, f"more than {_FRAMES_A_SECOND} frames a second")
        return False

    def message(self, opcode: Opcode, payload: bytes) -> None:
        """Do what a client's message asks for."""
        if opcode is Opcode.BINARY:
            self.host.counts["garbage"] += 1
            self.close(CloseReason.UNSUPPORTED_DATA, "messages are text")
            return
        try:
            message = _decode(payload)
        except _UNREADABLE as error:
            self.host.counts["garbage"] += 1
            self._refuse("malformed", f"this is no frame: {error}", _meant_by_unreadable(payload))
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
            self._refuse("unknown_type", f"no frame here is of type {message.type[:100]!r}", _said(message))

    def _refuse(self, code: str, text: str, channel: str | None) -> None:
        self.say(error_message(code, text, None if channel is None else channel[:_LONGEST_CHANNEL]))

    def _resync(self, message: _Message) -> None:
        if _said(message) is None:
            live = [one for one in self.subscriptions.values() if one.channel is not None]
        else:
            subscription = self._meant(message)
            if subscription is None:
                return self._refuse("not_subscribed", "you do not watch this channel", _said(message))
            live = [subscription]
        # The frame is paid for; one that asks for many snapshots counts as many frames.
        if self._afford(max(0, len(live) - 1)):
            for subscription in live:
                self.bring(subscription, "resync")
        return None

    def _meant(self, message: _Message) -> Subscription | None:
        """Return the subscription that a message is about."""
        if message.projection is not None and message.key is not None:
            return self.subscriptions.get((message.projection, message.key))
        try:
            meant = self.subscriptions.get(self.host.address_of(message.channel, None, None))
        except (UnknownProjection, InvalidKey):
            return None
        if meant is None:
            # Of two names that one text can mean this socket watches the other.
            texts = ((channel_of(*address), one) for address, one in self.subscriptions.items())
            meant = next((one for text, one in texts if text == message.channel), None)
        return meant

    # -- many channels

    def _subscribe(self, message: _Message) -> None:
        try:
            address = self.host.address_of(message.channel, message.projection, message.key)
        except UnknownProjection as error:
            return self._refuse("unknown_projection", str(error), _said(message) or "")
        except InvalidKey as error:
            return self._refuse("malformed", str(error), _said(message) or "")
        channel = channel_of(*address)
        try:
            since = None if message.since is None else parse_position(message.since)
        except ValueError as error:
            return self._refuse("malformed", str(error), channel)
        if address in self.subscriptions:
            return self._refuse("subscribed_already", "you watch this channel already", channel)
        most = self.host.settings.max_channels_per_socket
        if len(self.subscriptions) >= most:
            self.host.counts["refused_channels"] += 1
            return self._refuse("limit", f"a socket may watch {most} channels", channel)
        subscription = Subscription(self, None, since, address=address, opened_by=message.ticket)
        self.subscriptions[address] = subscription
        if message.ticket is None and self.host.is_public(address[0]):
            self._accept(subscription)
        else:
            self.host.checks.ask(subscription)
        return None

    def decided(self, subscription: Subscription, permission: Permission | None, began: float) -> None:
        if not self.has(subscription):
            return None
        if permission is None:
            text = f"you may not read {subscription.address[0]!r}"
            return self._turn_away(subscription, "forbidden", text)
        if subscription.opened_by is None:
            self._vouch(began)
        elif self.host.sign_outs.since(permission.user, began):
            return self.sign_out()
        else:
            try:
                self._receive(permission.user)
            except TooManyConnections as error:
                return self._turn_away(subscription, "limit", str(error))
            subscription.opened_by = self._guest(permission.user, began)
        return self._accept(subscription)

    def _receive(self, user: str | None) -> None:
        """Count the connection among those of a ticket's user, once. Raises TooManyConnections."""
        if user is None or user in self.users:
            return
        slot = self.host.connection_limits.enter_user(user)
        self.guests = {**(self.guests or {}), user: slot}

    def _accept(self, subscription: Subscription) -> None:
        self.say(subscribed_message(channel_of(*subscription.address)))
        if self.has(subscription):  # the connection may have broken by that
            self.go_live(subscription)

    def _turn_away(self, subscription: Subscription, code: str, text: str) -> None:
        self.host.counts["refused_channels"] += 1
        self.unsubscribe(subscription)
        self._refuse(code, text, channel_of(*subscription.address))

    def _unsubscribe(self, message: _Message) -> None:
        subscription = self._meant(message)
        if subscription is None:
            return self._refuse("not_subscribed", "you do not watch this channel", _said(message) or "")
        self.unsubscribe(subscription)
        return self.say(unsubscribed_message(channel_of(*subscription.address)))

    def expel(self, subscription: Subscription) -> None:
        text = "you may no longer read this"
        if self._many:
            self.unsubscribe(subscription)
            self._refuse("forbidden", text, channel_of(*subscription.address))
        elif subscription.guest is None:
            self.close(FORBIDDEN, text)
        else:
            self.close(UNAUTHENTICATED, "the ticket has had its time")

    @property
    def _most_allowance(self) -> float:
        # A page subscribes to all it shows at once.
        return _FRAMES_A_SECOND + self.host.settings.max_channels_per_socket


def _said(message: _Message | _Heading) -> str | None:
    """Return the channel that a client names, in either way."""
    if message.projection is not None and message.key is not None:
        return f"projection.{message.projection}.{message.key}"
    return message.channel if isinstance(message.channel, str) else None


def _meant_by_unreadable(payload: bytes) -> str | None:
    """Return the channel of a message that is no frame as far as it can be told."""
    try:
        return _said(_decode_heading(payload))
    except _UNREADABLE:
        return None
