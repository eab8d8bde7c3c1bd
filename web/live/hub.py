"""The hub: takes the commits of actors to the sockets of the clients that watch them.

It imports most modules of the live part, as it makes the parts and passes them to each other.
"""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any, Protocol

from ...actors import ProjectionSystem
from ...actors.broadcaster import Broadcaster, Committed
from ...store import Position
from .background_jobs import BackgroundJobs
from .backplane.cross_process_sync import CrossProcessSync
from .channels.channel import ChannelContext
from .channels.channels import Channels
from .channels.deltas import Deltas, Missed, Replaced
from .connections.checks import Checks
from .connections.connection import GOING_AWAY, Connection
from .connections.connection_limits import ConnectionLimits
from .connections.connections import Connections, SignOuts
from .log_throttle import LogThrottle
from .protocol.messages import delta_messages
from .protocol.websocket_frames import text_frame
from .reactor import Reactor
from .row_reader import RowReader
from .settings import LiveSettings
from .sources import Sources

if TYPE_CHECKING:
    from ...actors.pool.threads import ThreadHealth

WantedChannel = tuple[str, str, Position | None]
"""Projection, key, and the position that the client has."""

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
_UNPUBLISHED_SECONDS = 1.0
"""The time between two reads of a source that does not publish its changes."""
_ONLY_KEY = "all"
"""The key of such a source."""
_SWEEPS_PER_HEARTBEAT = 5
_MIN_SWEEP_SECONDS = 0.01
_CLOSE_SECONDS = 3.0


class Connected(Protocol):
    """Told of each new connection. Called on the reactor's thread; must not block."""

    def __call__(self, projection: str | None, key: str | None, user: str | None, /) -> object:
        """Projection and key are None for a connection that names its channels later."""


