"""Messages between processes about commits, through Redis. They are hints: the rows are the truth."""

from __future__ import annotations

import itertools
import logging
import os
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol
from uuid import uuid4

from msgspec import msgpack

from ....actors import ProjectionError
from ....actors.pool.threads import ThreadHealth, WatchedThread
from ....store.backoff import backoff

if TYPE_CHECKING:
    from redis import Redis

_logger = logging.getLogger("keyfold.backplane")

_MAX_MESSAGES = 10_000
_MAX_BYTES = 32 * 1024 * 1024
_MAX_LOST_CHANNELS = 100_000
_MAX_BATCH = 256
_TIMEOUT = 5.0
_IDLE_SECONDS = 1.0
_HEALTH_SECONDS = 5

EMPTY_STATS = {
    "trouble": None, "watched": 0, "waiting": 0, "published": 0, "received": 0, "dropped": 0, "reconnects": 0,
}  # fmt: skip
"""The stats before the first use."""

_Batch = list[tuple[str, bytes]]


class MessageReceived(Protocol):
    """Takes a message of another process. Called on the receiver's thread."""

    def __call__(self, channel: str, content: list[Any] | None, /) -> None:
        """``content`` is None if the message could not be decoded."""


class ChannelConfirmed(Protocol):
    """Called on the receiver's thread when no message on a channel is missed from now on."""

    def __call__(self, channel: str, /) -> None:
        """Called again after a lost connection is back, as messages may have been lost meanwhile."""


