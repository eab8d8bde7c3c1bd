"""The store: snapshots by key, read in batches, and written over the position that they were folded from."""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from typing import TYPE_CHECKING, Any, TypeVar

from .codec import Codec
from .connect.connections import Connections
from .connect.database import MemoryDatabase, describe_database, open_database
from .dialects import new_dialect
from .errors import CommitInDoubt, StoreError, StoreRejected, StoreUnavailable, VersionConflict
from .rows import (
    Amendment,
    DeadLetter,
    Head,
    Position,
    Renewal,
    Row,
    RowKey,
    Save,
    new_commit_id,
    new_epoch,
)
from .schema.tables import Tables
from .validation import check_key, check_name, plain
from .writing.ledger import Ledger

if TYPE_CHECKING:
    import peewee

T = TypeVar("T")
RecordT = TypeVar("RecordT", Save, DeadLetter, Amendment)


class SnapshotStore:
    """Snapshots in one database. Every thread may use it, and has its own connection.

    Apps use ``write`` and ``read`` for values without a projection. Every failure of the database is a
    StoreError: StoreUnavailable if trying again later is right, StoreRejected if this data is refused for
    good. After a failure the next call works as soon as the database does.

    Args:
        database: A URL or a Peewee database, as ``open_database`` takes them.
        auto_migrate: Make and update the tables at the first use. If False, the app runs the migrations.

    Raises:
        ProjectionError: The database is not supported.
    """

    def __init__(self, database: str | peewee.Database, *, auto_migrate: bool = True) -> None:
        self.database = open_database(database)
        self._schema_versions: dict[str, int] = {}
        self.dialect = new_dialect(self.database)
        self._connections = Connections(self.database, self.dialect, file_required=not auto_migrate)
        self._tables = Tables(self.database, self.dialect, self._connections, exist=not auto_migrate)

    def describe(self) -> str:
        """Return the name of the database for people, without a password."""
        return describe_database(self.database)

    def ensure_tables(self) -> None:
        """Bring the tables up to date, once in the life of this store, unless ``auto_migrate`` is False.

        Raises:
            StoreError: The tables can't be made. On SQLite this is raised at once if the calling thread has
                written in an open transaction of the app's, which the migration would wait for.
        """
        self._tables.ensure()

    def register_schema(self, name: str, schema_version: int) -> None:
        """Tell ``write`` the schema version of a projection's states.

        Args:
            name: The name of the projection.
            schema_version: The version in which this release writes its states.
        """
        self._schema_versions[name] = schema_version

    # -- rows, for the runtime

    def rows(self, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the committed rows that exist among row keys, tombstones included, by one SELECT."""
        return self._ask(self.dialect.select, row_keys)

    def heads(self, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        """Return the commits of the rows that exist among row keys, by one SELECT that reads no state."""
        return self._ask(self.dialect.heads, row_keys)

    def _ask(
        self,
        select: Callable[[peewee.Database, Sequence[RowKey]], dict[RowKey, T]],
        row_keys: Sequence[RowKey],
    ) -> dict[RowKey, T]:
        if not row_keys:
            return {}
        row_keys = [(plain(name), plain(key)) for name, key in row_keys]
        self.ensure_tables()
        try:
            return self.run(lambda: select(self.database, row_keys))
        except StoreUnavailable:
            # The connection may have died while it was kept. A new one shows whether the database works.
            return self.run(lambda: select(self.database, row_keys))

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
            letters: Dead letters to insert.
            ledger: Is stamped by the commit, so that ``resolve`` can find out whether it happened.
            amendments: Rows to amend together with their letters, after the saves.
            lock_seconds: How long to wait for a row that is locked; None for the connection's own setting.
                SQLite has no locks of single rows.

        Returns:
            For each save, then for each amendment, whether it was written; if not, its base was gone.

        Raises:
            CommitInDoubt: It is not known whether anything was written: ``resolve`` finds out.
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
            lambda: self.dialect.commit(
                self.database, saves, letters, amendments, ledger, lock_seconds=lock_seconds
            )
        )

    def renew(self, rows: Sequence[tuple[str, str, Head]]) -> list[RowKey]:
        """Give rows that have lost a commit new epochs, so that no browser is resumed in an old epoch.

        All rows are renewed in one transaction. State and version stay. The row in the database
        decides, and not an earlier read of it. A row whose epoch has changed meanwhile is left alone, so that
        several processes may ask for the same at once. So is a row that does have the commit, which a lagging
        read did not show. An actor that has the row finds that it has changed, and reads it again.

        Args:
            rows: Name and key of each row, and the commit that it has lost; or ``Head.end_of(epoch)``, to
                renew the epoch wherever the row stands in it.

        Returns:
            Name and key of each row that got a new epoch.

        Raises:
            StoreError: The database can't be used.
        """
        renewals = [Renewal(plain(name), plain(key), *lost, new_epoch()) for name, key, lost in rows]
        if not renewals:
            return []
        self.ensure_tables()
        return self.run(lambda: self.dialect.renew(self.database, renewals))

    def locked(self, row_keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the row keys whose rows another transaction has locked at the moment; none on SQLite.

        A row that another transaction has inserted and not committed yet is not among them.
        """
        return self.run(lambda: self.dialect.locked(self.database, row_keys)) if row_keys else set()

    def delete_letter(self, number: int) -> bool:
        """Remove a dead letter whose key has no row, and return whether there was one of this id."""
        sql = self.dialect.statements.delete_letter
        return bool(self.run(lambda: self.database.execute_sql(sql, (number,)).rowcount))

    def resolve(self, doubt: CommitInDoubt, ledger: Ledger) -> list[bool] | None:
        """Find out whether a commit in doubt happened.

        Args:
            doubt: The error of the commit.
            ledger: The ledger that the commit was given.

        Returns:
            The result that the commit would have returned, or None if it did not happen.
        """
        number = doubt.transaction_number
        committed = self.run(lambda: self.dialect.has_committed(self.database, ledger, number))
        return doubt.written if committed else None

    def remove_writer(self, ledger: Ledger) -> None:
        """Remove the row of a ledger, at the end of its writer's life."""
        if ledger.is_used:
            self.run(lambda: self.dialect.remove_writer(self.database, ledger))

    # -- one-off values, for apps

    def write(self, name: str, key: str, state: Any, *, expected: Position | None = None) -> Position:
        """Store a value under a name and key, without dispatching an event. The last writer wins.

        Args:
            name: A name of your own; or the name of a projection, and then the value has to be a state in its
                current shape.
            key: A key, as for a projection: 1 to 512 printable characters.
            state: Anything that msgspec can encode as JSON.
            expected: Replace the value only if it still has this position.

        Returns:
            The new position of the value.

        Raises:
            ProjectionError: The name is not valid.
            InvalidKey: The key is not valid.
            EncodeError: The state can't be encoded as JSON (a ValueError).
            VersionConflict: The value does not have the position ``expected``. Nothing is written.
            CommitInDoubt: With ``expected`` only: it is not known whether the value was written.
            StoreError: The key is halted, the row is of a newer release, or the database failed.
        """
        name, key = check_name(name), check_key(key)
        encoded = Codec(Any).encode(state)
        while True:
            row = self.row(name, key)
            base, base_commit_id = (None, None) if row is None else (row.position, row.commit_id)
            if expected is not None and base != expected:
                raise VersionConflict(projection=name, key=key, expected=str(expected))
            if row is not None and row.halted:
                msg = f"{name}: key {key!r} is halted; it is written again once it is resumed"
                raise StoreError(msg, projection=name, key=key)
            # The row has the schema version of its state; a value that replaces it has the same shape.
            schema_version = 1 if row is None else row.schema_version
            known = self._schema_versions.get(name, schema_version)
            if schema_version > known:
                msg = (
                    f"{name}: the row of key {key!r} was written by a newer release, with schema_version "
                    f"{schema_version}; this one has {known} and does not write over it"
                )
                raise StoreError(msg, projection=name, key=key)
            epoch, version = base or (new_epoch(), 0)
            try:
                save = Save(
                    name, key, base, epoch, version + 1, encoded, known, base_commit_id, new_commit_id()
                )
                if self.commit([save]) == [True]:
                    return Position(epoch, version + 1)
            except CommitInDoubt:
                # Writing it again is idempotent unless ``expected`` was given.
                if expected is not None:
                    raise

    def read(self, name: str, key: str, type_: Any = Any) -> Any:
        """Return the committed value of a name and key.

        Args:
            name: The name that was given to ``write``, or the name of a projection.
            key: The key.
            type_: The type to decode the value as: a dataclass, a Struct, ``list[int]`` or any other that
                msgspec knows.

        Returns:
            The value, or None if there is none.

        Raises:
            ProjectionError: The name is not valid.
            InvalidKey: The key is not valid.
            DecodeError: The value does not fit the type (a ValueError).
            StoreError: The database can't be used.
        """
        row = self.row(check_name(name), check_key(key))
        return None if row is None or row.is_tombstone else Codec(type_).decode(row.state)

    # -- connections

    def keep_connection(self) -> None:
        """Keep the calling thread's connection open between calls, until ``disconnect``."""
        self._connections.keep()

    def disconnect(self) -> None:
        """Close the connection that the calling thread keeps."""
        self._connections.disconnect()

    def interrupt(self, threads: Collection[int] | None = None) -> None:
        """Make the calls fail that are running on connections that threads keep.

        A server that is frozen, and not dead, would block them for ever: none of PostgreSQL's time-outs
        applies, as the server's kernel goes on acknowledging.

        Args:
            threads: The idents of the threads whose calls shall fail; None for all threads.
        """
        self._connections.interrupt(threads)

    def forget_connections(self) -> None:
        """In a forked child: use none of the parent's connections, and close none."""
        self._connections.forget()

    def run(self, operation: Callable[[], T]) -> T:
        """Run one operation on the thread's connection, and turn every failure into a StoreError.

        Args:
            operation: Is called once, on the calling thread, with a connection open.

        Returns:
            The result of the operation.

        Raises:
            StoreError: The operation failed.
        """
        return self._connections.run(operation)

    def close(self) -> None:
        """Close the calling thread's connection and those of threads that have ended.

        It discards a database in memory. Other threads close the connections that they keep by
        ``disconnect``.
        """
        self._connections.close_left()
        if isinstance(self.database, MemoryDatabase):
            self.database.release()


def _plain(record: RecordT) -> RecordT:
    """Return a record with plain strings, so that the driver calls no method of an app's subclass of str."""
    name, key = record.name, record.key
    if type(name) is str and (type(key) is str or not isinstance(key, str)):
        return record
    return record._replace(name=plain(name), key=plain(key))
