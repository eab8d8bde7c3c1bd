"""Who watches which channel."""

from __future__ import annotations

import threading
from collections import Counter
from typing import Any

from ..actors import Broadcaster, Committed, channel_of
from ..store import Position
from .frames import delta_frames, snapshot_frame
from .settings import WebSettings
from .subscriber import Close, Delta, Refresh, Subscriber, Whole

GOING_AWAY = 1001


class TooManySockets(Exception):  # says what it is
    """A limit on open sockets is reached; the message says which."""


class Hub(Broadcaster):
    """Fans committed changes out to the subscribers of their channel. Safe from any thread.

    Publishing encodes a frame once whatever the number of subscribers, nothing for a channel that
    nobody watches, and never waits for any of them.
    """

    def __init__(self, settings: WebSettings) -> None:
        self._settings = settings
        self._closed = False
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: no socket of the parent is ours."""
        self._lock = threading.Lock()
        # Channel -> subscribers, replaced as a whole, so that publishing reads it without the lock.
        self._channels: dict[str, tuple[Subscriber, ...]] = {}
        self._addresses: Counter[str] = Counter()
        self._counts: Counter[str] = Counter()

    # -- subscribers

    def subscribe(self, projection: str, key: str, address: str) -> Subscriber:
        """Register a subscriber, *buffering*: what is committed from now on waits in its outbox.

        Raises TooManySockets.
        """
        channel = channel_of(projection, key)
        limits = self._settings
        subscriber = Subscriber(channel, most_frames=limits.outbox_frames, most_bytes=limits.outbox_bytes)
        with self._lock:
            if self._addresses.total() >= limits.max_sockets:
                self._counts["refused"] += 1
                msg = f"this server has its {limits.max_sockets} sockets open"
                raise TooManySockets(msg)
            if self._addresses[address] >= limits.max_sockets_per_address:
                self._counts["refused"] += 1
                msg = f"your address has its {limits.max_sockets_per_address} sockets open"
                raise TooManySockets(msg)
            self._addresses[address] += 1
            self._channels[channel] = (*self._channels.get(channel, ()), subscriber)
            self._counts["opened"] += 1
            if self._closed:
                subscriber.offer([Close(GOING_AWAY, "the server is shutting down")])
        return subscriber

    def unsubscribe(self, subscriber: Subscriber, address: str) -> None:
        """Forget a subscriber whose socket has ended."""
        with self._lock:
            left = tuple(s for s in self._channels.get(subscriber.channel, ()) if s is not subscriber)
            if left:
                self._channels[subscriber.channel] = left
            else:
                self._channels.pop(subscriber.channel, None)
            self._addresses[address] -= 1
            if self._addresses[address] <= 0:
                del self._addresses[address]
            self._counts["closed"] += 1
            self._counts["slow"] += subscriber.overflows

    def count(self, what: str) -> None:
        """Count something that happened to a socket."""
        with self._lock:
            self._counts[what] += 1

    # -- what the actors say

    def publish(self, committed: Committed) -> None:
        """Put the deltas of one turn into the outbox of everyone who watches."""
        channel = committed.channel
        subscribers = self._channels.get(channel)
        if subscribers:
            epoch = committed.epoch
            frames = delta_frames(
                channel, committed.event_name, epoch, committed.base_version, committed.deltas
            )
            items = [Delta(epoch, version, frame) for version, frame in frames]
            for subscriber in subscribers:
                subscriber.offer(items)

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        """Put a whole new state into the outbox of everyone who watches."""
        channel = channel_of(projection, key)
        subscribers = self._channels.get(channel)
        if subscribers:
            items = [Whole(position, snapshot_frame(channel, position, state, reason))]
            for subscriber in subscribers:
                subscriber.offer(items)

    def invalidate(self, projection: str, key: str) -> None:
        """Have everyone who watches read the row again."""
        for subscriber in self._channels.get(channel_of(projection, key), ()):
            subscriber.offer([Refresh("gap")])

    def close(self) -> None:
        """Tell every socket, and each that still comes, that the server goes away."""
        with self._lock:
            self._closed = True
            everyone = [s for subscribers in self._channels.values() for s in subscribers]
        for subscriber in everyone:
            subscriber.offer([Close(GOING_AWAY, "the server is shutting down")])

    def stats(self) -> dict[str, Any]:
        """Return what is open now, and the totals since the process began."""
        with self._lock:
            counts = dict(self._counts)
            everyone = [s for subscribers in self._channels.values() for s in subscribers]
            channels = len(self._channels)
        names = ("opened", "closed", "refused", "slow", "gap", "stalled", "garbage")
        return {
            "open": len(everyone),
            "buffering": sum(s.position is None for s in everyone),
            "channels": channels,
            **{name: counts.get(name, 0) for name in names},
        }