class Backplane:
    """Publishes messages on channels, and receives those of other processes, on two threads of its own.

    No method waits for Redis. The messages that wait to be sent are bounded, and over the bound the oldest
    goes. The channel of a message that could not be sent is remembered. An empty message on it then tells its
    receivers that they missed something.

    It has many attributes because it is two loops in one: a sender and a receiver, which share the trouble
    and the counts.

    Args:
        url: The URL of the Redis.
        prefix: The first part of the names of all channels in Redis.
        received: Takes the messages on the channels that are watched.
        confirmed: Learns from which moment on a channel is received.

    Raises:
        ProjectionError: The URL is malformed, or redis-py is not installed.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        received: MessageReceived,
        confirmed: ChannelConfirmed,
    ) -> None:
        self._redis = connect(url)
        self._prefix = prefix
        self._received, self._confirmed = received, confirmed
        # Redis sends a message back to its publisher too, which recognises it by the origin.
        self._origin = uuid4().hex[:12]
        self._hint = msgpack.encode([self._origin])
        self._control = f"{prefix}control.{self._origin}"
        self._stop = threading.Event()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._lost_channels: dict[str, None] = {}
        self._lock = threading.Lock()
        self._sendable = threading.Condition(self._lock)
        self._wanted: set[str] = set()
        self._wakeup_sent = False
        self._send_failures = self._receive_failures = 0
        """Attempts that failed one after another."""
        self._gave_up = False
        self._pubsub: Any = None
        self._subscribed: set[str] = set()
        self._is_first_connection = True
        self.published = self.dropped = self.received_count = self.reconnects = 0
        self.trouble = ""
        """The reason why Redis can't be reached at the moment; empty if it can."""
        self._sender = WatchedThread("keyfold-backplane-sender", self._take_batch, self._send)
        self._receiver = WatchedThread(
            "keyfold-backplane-receiver", self._receive, self._handle, on_end=self._close_pubsub
        )
        self._sender.start()
        self._receiver.start()

    # -- from any thread; none of these waits

    def publish(self, channel: str, message: list[Any], details: tuple[Any, ...] = ()) -> None:
        """Send a message to the other processes.

        Args:
            channel: The name of a channel, without the prefix.
            message: The message. MessagePack must be able to encode it.
            details: Follow the message where it arrives. They travel beside the origin, so that a release
            that
                does not know them gets the message without them: it compares the origin with its own and does
                not look into it.
        """
        data = msgpack.encode([[self._origin, *details] if details else self._origin, *message])
        with self._lock:
            self._waiting.append((self._prefix + channel, data))
            self._bytes += len(data)
            while len(self._waiting) > _MAX_MESSAGES or (self._bytes > _MAX_BYTES and len(self._waiting) > 1):
                oldest = self._waiting.popleft()
                self._bytes -= len(oldest[1])
                self._note_lost([oldest])
            self._sendable.notify()

    def watch(self, channel: str) -> None:
        """Receive the messages on a channel. ``confirmed`` is called when that has begun."""
        with self._lock:
            self._wanted.add(self._prefix + channel)
            self._wake_receiver()

    def unwatch(self, channel: str) -> None:
        """Receive the messages on a channel no more."""
        with self._lock:
            self._wanted.discard(self._prefix + channel)
            self._wake_receiver()

    def _wake_receiver(self) -> None:
        # The receiver waits in a read. A message to itself ends that, through redis-py's public methods
        # alone, and one such message is enough for all the changes that have come by then.
        if not self._wakeup_sent:
            self._wakeup_sent = True
            self._waiting.appendleft((self._control, b""))
            self._sendable.notify()

    # -- the sender

    def _take_batch(self) -> _Batch | None:
        """Wait for messages and return them; None at the end, after the last."""
        if self._gave_up:
            return None
        if self._send_failures:
            self._stop.wait(backoff(self._send_failures - 1))
        with self._lock:
            self._sendable.wait_for(lambda: self._waiting or self._lost_channels or self._stop.is_set())
            batch = [self._waiting.popleft() for _ in range(min(_MAX_BATCH, len(self._waiting)))]
            self._bytes -= sum(len(data) for _, data in batch)
            # After the newer messages: a process that has read the row for those needs no hint.
            channels = list(itertools.islice(self._lost_channels, _MAX_BATCH - len(batch)))
            for channel in channels:
                del self._lost_channels[channel]
        return batch + [(channel, self._hint) for channel in channels] or None

    def _send(self, batch: _Batch) -> None:
        try:
            with self._redis.pipeline(transaction=False) as pipeline:
                for channel, data in batch:
                    pipeline.publish(channel, data)
                pipeline.execute()
        except Exception as error:
            with self._lock:
                self._note_lost(batch)
            # At the end, each of the other batches would take as long to fail.
            self._gave_up = self._stop.is_set()
            self._send_failures += 1
            self._note_trouble(error)
        else:
            self.published += len(batch)
            self._send_failures = 0
            self._note_recovery()

    def _note_lost(self, batch: _Batch) -> None:
        """Remember the channels of lost messages; over the bound, heartbeats repair it. Under the lock."""
        for channel, data in batch:
            self.dropped += data not in (b"", self._hint)
            if data and len(self._lost_channels) < _MAX_LOST_CHANNELS:
                self._lost_channels[channel] = None

    # -- the receiver

    def _receive(self) -> dict[str, Any] | None:
        """Wait for a message, connected; an empty dict stands for none within a second, None for the end."""
        while not self._stop.is_set():
            is_retry = self._pubsub is None and self._receive_failures > 0
            if is_retry and self._stop.wait(backoff(self._receive_failures - 1)):
                break
            try:
                if self._pubsub is None:
                    self._connect()
                return self._pubsub.get_message(timeout=_IDLE_SECONDS) or {}
            except Exception as error:
                self._lose_connection(error)
        return None

    def _handle(self, message: dict[str, Any]) -> None:
        try:
            if message:
                self._take_message(message)
            self._update_subscriptions()
        except Exception as error:
            self._lose_connection(error)

    def _connect(self) -> None:
        self._pubsub = self._redis.pubsub()  # type: ignore[no-untyped-call]
        self._pubsub.subscribe(self._control)
        self._subscribed = set()
        self._update_subscriptions()
        self.reconnects += not self._is_first_connection
        self._is_first_connection = False
        self._receive_failures = 0
        self._note_recovery()

    def _lose_connection(self, error: Exception) -> None:
        self._is_first_connection = False
        self._receive_failures += 1
        self._note_trouble(error)
        self._close_pubsub()

    def _close_pubsub(self) -> None:
        pubsub, self._pubsub = self._pubsub, None
        if pubsub is None:
            return
        try:
            pubsub.close()
        except Exception:
            _logger.debug("closing a connection to Redis failed", exc_info=True)

    def _update_subscriptions(self) -> None:
        """Subscribe to the channels that are wanted by now, and to no others."""
        with self._lock:
            self._wakeup_sent = False
            new, old = self._wanted - self._subscribed, self._subscribed - self._wanted
        if new:
            self._pubsub.subscribe(*new)
        if old:
            self._pubsub.unsubscribe(*old)
        self._subscribed |= new
        self._subscribed -= old

    def _take_message(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode()
        if channel == self._control:
            return
        name = channel.removeprefix(self._prefix)
        if message["type"] == "subscribe":
            self._confirmed(name)
        elif message["type"] == "message":
            origin, content = _decode(message["data"])
            if origin != self._origin:
                self.received_count += 1
                self._received(name, content)

    def _note_trouble(self, error: Exception) -> None:
        if self._stop.is_set():
            return
        if not self.trouble:
            _logger.error(
                "Redis can't be reached; sockets get the changes of other processes at their heartbeat: %s",
                error,
            )
        self.trouble = str(error) or type(error).__name__

    def _note_recovery(self) -> None:
        if self.trouble:
            self.trouble = ""
            _logger.warning("Redis is back: changes travel between processes again")

    # -- the end, and stats

    def close(self, timeout: float) -> None:
        """Send the messages that wait, within so many seconds, and end the threads."""
        deadline = monotonic() + timeout
        self._stop.set()
        with self._lock:
            self._waiting.append((self._control, b""))  # ends the receiver's read
            self._sendable.notify_all()
        self._sender.join(deadline)
        self._receiver.join(deadline)
        self._redis.close()

    def loops(self) -> list[ThreadHealth]:
        """Return the health of both threads."""
        now = monotonic()
        return [self._sender.health(now), self._receiver.health(now)]

    def stats(self) -> dict[str, Any]:
        """Return the counts, JSON-able."""
        return {
            "trouble": self.trouble or None,
            "watched": len(self._wanted),
            "waiting": len(self._waiting),
            "published": self.published,
            "received": self.received_count,
            "dropped": self.dropped,
            "reconnects": self.reconnects,
        }


def _decode(data: bytes) -> tuple[Any, list[Any] | None]:
    """Return the origin and the content of a message. The content is None if it can't be decoded."""
    try:
        origin, *content = _decode_list(data)
        if isinstance(origin, list):
            origin, *details = origin
            content += details
    except (ValueError, RecursionError):  # not MessagePack, or empty
        return None, None
    return origin, content


_decode_list = msgpack.Decoder(list).decode


def connect(url: str) -> Redis:
    """Return a client of Redis with timeouts. It connects at the first command.

    Raises:
        ProjectionError: The URL is malformed, or redis-py is not installed.
    """
    try:
        import redis  # noqa: PLC0415  # an extra
    except ImportError:
        msg = "KEYFOLD_REDIS needs redis-py: pip install 'keyfold[redis]'"
        raise ProjectionError(msg) from None
    try:
        return redis.Redis.from_url(
            url,
            socket_timeout=_TIMEOUT,
            socket_connect_timeout=_TIMEOUT,
            health_check_interval=_HEALTH_SECONDS,
            # A silent retry would hide that the connection was lost, and that messages were missed.
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            client_name=f"keyfold-{os.getpid()}",
        )
    except ValueError as error:
        msg = f"the config key KEYFOLD_REDIS is not a URL of Redis: {error}"
        raise ProjectionError(msg) from error
