"""One open connection, owned by the reactor's thread: its only reader and writer."""

from __future__ import annotations

import contextlib
import random
import socket
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ..store import Position
from .outbox import Chunk, Outbox
from .reactor import READABLE, WRITABLE
from .subscription import Subscription

if TYPE_CHECKING:
    from .admission import Place
    from .host import Host
    from .parcel import Parcel
    from .visitor import Visitor

GOING_AWAY = 1001
SLOW = 4101
NO_PONG = 4102
UNAUTHENTICATED = 4401
FORBIDDEN = 4403
LIMIT = 4429

_MOST_READ = 4096
_LINGER_SECONDS = 1.0


class Connection(ABC):
    """A socket, what it watches, and what waits for it.

    Frames leave at once while the socket takes them, else through an outbox with bounds. Over a bound
    the unsent frames are dropped, and their channels bring the newest snapshot when the socket takes
    again. Nobody ever waits for it. It ends after a close, an error, or too long without progress.
    """

    must_answer = True
    """False: a client of this kind says nothing, and its silence means nothing."""

    __slots__ = (
        "_allowed_at",
        "_closing",
        "_ended",
        "_ignored",
        "_is_timed",
        "_outbox",
        "_progress",
        "_send",
        "_sock",
        "heard_at",
        "host",
        "number",
        "opened_at",
        "place",
        "subscriptions",
        "visitor",
    )

    def __init__(self, sock: socket.socket, host: Host, visitor: Visitor, place: Place) -> None:
        sock.setblocking(False)
        self._sock = sock
        self._send = sock.send
        self.host, self.visitor, self.place = host, visitor, place
        self.subscriptions: dict[tuple[str, str], Subscription] = {}
        self.number = 0
        self.heard_at = self._allowed_at = self.opened_at = host.clock()
        self._outbox: Outbox | None = None
        self._ignored: set[Subscription] | None = None
        self._progress = 0
        self._is_timed = False
        self._closing = False
        self._ended = False

    # -- what a kind of connection adds

    @abstractmethod
    def deliver(self, parcel: Parcel, subscription: Subscription) -> None:
        """Send frames of a channel."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Take what the client sent."""

    @abstractmethod
    def ping(self) -> None:
        """Send something that a living client answers, or at least takes."""

    @abstractmethod
    def farewell(self, code: int, reason: str) -> bytes:
        """Return the last bytes of a connection that is closed."""

    @abstractmethod
    def decided(self, name: str, key: str, *, may: bool) -> None:
        """Take the answer of ``check``."""

    # -- life

    def start(self) -> None:
        """Begin to read."""
        reactor, settings = self.host.reactor, self.host.settings
        reactor.watch(self._sock, READABLE, self._ready)
        # Spread: connections that came together shall not be pinged together.
        reactor.call_later(random.uniform(0.2, 1) * settings.tick_seconds, self._tick)  # noqa: S311

    def subscribe(self, name: str, key: str, since: Position | None) -> None:
        """Watch a channel from now on."""
        channel = self.host.channel(name, key)
        subscription = self.subscriptions[name, key] = Subscription(self, channel, since)
        channel.ask(subscription, "initial")

    def unsubscribe(self, name: str, key: str) -> bool:
        """Watch it no longer. False: it was not watched."""
        subscription = self.subscriptions.pop((name, key), None)
        if subscription is None:
            return False
        subscription.channel.leave(subscription)
        if self._outbox:
            self._outbox.drop(subscription)
        if self._ignored:
            self._ignored.discard(subscription)
        return True

    def close(self, code: int, reason: str) -> None:
        """Send what is begun and a farewell, give the client a moment to answer, and end."""
        if self._closing or self._ended:
            return
        if self._outbox is not None:
            self._outbox.drop()
        self.push(self.farewell(code, reason))
        self._leave_channels()
        self._closing = True
        if self._outbox is None:
            self._half_close()
        self.host.reactor.call_later(_LINGER_SECONDS, self.end)

    def end(self) -> None:
        """Close the socket now."""
        if self._ended:
            return
        self._ended = True
        self._leave_channels()
        self._outbox = None
        self.host.reactor.forget(self._sock)
        self._sock.close()
        self.host.gone(self)
        self.place.leave()

    def abandon(self) -> None:
        """Close this process's copy of the socket, and nothing else: it was never started here."""
        self._sock.close()
        self.place.leave()

    @property
    def is_open(self) -> bool:
        """Neither side has said goodbye."""
        return not (self._closing or self._ended)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the outbox."""
        return self._outbox.size if self._outbox else 0

    # -- sending

    def push(self, data: bytes, frames: int = 1, subscription: Subscription | None = None) -> None:
        """Send data now, or let it wait."""
        if self._closing or self._ended:
            return
        outbox = self._outbox
        if outbox is None:
            try:
                sent = self._send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.host.counts["broken"] += 1
                self.end()
                return
            if sent != len(data):
                self._block(Chunk(data, frames, subscription), sent)
            return
        if self._ignored and subscription in self._ignored:
            return
        limits = self.host.settings
        if subscription is None or outbox.fits(data, frames, limits.outbox_frames, limits.outbox_bytes):
            outbox.append(Chunk(data, frames, subscription))
        else:
            self._overflow(outbox, subscription)

    def _overflow(self, outbox: Outbox, subscription: Subscription) -> None:
        losers = outbox.drop() | {subscription}
        for loser in losers:
            loser.channel.leave(loser)
        self._ignored = losers | (self._ignored or set())
        self.host.counts["slow"] += 1

    def _block(self, chunk: Chunk, sent: int) -> None:
        outbox = self._outbox = Outbox()
        outbox.append(chunk)
        outbox.sent(sent)
        reactor = self.host.reactor
        reactor.change(self._sock, READABLE | WRITABLE, self._ready)
        if not self._is_timed:
            self._is_timed = True
            reactor.call_later(self.host.settings.stall_seconds, self._check_progress, self._progress)

    def _flush(self, outbox: Outbox) -> None:
        while outbox:
            try:
                sent = self._send(outbox.first())
            except BlockingIOError:
                return
            except OSError:
                self.host.counts["broken"] += 1
                self.end()
                return
            self._progress += 1
            outbox.sent(sent)
        self._outbox = None
        self.host.reactor.change(self._sock, READABLE, self._ready)
        if self._closing:
            self._half_close()
        losers, self._ignored = self._ignored, None
        for subscription in losers or ():
            subscription.channel.ask(subscription, "slow")

    def _half_close(self) -> None:
        # A close with unread data in the kernel would be a reset, and could take the farewell with it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # -- receiving

    def _ready(self, events: int) -> None:
        if events & WRITABLE and self._outbox is not None:
            self._flush(self._outbox)
        if events & READABLE and not self._ended:
            try:
                data = self._sock.recv(_MOST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.end()
            elif not self._closing:
                self.heard_at = self.host.clock()
                self.received(data)

    # -- time

    def _tick(self) -> None:
        if not self.is_open:
            return
        settings, now = self.host.settings, self.host.clock()
        if now - self.heard_at > settings.silence_seconds and self.must_answer:
            self.host.counts["silent"] += 1
            self.close(NO_PONG, f"nothing was heard for {settings.silence_seconds:g} s")
            return
        if self._outbox is None:
            self.ping()
        if settings.reauthorize_seconds and now - self._allowed_at >= settings.reauthorize_seconds:
            self._allowed_at = now
            for name, key in self.subscriptions:
                self.host.check(self, name, key)
        self.host.reactor.call_later(settings.tick_seconds, self._tick)

    def _check_progress(self, progress: int) -> None:
        if self._ended or self._outbox is None:
            self._is_timed = False
        elif progress == self._progress:
            self.host.counts["stalled"] += 1
            self.close(SLOW, "you took nothing for too long")
        else:
            seconds = self.host.settings.stall_seconds
            self.host.reactor.call_later(seconds, self._check_progress, self._progress)

    def _leave_channels(self) -> None:
        for subscription in self.subscriptions.values():
            subscription.channel.leave(subscription)
        self.subscriptions.clear()
