"""The composition root: a database, a bus, and the projections between them."""

from __future__ import annotations

import atexit
import logging
import os
import sys
import threading
import weakref
from collections.abc import Callable, Mapping
from concurrent.futures import Future
from time import monotonic
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any, Self, TypeVar

from ..store import SnapshotStore, StoreError, StoreUnavailable
from ..store.rows import Head, Row
from .engine import Engine
from .errors import AlreadyRegistered, Closed, UnknownProjection, WouldDeadlock
from .event_bus import EventBus
from .pool.threads import ThreadHealth, on_dispatcher_thread, on_own_thread
from .projection import EventT, Projection, StateT, check_projection
from .runtime import ProjectionRuntime
from .settings import make_settings
from .upkeep.readers import Readers, on_reader_thread
from .upkeep.reporter import Reporter

if TYPE_CHECKING:
    import peewee

    from .broadcaster import Broadcaster, Observer

T = TypeVar("T")

_logger = logging.getLogger("keyfold.system")

_SOCKET_CLOSE_SECONDS = 0.5
"""Seconds for closing subscribers' sockets, even if the database has used up the timeout of the close."""

_ABORT_SECONDS = 5.0
"""Seconds for ending the threads of a start that failed half way."""

_MAX_KEYS_PER_LOOK = 20
"""Keys per projection that are read again at each report, while their rows are known not to load."""

_systems: weakref.WeakSet[ProjectionSystem] = weakref.WeakSet()


