"""Everything of a system that lives in one process: its threads, and the actors on them."""

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
from .pool.dispatcher import Dispatcher
from .pool.timer import Timer
from .supervisor import Supervisor
from .upkeep.activity import Activity
from .upkeep.counters import Counters, InFlight
from .upkeep.health import Loop
from .upkeep.sweeper import Sweeper

if TYPE_CHECKING:
    from pykka import ActorRef

    from ..store import SnapshotStore
    from .broadcaster import Broadcaster
    from .observer import Observer
    from .runtime import ProjectionRuntime
    from .settings import Settings

_logger = logging.getLogger("keyfold.system")

_GRACE = 1.0
"""Seconds of a close that are kept back for telling the Receipts of a database that did not return."""


class Engine:
    """The running part of a ProjectionSystem. Made at the first dispatch in a process, never inherited."""

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
        self._writer_facts = WriterStats()
        self._writer: ActorRef[SnapshotWriter] | None = None

    def add(self, runtime: ProjectionRuntime[Any, Any]) -> Supervisor:
        """Make a supervisor for the runtime, once the engine is started. With it the runtime accepts events."""
        projection = runtime.projection
        context = ActorContext(
            projection=runtime.name,
            event_name=projection.broadcast_event_name,
            apply=projection.apply,
            new_state=projection.state_type,
            encode_state=runtime.encode_state,
            decode_state=runtime.state_codec.decode,
            encode_delta=runtime.delta_codec.encode_part,
            decode_delta=runtime.delta_codec.decode_fast,
            explain_delta=runtime.delta_codec.explain,
            check_deltas=runtime.check_deltas,
            encode_event=runtime.delta_codec.encode,
            tell_writer=self._writer.tell,  # type: ignore[union-attr]  # it is started
            broadcaster=self._broadcaster,
            dispatcher=self._dispatcher,
            mailbox_limit=self._settings.mailbox_limit,
            counters=Counters(),
            activity=Activity(),
            degraded=runtime.degraded,
            in_flight=self.in_flight,
            later=self._timer.after,
            observers=self._observers,
            on_applied=runtime.hooks,
            schema_version=projection.schema_version,
            current=runtime.current,
            halts=projection.on_error == "halt",
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
                stats=self._writer_facts,
            )
        finally:
            # Out of Pykka's global registry: its stop_all(), which also runs when any actor of the app raises
            # SystemExit, would take the writer from under events that were accepted. One whose thread could not
            # be started is registered as well.
            for ref in pykka.ActorRegistry.get_by_class(SnapshotWriter):
                pykka.ActorRegistry.unregister(ref)
        self._dispatcher.start()
        self._sweeper.start()

    def stop(self, deadline: float) -> None:
        """Refuse new events, drain, end the threads; give up what is not committed when time is over.

        At the end every Receipt has an outcome. It may be called again, after it was interrupted or when only a
        part of the threads was ever started.
        """
        for supervisor in self._supervisors:
            supervisor.close()
        grace = min(_GRACE, max(0.0, deadline - monotonic()) / 4)
        in_time = self.in_flight.wait_for_none(deadline - grace)
        error = StoreError(f"the system closed before this was known to be committed{self._trouble()}")
        if not in_time:
            count = len(self.in_flight)
            facts = {"uncommitted": count}
            _logger.error(
                "closing with %d accepted events not committed%s", count, self._trouble(), extra=facts
            )
        self._give_up.set()
        for supervisor in self._supervisors:
            supervisor.give_up(error, wake=not in_time)
        # Turns under way end with what the writer says of them; a database that does not answer is cut off.
        if not in_time and not self.in_flight.wait_for_none(deadline - grace * 3 / 4):
            self._store.interrupt()
            self.in_flight.wait_for_none(deadline - grace / 2)
        ended = self._sweeper.stop(deadline)
        ended &= self._timer.stop(deadline)
        # The writer first: it answers all that it was told, and the dispatcher takes these answers to the Receipts.
        ended &= self._stop_writer(deadline)
        ended &= self._dispatcher.stop(deadline)
        for supervisor in self._supervisors:
            supervisor.end()
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
        """Look for idle actors at once, as if the time were ``now``."""
        return self._sweeper.sweep(now)

    # -- facts

    def loops(self) -> list[Loop]:
        """Return how each thread fares."""
        now = monotonic()
        writer = Loop.of(self._writer_facts.thread, self._writer_facts.busy_since, now)
        writer = writer._replace(name="keyfold-writer")
        return [*self._dispatcher.loops(now), writer, self._sweeper.loop(now), *self._timer.loops(now)]

    @property
    def trouble(self) -> str:
        """Why nothing can be written at the moment; empty when all is well."""
        return self._writer_facts.trouble

    def _trouble(self) -> str:
        facts = self._writer_facts
        if facts.trouble:
            return f"; the database is in trouble: {facts.trouble}"
        return (
            f"; some rows can't be written at the moment: {facts.waiting_reason}"
            if facts.waiting_reason
            else ""
        )

    def writer_facts(self) -> dict[str, Any]:
        """Return what the SnapshotWriter counted."""
        return self._writer_facts.as_dict()

    @staticmethod
    def facts_of(runtime: ProjectionRuntime[Any, Any]) -> dict[str, Any]:
        """Return what one projection's actors counted in this process; zeros before the first event."""
        supervisor = runtime.supervisor
        rows = {**runtime.degraded.facts(), "verified": runtime.verifies}
        if supervisor is None:
            nothing = {
                "live": 0,
                "mailbox_depth": 0,
                "oldest_seconds": 0.0,
                **dict.fromkeys(Counters.NAMES, 0),
            }
            return nothing | Activity().facts() | rows
        depths = [len(actor.actor_inbox) for actor in list(supervisor.actors.values())]
        return {
            "live": len(depths),
            "mailbox_depth": sum(depths),
            "oldest_seconds": round(Engine.lag_of(runtime), 3),
            **supervisor.context.counters.totals(),
            **supervisor.context.activity.facts(),
            **rows,
        }

    @staticmethod
    def lag_of(runtime: ProjectionRuntime[Any, Any]) -> float:
        """Return how many seconds the oldest event in a mailbox of the projection has waited, at most."""
        supervisor, now = runtime.supervisor, monotonic()
        actors = [] if supervisor is None else list(supervisor.actors.values())
        return max((actor.actor_inbox.waiting_seconds(now) for actor in actors), default=0.0)
