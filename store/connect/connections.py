"""A connection per thread, kept or opened for one operation, whose errors become StoreErrors."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable, Collection
from typing import TYPE_CHECKING, Any, TypeVar

from ..errors import StatementRefused, StoreError, StoreRejected
from .database import describe_database, driver_error

if TYPE_CHECKING:
    import peewee

    from ..dialects.base import Dialect

T = TypeVar("T")


class Connections:
    """The connections of all threads to the database of one store."""

    def __init__(self, database: peewee.Database, dialect: Dialect, *, file_required: bool) -> None:
        self._database = database
        self._dialect = dialect
        self._thread = threading.local()
        # The connections that threads keep, by the threads' idents.
        self._by_thread: dict[int, Any] = {}
        # Connections of the parent process are referenced, as freeing one would close it for the parent.
        self._inherited: list[Any] = []
        self._file_required = file_required

    def require_file(self) -> None:
        """From now on, refuse a new connection to a file that was deleted, as it would make a new one."""
        self._file_required = True

    def keep(self) -> None:
        """Keep the calling thread's connection open between calls, until ``disconnect``."""
        self._thread.keeps = True

    def disconnect(self) -> None:
        """Close the connection that the calling thread keeps."""
        if getattr(self._thread, "keeps", False):
            self._thread.keeps = False
            self._by_thread.pop(threading.get_ident(), None)
            # Closing the last connection to a file writes to it.
            self._within_gate(self._database.close)

    def close_left(self) -> None:
        """Close connections that an interrupt has left open, of the calling thread and of ended threads."""
        if getattr(self._thread, "opened", False):
            self._close_own()
        alive = {thread.ident for thread in threading.enumerate()}
        for thread in [one for one in list(self._by_thread) if one not in alive]:
            del self._by_thread[thread]  # SQLite lets no other thread close it, but freeing it closes it

    def interrupt(self, threads: Collection[int] | None) -> None:
        """Make the running calls fail of threads that keep a connection.

        Args:
            threads: The idents of the threads; None for all threads.
        """
        for thread, connection in list(self._by_thread.items()):
            if threads is not None and thread not in threads:
                continue
            with contextlib.suppress(Exception):
                self._dialect.interrupt(connection)

    def forget(self) -> None:
        """In a forked child: use none of the parent's connections, and close none."""
        # Peewee's lock may be held by a thread that does not exist in the child.
        vars(self._database)["_lock"] = threading.Lock()
        if not self._database.is_closed():
            self._inherited.append(self._database.connection())
        self._database.dispose()
        self._thread = threading.local()
        self._by_thread = {}

    def run(self, operation: Callable[[], T]) -> T:
        """Run one operation on the thread's connection, and turn every failure into a StoreError."""
        return self._within_gate(lambda: self._run(operation))

    def _within_gate(self, operation: Callable[[], T]) -> T:
        gate = self._dialect.gate
        if gate is None:
            return operation()
        try:
            gate.enter()
            return operation()
        finally:
            gate.leave()

    def _run(self, operation: Callable[[], T]) -> T:
        closed = self._database.is_closed()
        try:
            if closed:
                self._connect()
            self._dialect.check_connection(self._database)
            return operation()
        except Exception as error:
            failure = (
                error
                if isinstance(error, StoreError)
                else self._dialect.classify(driver_error(error), describe_database(self._database))
            )
            if not isinstance(failure, (StoreRejected, StatementRefused)):
                self._drop_connection()
            if failure is error:
                raise
            raise failure from error
        finally:
            if closed and not getattr(self._thread, "keeps", False):
                self._close_own()

    def _connect(self) -> None:
        keeps = getattr(self._thread, "keeps", False)
        try:
            if self._file_required:
                self._dialect.before_connecting(self._database)
            self._thread.opened = not keeps
            # A pool and an app's connect hook may raise anything. No data was sent.
            self._database.connect()
        except StoreError:
            raise
        except Exception as error:
            raise self._dialect.classify_connecting(
                driver_error(error), describe_database(self._database)
            ) from error
        if keeps:
            self._by_thread[threading.get_ident()] = self._database.connection()
        self._dialect.connected(self._database)

    def _close_own(self) -> None:
        """Close the connection that the calling thread has opened for one call."""
        self._database.close()
        self._thread.opened = False

    def _drop_connection(self) -> None:
        with contextlib.suppress(Exception):
            self._database.close()
