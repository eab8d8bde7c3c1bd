"""The part of a system that belongs to one process: its threads, and the actors on them."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

import pykka

from ..store import StoreError
from ..store.writing.writer import SnapshotWriter
from ..store.writing.writer_stats import WriterStats
from .key_actor.actor_context import ActorContext
from .key_actor.population import Population
from .key_actor.publishing import Publisher
from .pool.dispatcher import Dispatcher
from .pool.threads import ThreadHealth
from .pool.timer import Timer
from .supervisor import Supervisor
from .upkeep.activity import Activity
from .upkeep.counters import Counters, InFlight
from .upkeep.sweeper import Sweeper

if TYPE_CHECKING:
    from pykka import ActorRef

    from ..store import SnapshotStore
    from .broadcaster import Broadcaster, Observer
    from .runtime import ProjectionRuntime
    from .settings import Settings

_logger = logging.getLogger("keyfold.system")

_GRACE = 1.0
"""Seconds of a close that are reserved for failing the Receipts, if the database did not come back."""


class Engine:
    """The running part of a ProjectionSystem. Made at the first dispatch in a process; a child makes its own.

    It imports most of the package, since it is the place where the parts are put together.

    Args:
        store: The database.
        settings: The settings of the system.
        broadcaster: Shows commits to subscribers; None if there is none.
        report: Called by the sweeper after each round, on its thread.
        observers: Are notified of commits and failures. The app may add to them at any time.
    """

    def __init__(
        self,
        store: SnapshotStore,
        settings: Settings,
        broadcaster: Broadcaster | None,
        report: Callable[[], None],
        observers: list[Observer],
    ) -> None:
        self.in_flight = InFlight(settings.in_flight_limit)
        self._store = store
        self._settings = settings
        self._broadcaster = broadcaster
        self._observers = observers
        self._dispatcher = Dispatcher(
            threads=settings.dispatcher_threads,
            turn_limit=settings.turn_limit,
            turn_seconds=settings.turn_seconds,
        )
        self._sweeper = Sweeper(settings, report)
        self._timer = Timer()
        self._give_up = threading.Event()
        self._supervisors: list[Supervisor] = []
        self._writer_stats = WriterStats()
        self._writer: ActorRef[SnapshotWriter] | None = None

    def add(self, runtime: ProjectionRuntime[Any, Any]) -> Supervisor:
        """Make a supervisor for the runtime, once the engine is started.

        With it the runtime accepts events.
        """
        assert self._writer is not None  # noqa: S101
        counters = Counters()
        context = ActorContext(
            name=runtime.name,
            halts=runtime.projection.on_error == "halt",
            mailbox_limit=self._settings.mailbox_limit,
            codec=runtime.codec,
            writer=self._writer,
            publisher=Publisher(runtime.name, self._broadcaster, runtime.hooks, self._observers, counters),
            population=Population(counters, self._sweeper),
            dispatcher=self._dispatcher,
            timer=self._timer,
            in_flight=self.in_flight,
            counters=counters,
            activity=Activity(),
            degraded=runtime.degraded,
        )
        supervisor = Supervisor(context, self._settings, self._sweeper, self._trouble)
        self._sweeper.watch(supervisor.actors)
        self._supervisors.append(supervisor)
        return supervisor

    def start(self) -> None:
        """Start the threads. Where this fails half way, ``stop`` ends those that were started."""
        try:
            self._writer = SnapshotWriter.start(
                self._store,
                commit_limit=self._settings.commit_limit,
                give_up=self._give_up,
                stats=self._writer_stats,
            )
        finally:
            # Out of Pykka's global registry: its stop_all(), which also runs when any actor of the app raises
            # SystemExit, would end the writer while accepted events wait for it. A writer whose thread could
            # not be started is registered as well.
            for ref in pykka.ActorRegistry.get_by_class(SnapshotWriter):
                pykka.ActorRegistry.unregister(ref)
        self._dispatcher.start()
        self._sweeper.start()

    def stop(self, deadline: float) -> None:
        """Refuse new events, drain, and end the threads; fail the events that are not committed in time.

        At the end every Receipt has an outcome. It may be called again, after it was interrupted or when only
        a part of the threads was ever started.

        Args:
            deadline: Monotonic time.
        """
        for supervisor in self._supervisors:
            supervisor.close()
        grace = min(_GRACE, max(0.0, deadline - monotonic()) / 4)
        in_time = self.in_flight.wait_for_none(deadline - grace)
        error = StoreError(f"the system closed before this was known to be committed{self._trouble()}")
        if not in_time:
            count = len(self.in_flight)
            details = {"uncommitted": count}
            _logger.error(
                "closing with %d accepted events not committed%s", count, self._trouble(), extra=details
            )
        self._give_up.set()
        for supervisor in self._supervisors:
            supervisor.context.population.give_up(error, wake=not in_time)
        # Commits under way end with the answers of the writer; a database that does not answer is cut off.
        if not in_time and not self.in_flight.wait_for_none(deadline - grace * 3 / 4):
            self._store.interrupt()
            self.in_flight.wait_for_none(deadline - grace / 2)
        ended = self._sweeper.stop(deadline)
        ended &= self._timer.stop(deadline)
        # The writer first: it answers all its messages, and the dispatcher takes these answers to the
        # Receipts.
        ended &= self._stop_writer(deadline)
        ended &= self._dispatcher.stop(deadline)
        for supervisor in self._supervisors:
            supervisor.context.population.seal()
        self.in_flight.fail_all(error)
        if not ended:
            _logger.error("some threads did not end in time; they end with the process")

    def _stop_writer(self, deadline: float) -> bool:
        """Let the writer end, and wait for that. Returns whether it has ended."""
        if self._writer is None:
            return True
        ended = self._writer.stop(block=False)
        try:
            ended.get(timeout=max(0.0, deadline - monotonic()))
        except Exception:
            return False
        return True

    def sweep(self, now: float) -> int:
        """Look for idle actors at once, as if the time were ``now``. Return how many were asked to retire."""
        return self._sweeper.sweep(now)

    # -- stats

    def loops(self) -> list[ThreadHealth]:
        """Return the health of each thread."""
        now = monotonic()
        writer = ThreadHealth.of(self._writer_stats.thread, self._writer_stats.busy_since, now)
        writer = writer._replace(name="keyfold-writer")
        return [*self._dispatcher.loops(now), writer, self._sweeper.loop(now), *self._timer.loops(now)]

    @property
    def trouble(self) -> str:
        """Why nothing can be written at the moment; empty when all is well."""
        return self._writer_stats.trouble

    def _trouble(self) -> str:
        stats = self._writer_stats
        if stats.trouble:
            return f"; the database is in trouble: {stats.trouble}"
        return (
            f"; some rows can't be written at the moment: {stats.waiting_reason}"
            if stats.waiting_reason
            else ""
        )

    def writer_stats(self) -> dict[str, Any]:
        """Return the numbers of the SnapshotWriter."""
        return self._writer_stats.as_dict()

    @staticmethod
    def stats_of(runtime: ProjectionRuntime[Any, Any]) -> dict[str, Any]:
        """Return the numbers of one projection's actors in this process; zeros before the first event."""
        supervisor = runtime.supervisor
        rows = {**runtime.degraded.stats(), "verified": runtime.codec.verifies}
        if supervisor is None:
            nothing = {
                "live": 0,
                "mailbox_depth": 0,
                "oldest_seconds": 0.0,
                **dict.fromkeys(Counters.NAMES, 0),
            }
            return nothing | Activity().stats() | rows
        depths = [len(actor.actor_inbox) for actor in list(supervisor.actors.values())]
        return {
            "live": len(depths),
            "mailbox_depth": sum(depths),
            "oldest_seconds": round(Engine.lag_of(runtime), 3),
            **supervisor.context.counters.totals(),
            **supervisor.context.activity.stats(),
            **rows,
        }

    @staticmethod
    def lag_of(runtime: ProjectionRuntime[Any, Any]) -> float:
        """Return for how many seconds the oldest event in a mailbox of the projection has waited, at most."""
        supervisor, now = runtime.supervisor, monotonic()
        actors = [] if supervisor is None else list(supervisor.actors.values())
        return max((actor.actor_inbox.waiting_seconds(now) for actor in actors), default=0.0)
