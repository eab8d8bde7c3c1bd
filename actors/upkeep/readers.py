"""The few threads that read rows, so that request threads hold no database connection."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from functools import partial
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, TypeVar

from ...store import StoreUnavailable
from ..errors import Closed
from ..pool.threads import ThreadHealth, WatchedThread, role_of_thread

if TYPE_CHECKING:
    from ...store import SnapshotStore

T = TypeVar("T")

_THREADS = 2
_MAX_WAITING = 10_000


def on_reader_thread() -> bool:
    """Return whether the calling thread is a reader's, which has a connection of its own."""
    return role_of_thread() == "reader"


class _Read:
    """One question to the database, and the deadline of its answer."""

    __slots__ = ("ask", "deadline", "future", "seconds", "thread")

    def __init__(self, ask: Callable[[], Any], seconds: float) -> None:
        self.ask = ask
        self.seconds = seconds
        self.deadline = monotonic() + seconds
        self.future: Future[Any] = Future()
        self.thread: int | None = None
        """The thread that asks at the moment."""

    def answer(self) -> None:
        result = self.ask()
        with suppress(InvalidStateError):  # it was too late
            self.future.set_result(result)

    def fail(self, error: BaseException) -> None:
        with suppress(InvalidStateError):
            self.future.set_exception(error)


class Readers:
    """Asks the database on two threads of its own; a third one watches the deadlines.

    Every future ends: by its answer, or at its deadline by StoreUnavailable. A connection that has held a
    thread beyond a deadline is cut, since a server that is frozen, and not dead, would hold it for ever. The
    threads are daemons and no pool of concurrent.futures, whose threads are joined at the interpreter's exit
    before their connections could be cut.

    Args:
        store: The database.
        seconds: How long a read may take, if ``submit`` is not told otherwise.
    """

    def __init__(self, store: SnapshotStore, *, seconds: float) -> None:
        self._store = store
        self._seconds = seconds
        self._waiting: queue.SimpleQueue[_Read | None] = queue.SimpleQueue()
        self._unanswered: set[_Read] = set()
        self._changed = threading.Condition()
        self._next_look = inf
        self._stopped = False
        self._threads = [
            WatchedThread(
                f"keyfold-reader-{number}",
                self._waiting.get,
                partial(self._answer, number),
                role="reader",
                on_start=store.keep_connection,
                on_end=store.disconnect,
            )
            for number in range(_THREADS)
        ]
        self._watch = WatchedThread(
            "keyfold-reader-watch", self._wait_for_deadline, self._fail_late, role="watch"
        )

    def start(self) -> None:
        """Start the threads."""
        for thread in (*self._threads, self._watch):
            thread.start()

    def submit(self, ask: Callable[[], T], seconds: float | None = None) -> Future[T]:
        """Ask on one of the threads.

        Args:
            ask: Called on that thread, which has a connection.
            seconds: How long an answer may take, the wait for a thread included. None: the usual time.

        Returns:
            The future of its result. It fails with the exception of ``ask``, StoreUnavailable at the
            deadline, or Closed.
        """
        read = _Read(ask, self._seconds if seconds is None else seconds)
        if len(self._unanswered) >= _MAX_WAITING:
            read.fail(StoreUnavailable(f"{_MAX_WAITING} reads wait for the database already"))
            return read.future
        self._unanswered.add(read)
        read.future.add_done_callback(lambda _: self._unanswered.discard(read))
        if read.deadline < self._next_look:
            with self._changed:
                self._changed.notify()
        self._waiting.put(read)
        if self._stopped:  # looked at after the read was added: the stop ends all that it finds
            read.fail(Closed("the system is closed"))
        return read.future

    def stop(self, last: Callable[[], object], timeout: float) -> None:
        """Finish the reads under way, and end the threads and their connections.

        Args:
            last: Called on one of the threads, after the reads that wait.
            timeout: Seconds for all of it. The reads that are left then fail with Closed.
        """
        deadline = monotonic() + timeout
        started = [thread for thread in self._threads if thread.ident is not None]
        if started:
            self._waiting.put(_Read(last, timeout))
        for _ in started:
            self._waiting.put(None)
        for thread in started:
            thread.join(deadline - timeout / 4)
        self._stopped = True
        with self._changed:
            self._changed.notify()
        late = [thread for thread in started if thread.is_alive()]
        if late:
            self._store.interrupt({thread.ident for thread in late if thread.ident is not None})
            for thread in late:
                thread.join(deadline)
        closed = Closed("the system is closed")
        for read in list(self._unanswered):
            read.fail(closed)
        self._watch.join(max(deadline, monotonic() + 0.1))

    def loops(self, now: float) -> list[ThreadHealth]:
        """Return the health of the two threads.

        A read that may take longer than usual hangs as much later.
        """
        return [thread.health(now) for thread in self._threads]

    # -- the threads

    def _answer(self, number: int, read: _Read) -> None:
        try:
            read.thread = threading.get_ident()
            self._threads[number].count_from(read.deadline - self._seconds)
            if not read.future.done():
                read.answer()
        except BaseException as error:  # the app's hooks decode the row, and may raise anything
            read.fail(error)
        finally:
            read.thread = None

    def _wait_for_deadline(self) -> float | None:
        """Wait until a read may be late, and return the time; None at the end."""
        with self._changed:
            # First never, then the earliest deadline: a read that is added in between sees one or the other,
            # and wakes this thread unless it will look early enough.
            self._next_look = inf
            self._next_look = min((read.deadline for read in list(self._unanswered)), default=inf)
            if not self._stopped:
                wait = max(0.0, self._next_look - monotonic())
                self._changed.wait(None if wait > threading.TIMEOUT_MAX else wait)
        return None if self._stopped else monotonic()

    def _fail_late(self, now: float) -> None:
        """Fail the reads whose deadline has passed, and cut the connections that they hold."""
        late = [read for read in list(self._unanswered) if read.deadline <= now]
        threads = {thread for read in late if (thread := read.thread) is not None}
        for read in late:
            read.fail(
                StoreUnavailable(f"{self._store.describe()} has not answered within {read.seconds:g} s")
            )
        if threads:
            self._store.interrupt(threads)
