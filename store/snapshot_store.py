"""The store: snapshots by key, read in batches, written over the position they were folded from."""

from __future__ import annotations

import contextlib
import os
import socket
import sqlite3
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING, Any, Protocol, TypeVar

from .codec import Codec
from .database import MemoryDatabase, describe, driver_error, is_postgres, open_database
from .errors import CommitInDoubt, StoreError, StoreRejected, StoreUnavailable, VersionConflict
from .keys import check_key, check_name
from .ledger import Ledger
from .migrations import migrate
from .postgres import PostgresDialect
from .records import Address, Amendment, DeadLetter, Position, Row, Save, new_epoch
from .sqlite import SqliteDialect

if TYPE_CHECKING:
    import peewee

T = TypeVar("T")

_PATIENCE = 50


class Dialect(Protocol):
    """What differs between the databases."""

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
    ) -> list[bool]:
        """Write all in one transaction; say for each save and amendment whether its base was still there."""

    def classify(self, error: Exception, where: str) -> StoreError:
        """Say whether trying again later can help."""


class SnapshotStore:
    """Snapshots in one database. Safe from any thread; each thread has its own connection.

    Every failure is a StoreError: StoreUnavailable if trying again later is right, StoreRejected if
    this data is refused for good. After one the next call works as soon as the database does.
    """

    def __init__(self, database: str | peewee.Database, *, auto_migrate: bool = True) -> None:
        self.database = open_database(database)
        self._migrated = not auto_migrate
        self._dialect: Dialect = PostgresDialect() if is_postgres(self.database) else SqliteDialect()
        self._thread = threading.local()
        self._kept: dict[int, Any] = {}
        # Connections of a parent process: kept, since freeing one would end it over there.
        self._inherited: list[Any] = []

    def describe(self) -> str:
        """Return the database's name for people, without a password."""
        return describe(self.database)

    def ensure_tables(self) -> None:
        """Bring the tables up to date, once in the life of this store, unless ``auto_migrate`` is False."""
        if not self._migrated:
            # On a thread of its own: the caller may have a transaction of the app's open, and tables made
            # inside of that would be nobody else's until it ends.
            with ThreadPoolExecutor(1, thread_name_prefix="keyfold-migration") as pool:
                pool.submit(self._migrate).result()
            self._migrated = True

    def _migrate(self) -> None:
        patience = _PATIENCE
        while True:
            try:
                self.run(lambda: migrate(self.database))
            except StoreUnavailable as error:
                # SQLite does not wait, whatever its busy timeout, when two processes turn a new file to WAL.
                if not patience or "database is locked" not in str(error):
                    raise
                patience -= 1
                threading.Event().wait(0.1)
            else:
                return

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
        self.ensure_tables()
        try:
            return self.run(lambda: select(self.database, addresses))
        except StoreUnavailable:
            # A kept connection may have died since it was used: a fresh one tells whether the database has.
            return self.run(lambda: select(self.database, addresses))

    def row(self, name: str, key: str) -> Row | None:
        """Return the committed row of one key, tombstones included, or None."""
        return self.rows([(name, key)]).get((name, key))

    def commit(
        self,
        saves: Sequence[Save],
        letters: Sequence[DeadLetter] = (),
        ledger: Ledger | None = None,
        amendments: Sequence[Amendment] = (),
    ) -> list[bool]:
        """Write everything in one transaction. Item i says whether save i was written; if not, its base was gone.

        The amendments follow the saves, in what is returned too. Raises StoreUnavailable or StoreRejected: then nothing was written; or CommitInDoubt, if it
        is not known whether anything was: ``settle`` finds out.
        """
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
        return self.run(lambda: self._dialect.commit(self.database, saves, letters, amendments, ledger))

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
        """Store a value of one's own under a name and key, without a projection, and return where it stands.

        The last writer wins; with ``expected``, only a value that still stands there is replaced, else
        VersionConflict is raised and nothing is written. Raises InvalidKey, EncodeError (a ValueError)
        if state has no JSON, and StoreError.
        """
        check_name(name)
        check_key(key)
        encoded = Codec(Any).encode(state)
        while True:
            row = self.row(name, key)
            base = None if row is None else row.position
            if expected is not None and base != expected:
                raise VersionConflict(projection=name, key=key, expected=str(expected))
            if row is not None and row.halted:
                msg = f"{name}: key {key!r} is halted; it is written again once it is resumed"
                raise StoreError(msg, projection=name, key=key)
            epoch, version = base or (new_epoch(), 0)
            try:
                if self.commit([Save(name, key, base, epoch, version + 1, encoded)]) == [True]:
                    return Position(epoch, version + 1)
            except CommitInDoubt:
                # Written again it is the same value, unless it had to stand on a given one.
                if expected is not None:
                    raise

    def read(self, name: str, key: str, type_: Any = Any) -> Any:
        """Return the committed value of a name and key, decoded as ``type_``, or None.

        Raises InvalidKey, DecodeError (a ValueError) if it is of another shape, and StoreError.
        """
        check_name(name)
        row = self.row(name, check_key(key))
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
            self.database.close()

    def close(self) -> None:
        """Let go of a database in memory, which ends by it. Other databases hold nothing but threads' connections."""
        if isinstance(self.database, MemoryDatabase):
            self.database.release()

    def interrupt(self) -> None:
        """Make the calls that threads with a kept connection have under way fail now.

        A server that is frozen, and not dead, would hold them for ever: no time-out of PostgreSQL's
        own covers it, as its kernel goes on acknowledging.
        """
        for connection in list(self._kept.values()):
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
        with self._connected():
            try:
                return operation()
            except CommitInDoubt:
                self._drop_connection()
                raise
            except Exception as error:
                failure = self._dialect.classify(driver_error(error), self.describe())
                if not isinstance(failure, StoreRejected):
                    self._drop_connection()
                raise failure from error

    @contextlib.contextmanager
    def _connected(self) -> Iterator[None]:
        opened = False
        try:
            opened = self.database.connect(reuse_if_open=True)
        except Exception as error:
            raise self._dialect.classify(driver_error(error), self.describe()) from error
        keeps = getattr(self._thread, "keeps", False)
        if opened and keeps:
            self._kept[threading.get_ident()] = self.database.connection()
        try:
            yield
        finally:
            if opened and not keeps:
                self.database.close()

    def _drop_connection(self) -> None:
        with contextlib.suppress(Exception):
            self.database.close()
