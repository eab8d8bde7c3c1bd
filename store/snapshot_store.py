"""The store: snapshots by key, read in batches, written over the position they were folded from."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Collection, Sequence
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol, TypeVar

from .codec import Codec
from .database import MemoryDatabase, describe, driver_error, is_postgres, open_database
from .errors import (
    CommitInDoubt,
    StatementRefused,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionConflict,
)
from .fork_gate import ForkGate
from .keys import check_key, check_name, plain
from .ledger import Ledger
from .migrations import migrate
from .postgres import PostgresDialect
from .records import Address, Amendment, DeadLetter, Position, Row, Save, new_epoch
from .sqlite import SqliteDialect

if TYPE_CHECKING:
    import peewee

T = TypeVar("T")
RecordT = TypeVar("RecordT", Save, DeadLetter, Amendment)

_PATIENCE = 10.0
"""Seconds for which the migration of an SQLite file that others have locked is tried again."""
_MOMENT_MILLISECONDS = 200
"""How long another writer may have the lock where only the calling thread's own transaction would be waited for."""


class Shape(NamedTuple):
    """What the state of a projection looks like today."""

    schema_version: int
    codec: Codec


class Dialect(Protocol):
    """What differs between the databases. One object per store."""

    @property
    def gate(self) -> ForkGate | None:
        """Entered around each operation; None where a fork has to wait for none."""

    def before_connecting(self, database: peewee.Database) -> None:
        """Refuse, by a StoreError, to open a new connection if what it would open is not what was in use."""

    def connected(self, database: peewee.Database) -> None:
        """Take note of the calling thread's new connection."""

    def check_connection(self, database: peewee.Database) -> None:
        """Refuse, by a StoreError, to use the calling thread's connection if its file is gone."""

    def select(self, database: peewee.Database, addresses: Sequence[Address]) -> dict[Address, Row]:
        """Return the rows that exist among addresses."""

    def positions(self, database: peewee.Database, addresses: Sequence[Address]) -> dict[Address, Position]:
        """Return where the rows stand that exist among addresses."""

    def commit(
        self,
        database: peewee.Database,
        saves: Sequence[Save],
        letters: Sequence[DeadLetter],
        amendments: Sequence[Amendment],
        ledger: Ledger | None,
        *,
        lock_seconds: float | None,
    ) -> list[bool]:
        """Write all in one transaction; say for each save and amendment whether its base was still there."""

    def locked(self, database: peewee.Database, addresses: Sequence[Address]) -> set[Address]:
        """Return the addresses whose rows another transaction has locked at the moment."""

    def classify(self, error: Exception, where: str) -> StoreError:
        """Say whether trying again later can help."""

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        """Say the same of an error of connecting, which says nothing about any data."""