class Hub(Broadcaster):
    """Sends committed changes to all clients that watch them.

    Actors call ``publish`` and the like, and request threads ``adopt``; neither ever waits for a socket. The
    rest happens on the reactor's thread, which starts with the first connection. A frame is built once for
    any number of subscriptions, and without a Redis not at all for a key without any.

    It has many attributes: the parts of the live part, which it makes and passes to each other.

    Args:
        settings: The limits and intervals.
        system: The system whose rows are read. It gets the hub by ``system.broadcast_to(hub)``.
        clock: Returns the time in seconds.
    """

    def __init__(
        self,
        settings: LiveSettings,
        system: ProjectionSystem,
        *,
        clock: Callable[[], float] = monotonic,
    ) -> None:
        self.settings = settings
        self.clock = clock
        self.sources = Sources(system)
        self._system = system
        self._connected: list[Connected] = []
        self._closed = False
        self._make_parts()

    def _make_parts(self) -> None:
        settings, system = self.settings, self._system

        def clock() -> float:
            return self.clock()  # looked up at each call: a test may set it

        self._lock = threading.Lock()
        self._all_notified = threading.Event()
        self._resyncs: Counter[str] = Counter()
        self._background_jobs = BackgroundJobs("keyfold-background-jobs")
        self.counts: Counter[str] = Counter()
        self.reactor = Reactor("keyfold-hub", self._start_timers)
        self.cross_process_sync = CrossProcessSync(settings, system, self.reactor, clock)
        self.row_reader = RowReader(self.reactor, self.cross_process_sync)
        context = ChannelContext(
            settings,
            clock,
            self.reactor,
            self.row_reader,
            self.cross_process_sync,
            self.counts,
            self._resyncs,
            LogThrottle(clock),
        )
        self.channels = Channels(context, self.sources, system)
        self.connections = Connections()
        self.connection_limits = ConnectionLimits(settings)
        self.sign_outs = SignOuts()
        # A queue of their own for rechecks: new subscriptions, however many, do not delay them.
        self.checks = Checks(
            self.reactor,
            clock,
            "keyfold-checks",
            lambda subscription, *answer: subscription.connection.on_checked(subscription, *answer),
        )
        self.rechecks = Checks(
            self.reactor,
            clock,
            "keyfold-rechecks",
            lambda subscription, *answer: subscription.connection.on_rechecked(subscription, *answer),
        )

    def after_fork(self) -> None:
        """In a forked child: start without sockets. They are the parent's, and so is the reactor's thread."""
        connections, reactor = self.connections, self.reactor
        self._make_parts()
        for connection in connections:
            connection.abandon()
        reactor.abandon()

    # -- commits, from the actors' threads

    def publish(self, committed: Committed) -> None:
        channel = self.channels.find(committed.projection, committed.key)
        if channel is None and self.settings.redis is None:
            return
        payloads = delta_messages(
            committed.channel, committed.event_name, committed.epoch, committed.base_version, committed.deltas
        )
        if channel is not None:
            channel.notify(
                Deltas(
                    committed.epoch,
                    committed.base_version,
                    [text_frame(payload) for payload in payloads],
                    committed.base_commit_id,
                    committed.commit_id,
                )
            )
        self.cross_process_sync.publish(committed, payloads)

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            channel.notify(Replaced(position, state, reason))
        self.cross_process_sync.invalidate(projection, key, reason)

    def invalidate(self, projection: str, key: str) -> None:
        channel = self.channels.find(projection, key)
        if channel is not None:
            channel.notify(Missed())
        self.cross_process_sync.invalidate(projection, key, "gap")

    # -- connections, from any thread

    def on_connected(self, connected: Connected) -> None:
        """Call ``connected`` with each new connection."""
        self._connected.append(connected)

    def prepare(self) -> None:
        """Start the reactor, unless it was started. Raises OSError if the process has no descriptor left."""
        if not self._closed:
            self.reactor.start()

    def adopt(
        self,
        connection: Connection,
        wanted: Sequence[WantedChannel] = (),
        *,
        carried: bool = False,
        ahead: bytes | None = None,
    ) -> None:
        """Take over a connection.

        Args:
            connection: A connection that was just made. Nothing else reads or writes its socket from now on.
            wanted: The channels to subscribe it to at once. The client may read them.
            carried: Whether a request's thread carries its bytes.
            ahead: Bytes that its client has sent already; empty if only its reader holds some. None: neither.
        """
        if self._closed:
            connection.abandon()
            connection.slot.leave()
            return
        self.reactor.call(self._start, connection, wanted, carried, ahead)

    def disconnect(self, user: str) -> int:
        """Close every connection of a user with 4401.

        Returns:
            The number of connections that were closed.
        """
        if self._closed:
            return 0
        closed = Future[int]()
        # First, so that a connection that is still being checked is refused when it comes.
        self.sign_outs.note(user, self.clock())

        def close() -> None:
            connections = self.connections.of_user(user)
            for connection in connections:
                connection.sign_out()
            closed.set_result(len(connections))

        self.reactor.call(close)
        return closed.result(_CLOSE_SECONDS)

    def drop(self, number: int) -> bool:
        """Close one connection of this process, as an operator asks. Returns False if there is none."""
        connection = self.connections.find(number)
        if connection is None:
            return False
        self.reactor.call(connection.close, GOING_AWAY, "an operator has closed this connection")
        return True

    def run_in_background(self, function: Callable[[], object]) -> None:
        """Run code of the app on a thread for that, in order. While a thousand wait, more are dropped."""
        self._background_jobs.run(function)

    # -- on the reactor's thread

    def _start(
        self,
        connection: Connection,
        wanted: Sequence[WantedChannel],
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
        if connection.is_signed_out:
            connection.sign_out()
            return
        for channel in wanted:
            connection.subscribe(*channel)
        row_keys: list[tuple[str | None, str | None]] = [(name, key) for name, key, _ in wanted]
        for name, key in row_keys or [(None, None)]:
            for connected in self._connected:
                connected(name, key, connection.identity.user)
        if ahead is not None and connection.is_open:  # the client may have gone by then
            connection.received(ahead)

    def forget(self, connection: Connection) -> None:
        """Remove a connection that has ended. On the reactor's thread."""
        self.connections.remove(connection)
        self.counts["closed"] += 1

    def _start_timers(self) -> None:
        self._sweep()
        self._read_unpublished()

    def _sweep(self) -> None:
        self.channels.sweep()
        self._system.reporter.report()
        seconds = max(_MIN_SWEEP_SECONDS, self.settings.heartbeat_seconds / _SWEEPS_PER_HEARTBEAT)
        self.reactor.call_later(seconds, self._sweep)

    def _read_unpublished(self) -> None:
        """Read the rows of sources that do not publish their changes, while clients watch them."""
        for name in self.sources.unpublished():
            channel = self.channels.find(name, _ONLY_KEY)
            if channel is not None and channel.is_watched:
                channel.heartbeat()
        self.reactor.call_later(_UNPUBLISHED_SECONDS, self._read_unpublished)

    # -- the end, and stats

    def close(self, timeout: float = _CLOSE_SECONDS) -> None:
        """Close every connection with 1001, and end the reactor.

        Commits are still sent to other processes until the system has closed.

        Args:
            timeout: Seconds to wait for the connections to end.
        """
        self._close_connections(timeout)
        if self._system.closed:
            self.cross_process_sync.close(min(timeout, _CLOSE_SECONDS))

    def _close_connections(self, timeout: float) -> None:
        reactor = self.reactor
        with self._lock:
            was_closed, self._closed = self._closed, True
        self._background_jobs.close()
        self.checks.close()
        self.rechecks.close()
        if not reactor.is_started:
            return
        if was_closed:
            self._all_notified.wait(timeout)  # another thread closes: the process must not end before
            return
        if not reactor.is_alive:  # no thread can send a close any more, so there is nothing to wait for
            for connection in self.connections:
                connection.end()
            self._all_notified.set()
            return
        self.connections.close_all(reactor, GOING_AWAY, "the server is shutting down", timeout)
        self._all_notified.set()
        reactor.stop(timeout)

    def loops(self) -> list[ThreadHealth]:
        if not self.reactor.is_started or self._closed:
            return []
        return [self.reactor.health(monotonic()), *self.cross_process_sync.loops()]

    def stats(self) -> dict[str, Any]:
        """Return the numbers of connections and subscriptions, and the counts since the process began."""
        counts, watched, resyncs = self.counts.copy(), self.channels.by_projection(), self._resyncs.copy()
        return {
            "open": len(self.connections),
            "projections": {
                name: {"subscribers": watched[name], "resyncs": resyncs[name]}
                for name in list(self._system.projections)
            },
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
