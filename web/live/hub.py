"""Who watches what: the way from the actors to the sockets."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...actors import ProjectionSystem
from ...actors.broadcaster import Broadcaster, Committed
from ...actors.pool.threads import ThreadHealth
from ...store import Position
from .background_jobs import BackgroundJobs
from .backplane.cross_process_sync import CrossProcessSync
from .channels.channel import Channel
from .channels.channels import Channels
from .channels.inbox import Missed, Notice, Replaced, Turn
from .connections.checks import Checks
from .connections.connection import GOING_AWAY, Connection
from .connections.connection_limits import ConnectionLimits
from .connections.connections import Connections
from .connections.sign_outs import SignOuts
from .log_throttle import LogThrottle
from .protocol.messages import delta_messages
from .protocol.row_keys import find_address
from .protocol.websocket_frames import text_frame
from .reactor import Reactor
from .row_reader import RowReader
from .settings import LiveSettings

if TYPE_CHECKING:
    from ...store.rows import Row

Wish = tuple[str, str, Position | None]
"""Projection, key, and the position to go on from."""

_COUNTS = [
    "opened",
    "carried",
    "closed",
    "slow",
    "gap",
    "gone_back",
    "resumed",
    "stalled",
    "silent",
    "broken",
    "garbage",
    "flooding",
    "expelled",
    "late",
    "refused_channels",
]
_SOURCE_SECONDS = 1.0
_SWEEPS_A_HEARTBEAT = 5
_CLOSE_SECONDS = 3.0


class Hub(Broadcaster):
    """Fans committed changes out to everyone who watches.

    Actors call ``publish`` and the like, request threads ``adopt``; neither ever waits for a socket.
    Everything else happens on the reactor's thread, which starts with the first connection. A frame is
    built once whatever the number of subscribers, and without a Redis not at all for a key that nobody watches.
    """

    def __init__(self, settings: LiveSettings, *, clock: Callable[[], float] = monotonic) -> None:
        self.settings = settings
        self.clock = clock
        self.sources: dict[str, Callable[[], Row | None]] = {}
        """Channels (by name; the key is ``all``) that come from elsewhere than a projection's rows: read anew every second while watched."""
        self.connected: Callable[[str | None, str | None, str | None], object] | None = None
        """Called with projection, key and user of each connection, on the reactor's thread."""
        self._system: ProjectionSystem | None = None
        self._closed = False
        self._fresh()

    def serve(self, system: ProjectionSystem) -> None:
        """Say whose rows are read."""
        self._system = system
        self.rows = RowReader(self, system)

    def _fresh(self) -> None:
        self._lock = threading.Lock()
        self._all_told = threading.Event()
        self._reactor: Reactor | None = None
        self.connection_limits = ConnectionLimits(self.settings)
        self.counts: Counter[str] = Counter()
        self.gone_back_log = LogThrottle(self.clock)
        self.channels = Channels(self)
        self.connections = Connections()
        self.sign_outs = SignOuts()
        self.checks = Checks(self, "keyfold-checks", lambda at, *answer: at.decided(*answer))
        self.rechecks = Checks(self, "keyfold-rechecks", lambda at, *answer: at.confirmed(*answer))
        self._background_jobs = BackgroundJobs("keyfold-errands")
        self.cross_process_sync = CrossProcessSync(self)
        self._resyncs: Counter[str] = Counter()

    def after_fork(self) -> None:
        """In a forked child: no socket of the parent is ours, and its reactor's thread is not here."""
        connections, reactor = self.connections, self._reactor
        self._fresh()
        for connection in connections:
            connection.abandon()
        if reactor is not None:
            reactor.abandon()

    # -- what the actors say

    def publish(self, committed: Committed) -> None:
        channel = self.channels.find(committed.projection, committed.key)
        if channel is None and self.settings.redis is None:
            return
        payloads = delta_messages(
            committed.channel, committed.event_name, committed.epoch, committed.base_version, committed.deltas
        )
        if channel is not None:
            frames = [text_frame(payload) for payload in payloads]
            self.tell(
                channel,
                Turn(
                    committed.epoch,
                    committed.base_version,
                    frames,
                    committed.base_commit_id,
                    committed.commit_id,
                ),
            )
        self.cross_process_sync.publish(committed, payloads)

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            self.tell(channel, Replaced(position, state, reason))
        self.cross_process_sync.invalidate(projection, key, reason)

    def invalidate(self, projection: str, key: str) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            self.tell(channel, Missed())
        self.cross_process_sync.invalidate(projection, key, "gap")

    def tell(self, channel: Channel, news: Notice) -> None:
        """Bring news to a channel. From any thread."""
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
                    reactor.call(self._beat_sources)
                    self._reactor = reactor
        return self._reactor

    def prepare(self) -> None:
        """Start what owns the sockets, if nothing has yet. Raises OSError if there is no descriptor left."""
        if not self._closed:
            _ = self.reactor

    def adopt(
        self,
        connection: Connection,
        wishes: Sequence[Wish] = (),
        *,
        carried: bool = False,
        ahead: bytes | None = None,
    ) -> None:
        """Take over a connection. From any thread.

        Args:
            connection: The connection, which nothing else reads or writes from now on.
            wishes: The channels that it is subscribed to at once.
            carried: A request's thread carries its bytes.
            ahead: Bytes that its client has sent already, empty if its reader holds messages. None: neither.
        """
        if self._closed:
            connection.abandon()
            connection.slot.leave()
            return
        self.reactor.call(self._begin, connection, wishes, carried, ahead)

    def _begin(
        self,
        connection: Connection,
        wishes: Sequence[Wish],
        carried: bool,  # noqa: FBT001
        ahead: bytes | None,
    ) -> None:
        self.connections.add(connection)
        self.counts["opened"] += 1
        self.counts["carried"] += carried
        connection.start()
        if self._closed:
            connection.close(GOING_AWAY, "the server is shutting down")
            return
        if connection.is_outdated:
            connection.sign_out()
            return
        for wish in wishes:
            connection.begin(*wish)
        if self.connected is not None:
            watched: list[tuple[str | None, str | None]] = [(name, key) for name, key, _ in wishes]
            for name, key in watched or [(None, None)]:
                self.connected(name, key, connection.identity.user)
        if ahead is not None and connection.is_open:  # the client may have gone by then
            connection.received(ahead)

    def gone(self, connection: Connection) -> None:
        """Forget a connection that has ended. On the reactor's thread."""
        self.connections.remove(connection)
        self.counts["closed"] += 1

    def disconnect(self, user: str) -> int:
        """Close every connection of a user with 4401, and return how many there were. From any thread."""
        if self._closed:
            return 0
        closed = Future[int]()
        # Before those that are open are looked for: one that is still being checked is refused when it comes.
        self.sign_outs.note(user, self.clock())

        def close() -> None:
            theirs = self.connections.of_user(user)
            for connection in theirs:
                connection.sign_out()
            closed.set_result(len(theirs))

        self.reactor.call(close)
        return closed.result(_CLOSE_SECONDS)

    def is_public(self, name: str) -> bool:
        """Say whether everybody may read a projection, so that nobody is to be asked."""
        runtime = None if self._system is None else self._system.projections.get(name)
        return runtime is not None and runtime.projection.public

    def aside(self, function: Callable[[], object]) -> None:
        """Tell code of the app's something, on a thread of its own. From any thread."""
        self._background_jobs.run(function)

    def snapshot_sent(self, name: str, reason: str) -> None:
        """Count it, if it stands for deltas that would not do."""
        if reason not in ("initial", "rebuild"):
            self._resyncs[name] += 1

    def drop(self, number: int) -> bool:
        """Close one connection of this process, as an operator asks. False: there is none. From any thread."""
        connection = self.connections.find(number)
        if connection is None:
            return False
        self.reactor.call(connection.close, GOING_AWAY, "an operator has closed this connection")
        return True

    def address_of(self, channel: str | None, projection: str | None, key: str | None) -> tuple[str, str]:
        """Return (name, key) of what a client wants. Raises UnknownProjection, InvalidKey."""
        return find_address(self._projections, channel, projection, key)

    @property
    def _projections(self) -> dict[str, Any]:
        return self.sources | ({} if self._system is None else self._system.projections)

    # -- channels, on the reactor's thread

    def channel(self, name: str, key: str) -> Channel:
        """Return the channel of a key."""
        return self.channels.get(name, key)

    def read(self, channel: Channel) -> None:
        """Read the row of a channel on one of the readers' threads."""
        self.cross_process_sync.before_read(channel, lambda: self.rows.read(channel))

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call function on the reactor's thread."""
        self.reactor.call_later(seconds, function)

    def _sweep(self) -> None:
        self.channels.sweep()
        if self._system is not None:
            self._system.reporter.report()
        self.reactor.call_later(max(0.01, self.settings.heartbeat_seconds / _SWEEPS_A_HEARTBEAT), self._sweep)

    def _beat_sources(self) -> None:
        for name in self.sources:
            channel = self.channels.find(name, "all")
            if channel is not None and channel.is_watched:
                channel.beat()
        self.reactor.call_later(_SOURCE_SECONDS, self._beat_sources)

    # -- the end, and facts

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Tell every connection 1001, and end the reactor once all have gone or the timeout is over.

        Other processes are still told what is committed until the system has closed.
        """
        self._close_connections(timeout)
        if self._system is None or self._system.closed:
            self.cross_process_sync.close(min(timeout, _CLOSE_SECONDS))

    def _close_connections(self, timeout: float) -> None:
        with self._lock:
            closing, self._closed = self._closed, True
            reactor = self._reactor
        self._background_jobs.close()
        self.checks.close()
        self.rechecks.close()
        if reactor is None:
            return
        if closing:
            self._all_told.wait(timeout)  # somebody else is at it: the process must not end before
            return
        if not reactor.is_alive:  # nobody can say goodbye any more, so nothing is to be waited for
            for connection in self.connections:
                connection.end()
            self._all_told.set()
            return
        self.connections.close_all(reactor, GOING_AWAY, "the server is shutting down", timeout)
        self._all_told.set()
        reactor.stop(timeout)

    def loops(self) -> list[ThreadHealth]:
        reactor = self._reactor
        return (
            []
            if reactor is None or self._closed
            else [reactor.loop(monotonic()), *self.cross_process_sync.loops()]
        )

    def stats(self) -> dict[str, Any]:
        """Return what is open now, and the totals since the process began."""
        counts, watched, resyncs = self.counts.copy(), self.channels.by_projection(), self._resyncs.copy()
        names = [name for name in self._projections if name not in self.sources]
        return {
            "open": len(self.connections),
            "projections": {name: {"subscribers": watched[name], "resyncs": resyncs[name]} for name in names},
            **self.channels.stats(),
            "backplane": self.cross_process_sync.stats(),
            "limit": self.connection_limits.limit,
            "refused": self.connection_limits.refused,
            "checks_waiting": self.checks.waiting,
            "checks_running": self.checks.running,
            "rechecks_waiting": self.rechecks.waiting,
            "rechecks_running": self.rechecks.running,
            "signals_dropped": self._background_jobs.dropped,
            **{name: counts[name] for name in _COUNTS},
        }