class ProjectionSystem:
    """Projections over one database, without Flask. Safe from any thread; also a context manager.

    Nothing starts before the first dispatch, and a forked child starts afresh, so a system may be made before
    a server forks its workers. It has many attributes and imports, since it is the composition root.

    Args:
        database: A URL (``sqlite:///shop.db``, ``postgresql://…``) or a ``peewee.Database`` of the app.
        broadcaster: Shows commits to subscribers. None: there is none, or ``broadcast_to`` sets it.
        tuning: The tuning keys of Settings.
        **settings: The stable fields of Settings.

    Raises:
        ProjectionError: A setting is unknown or malformed, or the URL is none.
    """

    def __init__(
        self,
        database: str | peewee.Database,
        *,
        broadcaster: Broadcaster | None = None,
        tuning: Mapping[str, Any] | None = None,
        **settings: Any,
    ) -> None:
        self.settings = make_settings(settings, tuning, stacklevel=2)
        self.store = SnapshotStore(database, auto_migrate=self.settings.auto_migrate)
        self.broadcaster = broadcaster
        self.bus = EventBus()
        self.projections: dict[str, ProjectionRuntime[Any, Any]] = {}
        self._fresh()
        self.reporter = Reporter(self)
        self.reporter.on_report(self._look_again)
        self._fork_hooks: list[Callable[[], None]] = []
        self._observers: list[Observer] = []
        self.closed = False
        self._ended = False
        self._closes_at_exit = False
        _systems.add(self)

    def _fresh(self) -> None:
        self._lock = threading.RLock()
        self._closing = threading.RLock()
        self._engine: Engine | None = None
        self._readers: Readers | None = None

    # -- projections

    def register(self, projection: Projection[EventT, StateT]) -> ProjectionRuntime[EventT, StateT]:
        """Fold the events of a projection from now on.

        Args:
            projection: An instance. It is shared by all threads.

        Returns:
            The runtime of the projection, by which the app reads and rebuilds its keys.

        Raises:
            AlreadyRegistered: A projection of this name is registered already.
            InvalidProjection: The projection can't run; the message names the missing part.
            Closed: The system is closed.
        """
        check_projection(projection)
        with self._lock:
            self._check_open()
            if projection.name in self.projections:
                msg = f"{projection.name}: a projection of this name is registered already"
                raise AlreadyRegistered(msg, projection=projection.name)
            runtime = ProjectionRuntime(projection, self)
            if self._engine is not None:
                runtime.attach(self._engine.add(runtime))
            self.store.register_schema(runtime.name, projection.schema_version)
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
        """Show commits to this broadcaster.

        Raises RuntimeError if there is one, or after the first dispatch.
        """
        with self._lock:
            if self.broadcaster is not None or self._engine is not None:
                msg = "set the broadcaster once, and before the first dispatch"
                raise RuntimeError(msg)
            self.broadcaster = broadcaster

    def after_fork(self, hook: Callable[[], None]) -> None:
        """Call ``hook()`` in each forked child, to drop everything that belongs to the parent."""
        self._fork_hooks.append(hook)

    def observe(self, observer: Observer) -> None:
        """Notify this observer of commits and failures, from now on."""
        self._observers.append(observer)

    # -- life

    def start(self) -> None:
        """Start the threads of this process, if they don't run yet. The first dispatch does it by itself.

        Raises:
            Closed: The system is closed, or the process ends.
            StoreError: The tables can't be made. Nothing is started then, and nothing was accepted.
            RuntimeError: The process may have no more threads. Nothing is started then, either.
        """
        with self._lock:
            self._check_open()
            if self._engine is None:
                self.store.ensure_tables()
                self._start_engine()
            self._close_at_exit()

    def _start_engine(self) -> None:
        engine = Engine(self.store, self.settings, self.broadcaster, self.reporter.report, self._observers)
        try:
            engine.start()
            supervisors = [(runtime, engine.add(runtime)) for runtime in self.projections.values()]
            self._engine = engine
            for runtime, supervisor in supervisors:  # last: from here on events are accepted
                runtime.attach(supervisor)
        except BaseException:
            self._engine = None
            for runtime in self.projections.values():
                runtime.attach(None)
            engine.stop(monotonic() + _ABORT_SECONDS)
            raise

    def settle(self, timeout: float | None = None) -> bool:
        """Wait until every mailbox is empty and every event is committed.

        Args:
            timeout: Seconds to wait; None: without a limit.

        Returns:
            False once the timeout is over, else True.

        Raises:
            WouldDeadlock: Called in ``apply``, a hook or a callback. It waits for the turn that calls it.
        """
        if on_dispatcher_thread():
            attempt = "settle()"
            raise WouldDeadlock(attempt)
        engine = self._engine
        if engine is None:
            return True
        deadline = monotonic() + (threading.TIMEOUT_MAX if timeout is None else timeout)
        return engine.in_flight.wait_for_none(deadline)

    def close(self, timeout: float | None = None) -> None:
        """Refuse new events, commit the events that were accepted, and end all threads.

        A second call waits for the first one, and finishes it if that was interrupted.

        A signal handler that has interrupted Keyfold itself may call it, too. It would wait for a lock that
        its own thread holds, so the close then runs on a thread of its own, for which the end of the process
        waits.

        Args:
            timeout: The most seconds that it takes; None: the setting ``close_timeout``. Events that are not
                committed by then are logged, and their Receipts raise StoreError.

        Raises:
            WouldDeadlock: Called in ``apply``, a hook or a callback: it waits for the thread that calls it.
        """
        if on_own_thread():
            attempt = "close()"
            raise WouldDeadlock(attempt)
        seconds = self.settings.close_timeout if timeout is None else timeout
        if _interrupts_keyfold():
            self.closed = True
            threading.Thread(target=self._close, args=(seconds,), name="keyfold-close", daemon=False).start()
        else:
            self._close(seconds)

    def _close(self, seconds: float) -> None:
        deadline = monotonic() + seconds
        if not self._closing.acquire(timeout=min(max(0.0, seconds), threading.TIMEOUT_MAX)):
            return
        try:
            with self._lock:  # a start that is under way comes to its end first
                self.closed = True
            if self._ended:
                return
            if self._engine is not None:
                self._engine.stop(deadline)
            if self.broadcaster is not None:
                self.broadcaster.close(max(_SOCKET_CLOSE_SECONDS, deadline - monotonic()))
            if self._readers is not None:
                self._readers.stop(self.reporter.leave, max(_SOCKET_CLOSE_SECONDS, deadline - monotonic()))
            self.store.close()
            self._ended = True
            atexit.unregister(self.close)
        finally:
            self._closing.release()

    def _close_at_exit(self) -> None:
        if not self._closes_at_exit:
            self._closes_at_exit = True
            atexit.register(self.close)

    def _check_open(self) -> None:
        if self.closed:
            msg = "the system is closed"
            raise Closed(msg)
        if (
            threading.current_thread() is threading.main_thread()
            and not threading.current_thread().is_alive()
        ):
            # In a handler of atexit: a thread that is started now ends with the process, and no close would
            # follow.
            msg = "the process ends: nothing is started any more"
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
        """Return the committed row of a key, in the shape of this release; None if there is none.

        Args:
            name: The name of the projection.
            key: The key.

        Raises:
            StoreError: The database can't be asked, or the row can't be upgraded.
        """
        return self.ask(self._reading(name, key))

    def submit_read(self, name: str, key: str, *, leaves: Head | None = None) -> Future[Row | None]:
        """Read the committed row of a key on a reader's thread, with its state in the shape of this release.

        Args:
            name: The projection.
            key: The key.
            leaves: A commit. If the row has lost it, the row gets a new epoch first.
        """
        return self.submit(self._reading(name, key, leaves))

    def _reading(self, name: str, key: str, leaves: Head | None = None) -> Callable[[], Row | None]:
        runtime = self.projections.get(name)

        def read() -> Row | None:
            if leaves is not None:
                self._renew(name, key, leaves)
            row = self.store.row(name, key)
            return row if row is None or runtime is None else runtime.upgraded(key, row)

        return read

    def _renew(self, name: str, key: str, lost: Head) -> None:
        try:
            self.store.renew([(name, key, lost)])
        except StoreUnavailable:
            raise
        except StoreError as error:
            # Pages still get the row; but a client with a position in the lost history may be resumed in this
            # one.
            details = {"projection": name, "key": key}
            _logger.warning(
                "the row of key %r of %s can't get a new epoch: %s", key, name, error, extra=details
            )

    def submit(self, ask: Callable[[], T], *, seconds: float | None = None) -> Future[T]:
        """Ask the database on one of the readers' threads. Only they hold connections for reading.

        Args:
            ask: Called on that thread.
            seconds: How long an answer may take; None: the setting ``read_timeout``.

        Returns:
            A future that ends within that time, by StoreUnavailable if there was no answer.

        Raises:
            Closed: The system is closed, or the process ends.
        """
        readers = self._readers
        if readers is None or self.closed:
            with self._lock:
                self._check_open()
                if self._readers is None:
                    readers = Readers(self.store, seconds=self.settings.read_timeout)
                    try:
                        readers.start()
                        self._readers = readers
                    except BaseException:
                        readers.stop(int, _ABORT_SECONDS)
                        raise
                    self._close_at_exit()
                readers = self._readers
        return readers.submit(ask, seconds)

    def ask(self, ask: Callable[[], T], *, seconds: float | None = None) -> T:
        """Ask the database as ``submit`` does, and return the answer.

        Args:
            ask: Called on a reader's thread; at once, if this is one.
            seconds: How long an answer may take; None: the setting ``read_timeout``.

        Raises:
            StoreUnavailable: There was no answer in time; and everything that ``ask`` raises.
        """
        if on_reader_thread():
            return ask()
        return self.submit(ask, seconds=seconds).result()

    def _look_again(self, _stats: object) -> None:
        """Read some of the keys again that did not load: another process may have repaired them."""
        for runtime in self.projections.values():
            if runtime.degraded:
                row_keys = [(runtime.name, key) for key in runtime.degraded.oldest(_MAX_KEYS_PER_LOOK)]
                rows = self.store.rows(row_keys)
                for row_key in row_keys:
                    runtime.examine(row_key[1], rows.get(row_key))

    # -- stats

    def stats(self) -> dict[str, Any]:
        """Return the numbers of this process: actors, mailboxes, writer, sockets, threads.

        Returns:
            A dict that JSON can hold. Its keys are those of the admin endpoint.
        """
        engine = self._engine
        names = sorted(self.projections)
        stats: dict[str, Any] = {
            "process": self.reporter.process,
            "host": self.reporter.host,
            "pid": os.getpid(),
            "started_at": self.reporter.started_at,
            "database": self.store.describe(),
            "started": engine is not None,
            "closed": self.closed,
            "projections": {name: Engine.stats_of(self.projections[name]) for name in names},
            "in_flight": 0 if engine is None else len(engine.in_flight),
            "writer": {} if engine is None else engine.writer_stats(),
        }
        stats["loops"] = {loop.name: loop.trouble(self.settings.health_seconds) for loop in self.loops()}
        stats["sockets"] = {} if self.broadcaster is None else self.broadcaster.stats()
        return stats

    def loops(self) -> list[ThreadHealth]:
        """Return the health of each thread of this process; none before the first dispatch or socket."""
        engine, broadcaster, readers = self._engine, self.broadcaster, self._readers
        return [
            *(engine.loops() if engine is not None else ()),
            *(readers.loops(monotonic()) if readers is not None else ()),
            *(broadcaster.loops() if broadcaster is not None else ()),
        ]

    def lag_seconds(self) -> float:
        """Return for how many seconds the oldest event has waited in a mailbox, at most."""
        return max((Engine.lag_of(runtime) for runtime in self.projections.values()), default=0.0)

    @property
    def trouble(self) -> str:
        """Why nothing can be written at the moment; empty when all is well."""
        engine = self._engine
        return "" if engine is None else engine.trouble

    def _after_fork(self) -> None:
        # The threads of the parent do not exist here, they may hold its locks, and it still uses its
        # connections: leave all of that alone, and start anew at the next dispatch.
        self._fresh()
        self.bus.after_fork()
        if self.broadcaster is not None:
            self.broadcaster.after_fork()
        self.store.forget_connections()
        self.reporter.after_fork()
        for forked in self._fork_hooks:
            forked()
        for runtime in self.projections.values():
            runtime.after_fork()


