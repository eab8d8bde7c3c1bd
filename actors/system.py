"""The composition root: a database, a bus, and the projections between them."""

from __future__ import annotations

import atexit
import logging
import os
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from time import monotonic
from types import TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..store import Row, SnapshotStore, StoreUnavailable
from .degraded import Degraded
from .engine import Engine
from .errors import AlreadyRegistered, Closed, UnknownProjection
from .event_bus import EventBus
from .health import Loop
from .projection import EventT, Projection, StateT, check_projection
from .readers import Readers
from .reporter import Reporter
from .runtime import ProjectionRuntime
from .settings import Settings

if TYPE_CHECKING:
    import peewee

    from .broadcaster import Broadcaster
    from .observer import Observer

T = TypeVar("T")

_logger = logging.getLogger("keyfold.system")

_FAREWELL_SECONDS = 0.5
"""What subscribers get for their goodbye though the database has used up the timeout."""

_KEYS_A_LOOK = 20
"""Keys of a projection that are read again at each report, while their rows are known not to load."""

_systems: weakref.WeakSet[ProjectionSystem] = weakref.WeakSet()


class ProjectionSystem:
    """Projections over one database, without Flask. Safe from any thread; also a context manager.

    ``database`` is a URL (``sqlite:///shop.db``, ``postgresql://…``) or a ``peewee.Database`` of the
    app. Keywords are those of Settings. Nothing starts before the first dispatch, and a forked child
    starts afresh, so a system may be made before a server forks its workers.
    """

    def __init__(
        self,
        database: str | peewee.Database,
        *,
        broadcaster: Broadcaster | None = None,
        **settings: Any,
    ) -> None:
        self.settings = Settings(**settings)
        self.store = SnapshotStore(database, auto_migrate=self.settings.auto_migrate)
        self.broadcaster = broadcaster
        self.bus = EventBus()
        self.projections: dict[str, ProjectionRuntime[Any, Any]] = {}
        self._fresh()
        self.reporter = Reporter(self)
        self.reporter.hooks.append(self._look_again)
        self._fork_hooks: list[Callable[[], None]] = []
        self._observers: list[Observer] = []
        self.closed = False
        self._closes_at_exit = False
        _systems.add(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()
        self._engine: Engine | None = None
        self._readers: Readers | None = None

    # -- projections

    def register(self, projection: Projection[EventT, StateT]) -> ProjectionRuntime[EventT, StateT]:
        """Fold the events of this projection from now on. Raises AlreadyRegistered, InvalidProjection."""
        check_projection(projection)
        with self._lock:
            self._check_open()
            if projection.name in self.projections:
                msg = f"{projection.name}: a projection of this name is registered already"
                raise AlreadyRegistered(msg, projection=projection.name)
            runtime = ProjectionRuntime(projection, self)
            if self._engine is not None:
                self._engine.add(runtime)
            self.projections[runtime.name] = runtime
            self.bus.attach(runtime)
        return runtime

    def runtime(self, name: str) -> ProjectionRuntime[Any, Any]:
        """Return the registered projection of this name. Raises UnknownProjection."""
        try:
            return self.projections[name]
        except KeyError:
            known = ", ".join(sorted(self.projections)) or "none"
            msg = f"no projection is named {name!r}; registered: {known}"
            raise UnknownProjection(msg, projection=name) from None

    def broadcast_to(self, broadcaster: Broadcaster) -> None:
        """Show what is committed to this broadcaster. Raises RuntimeError: there is one, or it is too late."""
        with self._lock:
            if self.broadcaster is not None or self._engine is not None:
                msg = "set the broadcaster once, and before the first dispatch"
                raise RuntimeError(msg)
            self.broadcaster = broadcaster

    def after_fork(self, hook: Callable[[], None]) -> None:
        """Call hook in each forked child, to drop what belongs to the parent."""
        self._fork_hooks.append(hook)

    def observe(self, observer: Observer) -> None:
        """Tell this observer what is committed and what fails, from now on."""
        self._observers.append(observer)

    # -- life

    def start(self) -> None:
        """Start the threads of this process, if they don't run yet. The first dispatch does it by itself.

        Raises Closed, or StoreError if the tables can't be made: then nothing is started.
        """
        with self._lock:
            self._check_open()
            if self._engine is not None:
                return
            self.store.ensure_tables()
            engine = Engine(
                self.store, self.settings, self.broadcaster, self.reporter.report, self._observers
            )
            for runtime in self.projections.values():
                engine.add(runtime)
            engine.start()
            self._engine = engine
            self._close_at_exit()

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until every mailbox is empty and every turn committed. False once the timeout is over."""
        engine = self._engine
        if engine is None:
            return True
        deadline = monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        return engine.in_flight.wait_for_none(deadline)

    def close(self, timeout: float | None = None) -> None:
        """Refuse new events, commit what was accepted, end all threads. A second call does nothing.

        Takes ``timeout`` seconds at most (the setting ``close_timeout`` if None). What is not committed
        by then is logged, and its Receipts raise StoreError.
        """
        with self._lock:
            if self.closed:
                return
            self.closed = True
            engine, self._engine = self._engine, None
            readers, self._readers = self._readers, None
        atexit.unregister(self.close)
        deadline = monotonic() + (self.settings.close_timeout if timeout is None else timeout)
        if engine is not None:
            engine.stop(deadline)
        if self.broadcaster is not None:
            self.broadcaster.close(max(_FAREWELL_SECONDS, deadline - monotonic()))
        if readers is not None:
            readers.stop(self.reporter.leave, max(_FAREWELL_SECONDS, deadline - monotonic()))
        self.store.close()

    def _close_at_exit(self) -> None:
        if not self._closes_at_exit:
            self._closes_at_exit = True
            atexit.register(self.close)

    def _check_open(self) -> None:
        if self.closed:
            msg = "the system is closed"
            raise Closed(msg)

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self,
        exception_type: type[BaseException] | None,
        exception: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.close()

    # -- reading

    def read_row(self, name: str, key: str) -> Row | None:
        """Return the committed row of a key, tombstones included, or None. Raises StoreError."""
        return self._within(self.submit_read(name, key), None)

    def submit_read(self, name: str, key: str) -> Future[Row | None]:
        """Read the committed row of a key on a reader's thread, its state in today's shape."""
        runtime = self.projections.get(name)

        def read() -> Row | None:
            row = self.store.row(name, key)
            return row if row is None or runtime is None else runtime.upgraded(key, row)

        return self.submit(read)

    def ask(self, ask: Callable[[], T], *, seconds: float | None = None) -> T:
        """Ask the database on a reader's thread, and wait for the answer.

        Args:
            ask: The function to call there, without arguments.
            seconds: How long the answer may take; None for the setting ``read_timeout``.

        Raises:
            StoreUnavailable: There was no answer in time.
            Closed: The system is closed.
        """
        return self._within(self.submit(ask, seconds=seconds), seconds)

    def _within(self, future: Future[T], seconds: float | None) -> T:
        limit = self.settings.read_timeout if seconds is None else seconds
        try:
            return future.result(limit)
        except TimeoutError:
            msg = f"the database {self.store.describe()} has not answered within {limit:g} s"
            raise StoreUnavailable(msg) from None

    def submit(self, ask: Callable[[], T], *, seconds: float | None = None) -> Future[T]:  # noqa: ARG002
        """Ask the database on one of the readers' threads, which alone hold connections. Raises Closed."""
        with self._lock:
            self._check_open()
            if self._readers is None:
                self._readers = Readers(self.store)
                self._close_at_exit()
            return self._readers.submit(ask)

    def _look_again(self, _stats: object) -> None:
        """Read some of the keys again that did not load: another process may have repaired them."""
        for runtime in self.projections.values():
            if runtime.degraded:
                addresses = [(runtime.name, key) for key in runtime.degraded.oldest(_KEYS_A_LOOK)]
                rows = self.store.rows(addresses)
                for address in addresses:
                    runtime.examine(address[1], rows.get(address))

    # -- facts

    def stats(self) -> dict[str, Any]:
        """Return the facts of this process as JSON-able dicts: actors, mailboxes, writer, sockets."""
        engine = self._engine
        names = sorted(self.projections)
        facts: dict[str, Any] = {
            "process": self.reporter.process,
            "host": self.reporter.host,
            "pid": os.getpid(),
            "started_at": self.reporter.started_at,
            "database": self.store.describe(),
            "started": engine is not None,
            "closed": self.closed,
            "projections": {name: Engine.facts_of(self.projections[name]) for name in names},
            "in_flight": 0 if engine is None else engine.in_flight.count,
            "writer": {} if engine is None else engine.writer_facts(),
        }
        facts["loops"] = {loop.name: loop.trouble(self.settings.health_seconds) for loop in self.loops()}
        facts["sockets"] = {} if self.broadcaster is None else self.broadcaster.stats()
        return facts

    def loops(self) -> list[Loop]:
        """Return how each thread that runs in this process fares; none before the first dispatch or socket."""
        engine, broadcaster = self._engine, self.broadcaster
        return [
            *(engine.loops() if engine is not None else ()),
            *(broadcaster.loops() if broadcaster is not None else ()),
        ]

    def lag_seconds(self) -> float:
        """Return how long the oldest event has waited in a mailbox, at most."""
        return max((Engine.lag_of(runtime) for runtime in self.projections.values()), default=0.0)

    @property
    def trouble(self) -> str:
        """Why nothing can be written at the moment; empty when all is well."""
        engine = self._engine
        return "" if engine is None else engine.trouble

    def _after_fork(self) -> None:
        # The parent's threads do not exist here, its locks may be held by them, and its connections
        # are still in use over there: leave all of it alone, and start anew at the next dispatch.
        self._fresh()
        self.bus.after_fork()
        if self.broadcaster is not None:
            self.broadcaster.after_fork()
        self.store.forget_connections()
        self.reporter.after_fork()
        for forked in self._fork_hooks:
            forked()
        for runtime in self.projections.values():
            runtime.supervisor = None
            runtime.degraded = Degraded()


def all_systems() -> list[ProjectionSystem]:
    """Return the systems that live in this process and are not closed."""
    return [system for system in list(_systems) if not system.closed]


def _after_fork_in_child() -> None:
    for system in list(_systems):
        system._after_fork()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork_in_child)
