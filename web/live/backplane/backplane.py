"""Between processes: what one committed, told to those that have sockets for it. Redis carries hints, not truth."""

from __future__ import annotations

import itertools
import logging
import os
import random
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any
from uuid import uuid4

from msgspec import msgpack

from ....actors import ProjectionError
from ....actors.pool.threads import ThreadHealth

if TYPE_CHECKING:
    from redis import Redis

_logger = logging.getLogger("keyfold.backplane")

_MOST_MESSAGES = 10_000
_MOST_BYTES = 32 * 1024 * 1024
_MOST_LOST = 100_000
_AT_ONCE = 256
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.05, 2.0
_TIMEOUT = 5.0
_IDLE_SECONDS = 1.0
_HEALTH_SECONDS = 5

NOTHING = {
    "trouble": None, "watched": 0, "waiting": 0, "published": 0, "received": 0, "dropped": 0, "reconnects": 0,
}  # fmt: skip
"""What ``stats`` has before anything happened."""

Received = Callable[[str, list[Any] | None], None]


class Backplane:
    """Publishes messages on channels and receives those of other processes, on two threads of its own.

    No method waits for Redis. What waits to be sent is bounded, and over the bound the oldest goes; of what could
    not be sent the channel is remembered, and an empty message on it tells those who listen that they missed
    something. ``received`` gets the messages of the channels that are watched, None for one that can't be decoded;
    ``confirmed`` is told each channel from
    when on nothing is missed, again whenever a connection was lost and is back, as messages may have been lost meanwhile.
    """

    def __init__(
        self,
        url: str,
        prefix: str,
        *,
        received: Received,
        confirmed: Callable[[str], None],
    ) -> None:
        self._redis = connect(url)
        self._prefix = prefix
        self._received, self._confirmed = received, confirmed
        # Redis sends a message back to who published it, if it listens: this is how it knows its own.
        self._origin = uuid4().hex[:12]
        self._hint = msgpack.encode([self._origin])
        self._control = f"{prefix}control.{self._origin}"
        self._stop = threading.Event()
        self._waiting: deque[tuple[str, bytes]] = deque()
        self._bytes = 0
        self._lost: dict[str, None] = {}
        self._lock = threading.Lock()
        self._sendable = threading.Condition(self._lock)
        self._wanted: set[str] = set()
        self._wake_sent = False
        self.published = self.dropped = self.received_count = self.reconnects = 0
        self.trouble = ""
        """Why Redis can't be reached at the moment; empty when all is well."""
        self._busy_since: list[float | None] = [None, None]
        self._threads = [
            threading.Thread(target=self._send_loop, name="keyfold-backplane-sender", daemon=True),
            threading.Thread(target=self._receive_loop, name="keyfold-backplane-receiver", daemon=True),
        ]
        for thread in self._threads:
            thread.start()

    # -- from any thread; none of these waits

    def publish(self, channel: str, message: list[Any], details: tuple[Any, ...] = ()) -> None:
        """Tell the other processes.

        ``details`` follow the message where they arrive. A release that knows none of them gets the message
        without: they travel beside the origin, which it compares with its own and does not look into.
        """
        data = msgpack.encode([[self._origin, *details] if details else self._origin, *message])
        with self._lock:
            self._waiting.append((self._prefix + channel, data))
            self._bytes += len(data)
            while len(self._waiting) > _MOST_MESSAGES or (
                self._bytes > _MOST_BYTES and len(self._waiting) > 1
            ):
                lost = self._waiting.popleft()
                self._bytes -= len(lost[1])
                self._lose([lost])
            self._sendable.notify()

    def watch(self, channel: str) -> None:
        """Receive what is published on channel; ``confirmed`` says from when on."""
        with self._lock:
            self._wanted.add(self._prefix + channel)
            self._wake()

    def unwatch(self, channel: str) -> None:
        """Receive it no more."""
        with self._lock:
            self._wanted.discard(self._prefix + channel)
            self._wake()

    def _wake(self) -> None:
        # The receiver waits in a read. A message to itself ends that, through redis-py's public face alone;
        # it takes all changes of interest that have come by then at once.
        if not self._wake_sent:
            self._wake_sent = True
            self._waiting.appendleft((self._control, b""))
            self._sendable.notify()

    # -- sending

    def _send_loop(self) -> None:
        backoff = _FIRST_BACKOFF
        while (batch := self._take()) is not None:
            self._busy_since[0] = monotonic()
            try:
                with self._redis.pipeline(transaction=False) as pipeline:
                    for channel, data in batch:
                        pipeline.publish(channel, data)
                    pipeline.execute()
                self.published += len(batch)
                self._note_recovery()
                backoff = _FIRST_BACKOFF
            except Exception as error:
                with self._lock:
                    self._lose(batch)
                if self._stop.is_set():
                    return  # each of the others would take as long to fail
                self._note_trouble(error)
                self._busy_since[0] = None
                self._stop.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
                backoff = min(_LONGEST_BACKOFF, 2 * backoff)
            self._busy_since[0] = None

    def _take(self) -> list[tuple[str, bytes]] | None:
        """Wait for messages and return them; None at the end, after the last."""
        with self._lock:
            self._sendable.wait_for(lambda: self._waiting or self._lost or self._stop.is_set())
            batch = [self._waiting.popleft() for _ in range(min(_AT_ONCE, len(self._waiting)))]
            self._bytes -= sum(len(data) for _, data in batch)
            # After what is newer: who has read the row for that needs no hint.
            hints = list(itertools.islice(self._lost, _AT_ONCE - len(batch)))
            for channel in hints:
                del self._lost[channel]
        return batch + [(channel, self._hint) for channel in hints] or None

    def _lose(self, batch: list[tuple[str, bytes]]) -> None:
        """Remember which channels something was lost on; over the bound their heartbeats heal it. Under the lock."""
        for channel, data in batch:
            self.dropped += data not in (b"", self._hint)
            if data and len(self._lost) < _MOST_LOST:
                self._lost[channel] = None

    # -- receiving

    def _receive_loop(self) -> None:
        backoff, first = _FIRST_BACKOFF, True
        while not self._stop.is_set():
            pubsub = self._redis.pubsub()  # type: ignore[no-untyped-call]
            try:
                pubsub.subscribe(self._control)
                subscribed: set[str] = set()
                self._follow(pubsub, subscribed)
                self.reconnects += not first
                first = False
                self._note_recovery()
                backoff = _FIRST_BACKOFF
                while not self._stop.is_set():
                    self._busy_since[1] = None
                    message = pubsub.get_message(timeout=_IDLE_SECONDS)
                    self._busy_since[1] = monotonic()
                    if message is not None:
                        self._take_message(message)
                    self._follow(pubsub, subscribed)
            except Exception as error:
                self._busy_since[1] = None
                first = False
                self._note_trouble(error)
                self._stop.wait(backoff * random.uniform(0.5, 1.0))  # noqa: S311  # jitter
                backoff = min(_LONGEST_BACKOFF, 2 * backoff)
            finally:
                try:
                    pubsub.close()
                except Exception:
                    _logger.debug("closing a connection to Redis failed", exc_info=True)

    def _follow(self, pubsub: Any, subscribed: set[str]) -> None:
        """Subscribe to what is wanted by now, and to nothing else."""
        with self._lock:
            self._wake_sent = False
            new, old = self._wanted - subscribed, subscribed - self._wanted
        if new:
            pubsub.subscribe(*new)
        if old:
            pubsub.unsubscribe(*old)
        subscribed |= new
        subscribed -= old

    def _take_message(self, message: dict[str, Any]) -> None:
        channel = message["channel"].decode()
        if channel == self._control:
            return
        name = channel.removeprefix(self._prefix)
        if message["type"] == "subscribe":
            self._confirmed(name)
        elif message["type"] == "message":
            origin, content = _taken_apart(message["data"])
            if origin != self._origin:
                self.received_count += 1
                self._received(name, content)

    def _note_trouble(self, error: Exception) -> None:
        if self._stop.is_set():
            return
        if not self.trouble:
            _logger.error(
                "Redis can't be reached; sockets hear of other processes' changes at their heartbeat: %s",
                error,
            )
        self.trouble = str(error) or type(error).__name__

    def _note_recovery(self) -> None:
        if self.trouble:
            self.trouble = ""
            _logger.warning("Redis is back: changes travel between processes again")

    # -- the end, and facts

    def close(self, timeout: float) -> None:
        """Send what waits, within timeout, and end the threads."""
        deadline = monotonic() + timeout
        self._stop.set()
        with self._lock:
            self._waiting.append((self._control, b""))  # ends the receiver's read
            self._sendable.notify_all()
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        self._redis.close()

    def loops(self) -> list[ThreadHealth]:
        """Return how the threads fare."""
        now = monotonic()
        return [
            ThreadHealth.of(thread, since, now)
            for thread, since in zip(self._threads, self._busy_since, strict=True)
        ]

    def stats(self) -> dict[str, Any]:
        """Return what was counted, JSON-able."""
        return {
            "trouble": self.trouble or None,
            "watched": len(self._wanted),
            "waiting": len(self._waiting),
            "published": self.published,
            "received": self.received_count,
            "dropped": self.dropped,
            "reconnects": self.reconnects,
        }


def _taken_apart(data: bytes) -> tuple[Any, list[Any] | None]:
    """Return the origin of a message and what it says, None if it is no message of ours."""
    try:
        origin, *content = _decode(data)
        if isinstance(origin, list):
            origin, *details = origin
            content += details
    except (ValueError, RecursionError):  # not to be decoded, or empty
        return None, None
    return origin, content


_decode = msgpack.Decoder(list).decode


def connect(url: str) -> Redis:
    """Return a client that never waits for ever. Raises ProjectionError for a URL that is none, or without redis-py."""
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
            # Retried in silence, a lost connection would look like one on which nothing was missed.
            retry=redis.retry.Retry(redis.backoff.NoBackoff(), 0),
            client_name=f"keyfold-{os.getpid()}",
        )
    except ValueError as error:
        msg = f"the config key KEYFOLD_REDIS is not a URL of Redis: {error}"
        raise ProjectionError(msg) from error
