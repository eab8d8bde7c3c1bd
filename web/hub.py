"""Who watches what: the way from the actors to the sockets."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..actors import Broadcaster, Committed, ProjectionKey, ProjectionSystem, UnknownProjection
from ..store import Position
from .admission import Admission
from .channel import Channel
from .channels import Channels
from .connection import GOING_AWAY, UNAUTHENTICATED, Connection
from .frames import delta_frames
from .news import Missed, News, Replaced, Turn
from .reactor import Reactor
from .settings import WebSettings
from .wire import text_frame

if TYPE_CHECKING:
    from ..store import Row

Wish = tuple[str, str, Position | None]
"""Projection, key, and the position to go on from."""

_COUNTS = [
    "opened",
    "carried",
    "closed",
    "slow",
    "gap",
    "resumed",
    "stalled",
    "silent",
    "broken",
    "garbage",
    "flooding",
    "expelled",
    "refused_channels",
]
_CHECKERS = 4
_SWEEPS_A_HEARTBEAT = 5
_CLOSE_SECONDS = 3.0


class Hub(Broadcaster):
    """Fans committed changes out to everyone who watches.

    Actors call ``publish`` and the like, request threads ``adopt``; neither ever waits for a socket.
    Everything else happens on the reactor's thread, which starts with the first connection. A frame is
    built once whatever the number of subscribers, and not at all for a key that nobody watches.
    """

    def __init__(self, settings: WebSettings, *, clock: Callable[[], float] = monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self._system: ProjectionSystem | None = None
        self._connections: set[Connection] = set()
        self._closed = False
        self._fresh()

    def serve(self, system: ProjectionSystem) -> None:
        """Say whose rows are read."""
        self._system = system

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._reactor: Reactor | None = None
        self._checkers: ThreadPoolExecutor | None = None
        self.admission = Admission(self.settings)
        self.counts: Counter[str] = Counter()
        self.channels = Channels(self)
        self._connections = set()

    def after_fork(self) -> None:
        """In a forked child: no socket of the parent is ours, and its reactor's thread is not here."""
        connections, reactor = self._connections, self._reactor
        self._fresh()
        for connection in connections:
            connection.abandon()
        if reactor is not None:
            reactor.abandon()

    # -- what the actors say

    def publish(self, committed: Committed) -> None:
        channel = self.channels.find(committed.projection, committed.key)
        if channel is not None:
            payloads = delta_frames(
                channel.text, committed.event_name, committed.epoch, committed.base_version, committed.deltas
            )
            frames = [text_frame(payload) for payload in payloads]
            self._tell(channel, Turn(committed.epoch, committed.base_version, frames))

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            self._tell(channel, Replaced(position, state, reason))

    def invalidate(self, projection: str, key: str) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            self._tell(channel, Missed())

    def _tell(self, channel: Channel, news: News) -> None:
        if channel.offer(news):
            self.reactor.call(channel.take_news)

    # -- connections

    @property
    def reactor(self) -> Reactor:
        """The thread that owns all sockets, started at the first use in this process."""
        if self._reactor is None:
            with self._lock:
                if self._reactor is None:
                    reactor = Reactor("keyfold-hub")
                    reactor.start()
                    reactor.call(self._sweep)
                    self._reactor = reactor
        return self._reactor

    def adopt(self, connection: Connection, wish: Wish | None, *, carried: bool = False) -> None:
        """Take over a connection, and subscribe it to the channel that its URL names. From any thread."""
        if self._closed:
            connection.abandon()
            return
        self.reactor.call(self._begin, connection, wish, carried)

    def _begin(self, connection: Connection, wish: Wish | None, carried: bool) -> None:  # noqa: FBT001
        self._connections.add(connection)
        self.counts["opened"] += 1
        self.counts["carried"] += carried
        connection.start()
        if self._closed:
            connection.close(GOING_AWAY, "the server is shutting down")
        elif wish is not None:
            connection.subscribe(*wish)

    def gone(self, connection: Connection) -> None:
        """Forget a connection that has ended. On the reactor's thread."""
        self._connections.discard(connection)
        self.counts["closed"] += 1

    def disconnect(self, user: str) -> int:
        """Close every connection of a user with 4401, and return how many there were. From any thread."""
        if self._closed:
            return 0
        closed = Future[int]()

        def close() -> None:
            theirs = [connection for connection in self._connections if connection.visitor.user == user]
            for connection in theirs:
                connection.close(UNAUTHENTICATED, "you were signed out")
            closed.set_result(len(theirs))

        self.reactor.call(close)
        return closed.result(_CLOSE_SECONDS)

    def check(self, connection: Connection, name: str, key: str, ticket: str | None = None) -> None:
        """Ask the app, on a thread of its own, whether a visitor may read a key."""
        if self._closed:
            return
        if self._checkers is None:
            self._checkers = ThreadPoolExecutor(_CHECKERS, thread_name_prefix="keyfold-access")
        visitor = connection.visitor

        def ask() -> None:
            allowed = visitor.may(name, key, ticket)
            self.reactor.call(lambda: connection.decided(name, key, may=allowed))

        self._checkers.submit(ask)

    def address_of(self, channel: str | None, projection: str | None, key: str | None) -> tuple[str, str]:
        """Return (name, key) of a channel, or of the two given apart. Raises UnknownProjection, InvalidKey.

        Names and keys may both have dots: the longest registered name that fits is meant.
        """
        projections = self._projections
        if projection is None or key is None:
            head, _, rest = (channel or "").partition("projection.")
            names = [name for name in projections if not head and rest.startswith(f"{name}.")]
            projection = max(names, key=len, default=None)
            if projection is None:
                msg = f"no registered projection has the channel {(channel or '')[:200]!r}"
                raise UnknownProjection(msg)
            key = rest[len(projection) + 1 :]
        elif projection not in projections:
            msg = f"no projection is named {projection[:200]!r}"
            raise UnknownProjection(msg, projection=projection)
        return projection, ProjectionKey(key)

    @property
    def _projections(self) -> dict[str, Any]:
        return {} if self._system is None else self._system.projections

    # -- channels, on the reactor's thread

    def channel(self, name: str, key: str) -> Channel:
        """Return the channel of a key."""
        return self.channels.get(name, key)

    def read(self, channel: Channel) -> None:
        """Read the row of a channel on one of the readers' threads."""
        reactor = self.reactor

        def came(future: Future[Row | None]) -> None:
            error = future.exception()
            if error is None:
                reactor.call(channel.row_came, future.result())
            else:
                reactor.call(channel.no_row_came, error)

        try:
            assert self._system is not None  # noqa: S101
            self._system.submit_read(channel.name, channel.key).add_done_callback(came)
        except Exception as error:
            reactor.call(channel.no_row_came, error)

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call function on the reactor's thread."""
        self.reactor.call_later(seconds, function)

    def _sweep(self) -> None:
        self.channels.sweep()
        self.reactor.call_later(max(0.01, self.settings.heartbeat_seconds / _SWEEPS_A_HEARTBEAT), self._sweep)

    # -- the end, and facts

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Tell every connection 1001, and end the reactor once all have gone or the timeout is over."""
        with self._lock:
            if self._closed:
                return
            self._closed = True
            reactor, checkers = self._reactor, self._checkers
        if checkers is not None:
            checkers.shutdown(wait=False, cancel_futures=True)
        if reactor is None:
            return
        all_gone = threading.Event()

        def close_all() -> None:
            for connection in list(self._connections):
                connection.close(GOING_AWAY, "the server is shutting down")
            look()

        def look() -> None:
            if self._connections:
                reactor.call_later(0.01, look)
            else:
                all_gone.set()

        def end_all() -> None:
            for connection in list(self._connections):
                connection.end()

        reactor.call(close_all)
        all_gone.wait(timeout)
        reactor.call(end_all)
        reactor.stop(timeout)

    def stats(self) -> dict[str, Any]:
        """Return what is open now, and the totals since the process began."""
        counts = self.counts.copy()
        return {
            "open": len(self._connections),
            **self.channels.stats(),
            "refused": self.admission.refused,
            **{name: counts[name] for name in _COUNTS},
        }