def _interrupts_keyfold() -> bool:
    """Return whether a signal handler interrupted this thread within Keyfold, where it may hold a lock."""
    frame: FrameType | None = sys._getframe(1)  # noqa: SLF001  # close() itself, which is no interruption
    while frame is not None:
        module = frame.f_globals.get("__name__", "")
        if (module in _WITH_LOCKS or module.startswith(_STORE)) and frame.f_code not in _CLOSING:
            return True
        frame = frame.f_back
    return False


_PARTS = (
    "engine",
    "key_actor.population",
    "pool.dispatcher",
    "pool.mailbox",
    "pool.threads",
    "pool.timer",
    "supervisor",
    "system",
    "upkeep.counters",
    "upkeep.readers",
    "upkeep.sweeper",
)
_WITH_LOCKS = frozenset(f"{__package__}.{part}" for part in _PARTS)
_STORE = f"{SnapshotStore.__module__.rpartition('.')[0]}."
_CLOSING = frozenset([ProjectionSystem.close.__code__, ProjectionSystem.__exit__.__code__])


def all_systems() -> list[ProjectionSystem]:
    """Return the systems that live in this process and are not closed."""
    return [system for system in list(_systems) if not system.closed]


def _after_fork_in_child() -> None:
    for system in list(_systems):
        system._after_fork()  # noqa: SLF001


os.register_at_fork(after_in_child=_after_fork_in_child)