class SnapshotStore:
    """Snapshots in one database. Safe from any thread; each thread has its own connection.

    Every failure is a StoreError: StoreUnavailable if trying again later is right, StoreRejected if
    this data is refused for good. After one the next call works as soon as the database does.
    """

    def __init__(self, database: str | peewee.Database, *, auto_migrate: bool = True) -> None:
        self.database = open_database(database)
        self._migrated = not auto_migrate
        self.shapes: dict[str, Shape] = {}
        """The shape of the states under each name that is a projection's; ``write`` keeps to it."""
        self._dialect: Dialect = PostgresDialect() if is_postgres(self.database) else SqliteDialect()
        self._thread = threading.local()
        self._kept: dict[int, Any] = {}
        # Connections of a parent process: kept, since freeing one would end it over there.
        self._inherited: list[Any] = []

    def describe(self) -> str:
        """Return the database's name for people, without a password."""
        return describe(self.database)

    def ensure_tables(self) -> None:
        """Bring the tables up to date, once in the life of this store, unless ``auto_migrate`` is False.

        Raises:
            StoreError: The tables can't be made. On SQLite at once, if the calling thread has written in a
                transaction of the app's: it locks the migration out, and would wait for itself.
        """
        if self._migrated:
            return
        # On a thread of its own: the caller may have a transaction of the app's open, and tables made inside
        # of that would be nobody else's until it ends. No pool: its threads are joined at the interpreter's exit.
        done: Future[None] = Future()
        migration = threading.Thread(
            target=self._migrate,
            args=(done, self._has_sqlite_transaction()),
            name="keyfold-migration",
            daemon=True,
        )
        try:
            migration.start()
        except RuntimeError as error:
            msg = f"the tables of {self.describe()} can't be made: {error}"
            raise StoreUnavailable(msg) from error
        done.result()
        self._migrated = True

    def _has_sqlite_transaction(self) -> bool:
        """Return whether this thread has a transaction open, which may keep every other connection from writing."""
        if is_postgres(self.database):
            return False
        if self.database.in_transaction():
            return True
        return not self.database.is_closed() and getattr(self.database.connection(), "in_transaction", False)

    def _migrate(self, done: Future[None], in_transaction: bool) -> None:  # noqa: FBT001
        try:
            self._migrate_patiently(in_transaction=in_transaction)
        except BaseException as error:
            done.set_exception(error)
        else:
            done.set_result(None)

    def _migrate_patiently(self, *, in_transaction: bool) -> None:
        deadline = monotonic() + _PATIENCE
        while True:
            try:
                self.run(self._migrate_now if in_transaction else lambda: migrate(self.database))
            except StoreUnavailable as error:
                if "database is locked" not in str(error):
                    raise
                if in_transaction:
                    msg = (
                        f"the tables of {self.describe()} are still to be made, and this thread has a transaction "
                        "open on the same database, which locks everyone else out: run 'flask keyfold migrate' first,"
                        " or call store.ensure_tables() or dispatch the first event outside of a transaction"
                    )
                    raise StoreError(msg) from error
                # SQLite does not wait, whatever its busy timeout, when two processes turn a new file to WAL.
                if monotonic() > deadline:
                    raise
                threading.Event().wait(0.1)
            else:
                return

    def _migrate_now(self) -> None:
        """Migrate without waiting for a lock that only the caller's own thread could let go of."""
        run: Callable[[str], Any] = self.database.execute_sql
        [usual] = run("PRAGMA busy_timeout").fetchone()
        run(f"PRAGMA busy_timeout = {_MOMENT_MILLISECONDS}")
        try:
            migrate(self.database)
        finally:
            run(f"PRAGMA busy_timeout = {usual}")

    # -- rows, for the runtime

    def rows(self, addresses: Sequence[Address]) -> dict[Address, Row]:
        """Return the committed rows that exist among addresses, tombstones included, by one SELECT."""
        return self._ask(self._dialect.select, addresses)

    def positions(self, addresses: Sequence[Address]) -> dict[Address, Position]:
        """Return where the rows stand that exist among addresses, by one SELECT that reads no state."""
        return self._ask(self._dialect.positions, addresses)

    def _ask(
        self,
        select: Callable[[peewee.Database, Sequence[Address]], dict[Address, T]],
        addresses: Sequence[Address],
    ) -> dict[Address, T]:
        if not addresses:
            return {}
        addresses = [(plain(name), plain(key)) for name, key in addresses]
        self.ensure_tables()
        try:
            return self.run(lambda: select(self.database, addresses))
        except StoreUnavailable:
            # A kept connection may have died since it was used: a fresh one tells whether the database has.
            return self.run(lambda: select(self.database, addresses))

    def row(self, name: str, key: str) -> Row | None:
        """Return the committed row of one key, tombstones included, or None."""
        return self.rows([(name, key)]).get((plain(name), plain(key)))

    def commit(
        self,
        saves: Sequence[Save],
        letters: Sequence[DeadLetter] = (),
        ledger: Ledger | None = None,
        amendments: Sequence[Amendment] = (),
        *,
        lock_seconds: float | None = None,
    ) -> list[bool]:
        """Write everything in one transaction.

        Args:
            saves: Rows to write.
            letters: Dead letters to keep.
            ledger: Is stamped by the commit, so that ``settle`` can find out what became of it.
            amendments: Rows to amend together with their letters, after the saves.
            lock_seconds: How long to wait for a row that is locked; None for what the connection has set.
                SQLite has no locks of single rows.

        Returns:
            For each save, then for each amendment, whether it was written; if not, its base was gone.

        Raises:
            CommitInDoubt: It is not known whether anything was written: ``settle`` finds out.
            StoreUnavailable: Nothing was written, and trying again later is right.
            StoreRejected: Nothing was written: the database refuses this data for good.
            StoreError: This thread has a transaction of the app's open, or the database is not usable.
        """
        saves = [_plain(save) for save in saves]
        amendments = [_plain(amendment) for amendment in amendments]
        letters = [_plain(letter) for letter in letters]
        if len({(save.name, save.key) for save in saves}) != len(saves):
            msg = "the same key twice in one commit"
            raise StoreRejected(msg)
        if not saves and not letters and not amendments:
            return []
        if self.database.in_transaction():
            msg = (
                "this thread has a transaction open on the same database; a snapshot is committed on its own"
            )
            raise StoreError(msg)
        self.ensure_tables()
        return self.run(
            lambda: self._dialect.commit(
                self.database, saves, letters, amendments, ledger, lock_seconds=lock_seconds
            )
        )

    def locked(self, addresses: Sequence[Address]) -> set[Address]:
        """Return the addresses whose rows another transaction has locked at the moment; none on SQLite.

        A row that another transaction has inserted and not committed yet is not seen.
        """
        return self.run(lambda: self._dialect.locked(self.database, addresses)) if addresses else set()

    def delete_letter(self, number: int) -> bool:
        """Remove a dead letter whose key has no row. False: there is none."""
        sql = f"DELETE FROM projection_dead_letters WHERE id = {self.database.param}"
        return bool(self.run(lambda: self.database.execute_sql(sql, (number,)).rowcount))

    def settle(self, doubt: CommitInDoubt, ledger: Ledger) -> list[bool] | None:
        """Return what the commit in doubt would have returned, or None if it did not happen."""
        committed = self.run(lambda: ledger.has_committed(self.database, doubt.turn))
        return doubt.written if committed else None

    def sign_off(self, ledger: Ledger) -> None:
        """Remove what a writer's ledger left in the database, at the end of its life."""
        self.run(lambda: ledger.sign_off(self.database))

    # -- one-off values, for apps

    def write(self, name: str, key: str, state: Any, *, expected: Position | None = None) -> Position:
        """Store a value under a name and key, without dispatching an event. The last writer wins.

        Args:
            name: A name of one's own, or a projection's: then the value is a state in today's shape.
            key: As of a projection.
            state: Anything that has a JSON form.
            expected: Replace only a value that still stands there.

        Returns:
            Where the value stands now.

        Raises:
            InvalidKey: The key is no ProjectionKey.
            EncodeError: The state has no JSON form, or would not come back from it as it is (a ValueError).
            VersionConflict: The value does not stand at ``expected``; nothing is written.
            StoreError: The key is halted, the row is of a newer release, or the database failed.
        """
        name, key = check_name(name), check_key(key)
        shape = self.shapes.get(name)
        if shape is None:
            encoded = Codec(Any).encode(state)
        else:
            encoded = shape.codec.encode(state)
            shape.codec.verify(state, encoded)
        while True:
            row = self.row(name, key)
            base = None if row is None else row.position
            if expected is not None and base != expected:
                raise VersionConflict(projection=name, key=key, expected=str(expected))
            if row is not None and row.halted:
                msg = f"{name}: key {key!r} is halted; it is written again once it is resumed"
                raise StoreError(msg, projection=name, key=key)
            # A row says in which shape its state is; a value that is written over it is in the same.
            schema_version = 1 if row is None else row.schema_version
            if shape is not None:
                if schema_version > shape.schema_version:
                    msg = (
                        f"{name}: the row of key {key!r} was written by a newer release, with schema_version "
                        f"{schema_version}; this one has {shape.schema_version} and does not write over it"
                    )
                    raise StoreError(msg, projection=name, key=key)
                schema_version = shape.schema_version
            epoch, version = base or (new_epoch(), 0)
            try:
                if self.commit([Save(name, key, base, epoch, version + 1, encoded, schema_version)]) == [
                    True
                ]:
                    return Position(epoch, version + 1)
            except CommitInDoubt:
                # Writing it again is idempotent unless ``expected`` was given.
                if expected is not None:
                    raise

    def read(self, name: str, key: str, type_: Any = Any) -> Any:
        """Return the committed value of a name and key, decoded as ``type_``, or None.

        Raises InvalidKey, DecodeError (a ValueError) if it is of another shape, and StoreError.
        """
        row = self.row(check_name(name), check_key(key))
        return None if row is None or row.is_tombstone else Codec(type_).decode(row.state)

    # -- connections

    def keep_connection(self) -> None:
        """Let the calling thread keep its connection between calls, until ``disconnect``."""
        self._thread.keeps = True

    def disconnect(self) -> None:
        """Close the connection that the calling thread keeps."""
        if getattr(self._thread, "keeps", False):
            self._thread.keeps = False
            self._kept.pop(threading.get_ident(), None)
            # Closing the last connection to a file writes to it.
            self._within_gate(self.database.close)

    def close(self) -> None:
        """Close. A database in memory is gone with it. Connections that threads keep are closed by these threads."""
        if getattr(self._thread, "opened", False):
            self._close_own()  # an interrupt has kept the call from doing it
        alive = {thread.ident for thread in threading.enumerate()}
        for thread in [one for one in list(self._kept) if one not in alive]:
            del self._kept[thread]  # it could not close it; freeing it does
        if isinstance(self.database, MemoryDatabase):
            self.database.release()

    def interrupt(self, threads: Collection[int] | None = None) -> None:
        """Make calls that are under way fail now, on connections that threads keep.

        A server that is frozen, and not dead, would hold them for ever: no time-out of PostgreSQL's
        own covers it, as its kernel goes on acknowledging.

        Args:
            threads: The idents of the threads whose calls shall fail; None for all of them.
        """
        for thread, connection in list(self._kept.items()):
            if threads is not None and thread not in threads:
                continue
            with contextlib.suppress(Exception):
                if isinstance(connection, sqlite3.Connection):
                    connection.interrupt()
                else:
                    with socket.socket(fileno=os.dup(connection.fileno())) as link:
                        link.shutdown(socket.SHUT_RDWR)

    def forget_connections(self) -> None:
        """In a forked child: use none of the parent's connections, and close none."""
        # Peewee's lock may have been held by a thread that does not exist here.
        vars(self.database)["_lock"] = threading.Lock()
        if not self.database.is_closed():
            self._inherited.append(self.database.connection())
        self.database.dispose()
        self._thread = threading.local()
        self._kept = {}

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
        closed = self.database.is_closed()
        try:
            if closed:
                self._connect()
            self._dialect.check_connection(self.database)
            return operation()
        except Exception as error:
            failure = (
                error
                if isinstance(error, StoreError)
                else self._dialect.classify(driver_error(error), self.describe())
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
            if self._migrated:
                self._dialect.before_connecting(self.database)
            self._thread.opened = not keeps
            # Another thread's pool, and an app's own connect hook, may raise anything. No data was sent.
            self.database.connect()
        except StoreError:
            raise
        except Exception as error:
            raise self._dialect.classify_connecting(driver_error(error), self.describe()) from error
        if keeps:
            self._kept[threading.get_ident()] = self.database.connection()
        self._dialect.connected(self.database)

    def _close_own(self) -> None:
        """Close the connection that the calling thread has opened for one call."""
        self.database.close()
        self._thread.opened = False

    def _drop_connection(self) -> None:
        with contextlib.suppress(Exception):
            self.database.close()


def _plain(record: RecordT) -> RecordT:
    """Return a record whose name and key are plain: the driver is given nothing whose methods an app has changed."""
    name, key = record.name, record.key
    if type(name) is str and (type(key) is str or not isinstance(key, str)):
        return record
    return record._replace(name=plain(name), key=plain(key))
