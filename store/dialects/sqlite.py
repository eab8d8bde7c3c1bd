"""SQLite: its SQL, its transactions and its errors."""

from __future__ import annotations

import json
import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..errors import StatementRefused, StoreError, StoreRejected, StoreUnavailable
from ..rows import Amendment, DeadLetter, Head, Renewal, Row, RowKey, Save, as_utc
from .amendments import amend
from .base import ColumnTypes
from .fork_gate import ForkGate
from .sqlite_file import SqliteFile
from .statements import Statements

if TYPE_CHECKING:
    import peewee

    from ..writing.ledger import Ledger

_JOIN = """
    FROM json_each(?) AS wanted
    JOIN projection_snapshots AS s
      ON s.projection_name = wanted.value ->> 0 AND s.key = wanted.value ->> 1
"""
_SELECT = (
    "SELECT s.projection_name, s.key, s.epoch, s.version, s.schema_version, s.state, s.updated_at, "
    "s.halted, s.commit_id" + _JOIN
)
_SELECT_HEADS = "SELECT s.projection_name, s.key, s.epoch, s.version, s.commit_id" + _JOIN
_UPDATE = """
    UPDATE projection_snapshots
    SET state = ?, epoch = ?, version = ?, schema_version = ?, updated_at = ?, commit_id = ?
    WHERE projection_name = ? AND key = ? AND epoch = ? AND version = ? AND NOT halted
      AND (commit_id = ? OR ? IS NULL)
"""
_INSERT = """
    INSERT INTO projection_snapshots
        (projection_name, key, epoch, version, schema_version, state, updated_at, commit_id)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING
"""
# The condition is the one of Head.is_gone_from.
_RENEW = """
    UPDATE projection_snapshots SET epoch = ?
    WHERE projection_name = ? AND key = ? AND epoch = ? AND (version < ? OR version = ? AND commit_id <> ?)
"""
_STATEMENTS = Statements(param="?", state_param="?", for_update="", state_bytes="length(CAST(state AS BLOB))")

_BUSY_MILLISECONDS = 200
"""The busy timeout within ``without_waiting``."""


class SqliteDialect:
    """SQLite: one writer at a time, and a COMMIT always answers, so that no commit is ever in doubt."""

    statements = _STATEMENTS
    # The state is TEXT and not JSON, as a type that SQLite does not know has numeric affinity: "0" becomes 0.
    column_types = ColumnTypes(state="TEXT", moment="TEXT", identity="INTEGER PRIMARY KEY AUTOINCREMENT")

    def __init__(self) -> None:
        self.gate: ForkGate | None = ForkGate()
        file = self._file = SqliteFile()
        # The bound methods themselves: wrappers would be one more call per operation.
        self.before_connecting = file.check_path
        self.connected = file.note_connection
        self.check_connection = file.check_connection

    def interrupt(self, connection: Any) -> None:
        connection.interrupt()

    def select(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        cursor = database.execute_sql(_SELECT, (json.dumps(row_keys),))
        return {
            (name, key): Row(epoch, version, schema, state.encode(), as_utc(at), bool(halted), commit_id)
            for name, key, epoch, version, schema, state, at, halted, commit_id in cursor.fetchall()
        }

    def heads(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        cursor = database.execute_sql(_SELECT_HEADS, (json.dumps(row_keys),))
        return {(name, key): Head(*head) for name, key, *head in cursor.fetchall()}

    def renew(self, database: peewee.Database, renewals: Sequence[Renewal]) -> list[RowKey]:
        with database.atomic("IMMEDIATE"):
            return [
                (name, key)
                for name, key, epoch, version, commit_id, new in renewals
                if database.execute_sql(_RENEW, (new, name, key, epoch, version, version, commit_id)).rowcount
            ]

    def commit(
        self,
        database: peewee.Database,
        saves: Sequence[Save],
        letters: Sequence[DeadLetter],
        amendments: Sequence[Amendment],
        ledger: Ledger | None,  # noqa: ARG002  # SQLite's COMMIT always answers
        *,
        lock_seconds: float | None,  # noqa: ARG002  # there are no locks of single rows
    ) -> list[bool]:
        now = datetime.now(UTC).isoformat()
        connection: sqlite3.Connection = database.connection()
        cursor = connection.cursor()
        written: list[bool] | None = None
        ends = False
        try:
            cursor.execute("BEGIN IMMEDIATE")
            written = _write_all(cursor, saves, now)
            if written is None:
                # The base of some row is gone. Conflicts are rare: only now are the rows written one by one.
                cursor.execute("ROLLBACK")
                cursor.execute("BEGIN IMMEDIATE")
                written = [_write_one(cursor, save, now) for save in saves]
            written += [amend(database, _STATEMENTS, amendment) for amendment in amendments]
            if letters:
                cursor.executemany(_STATEMENTS.insert_letter, [(*letter, now) for letter in letters])
            self._file.check_connection(database)
            ends = True
            cursor.execute("COMMIT")
            return written
        except BaseException as error:
            if connection.in_transaction:
                cursor.execute("ROLLBACK")
            elif written is not None and ends and not isinstance(error, sqlite3.Error):
                return written  # the error came after the COMMIT; another attempt would count twice
            raise

    def locked(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> set[RowKey]:  # noqa: ARG002
        return set()  # the whole file is locked, or none of it

    def has_committed(
        self,
        database: peewee.Database,  # noqa: ARG002
        ledger: Ledger,  # noqa: ARG002
        transaction_number: int,  # noqa: ARG002
    ) -> bool:
        return False  # no commit is ever in doubt, so the ledger is not written

    def remove_writer(self, database: peewee.Database, ledger: Ledger) -> None:
        pass

    @contextmanager
    def migrating(self, database: peewee.Database) -> Iterator[None]:
        with database.atomic("IMMEDIATE"):
            yield

    def blocks_migration(self, database: peewee.Database) -> bool:
        if database.in_transaction():
            return True
        return not database.is_closed() and getattr(database.connection(), "in_transaction", False)

    @contextmanager
    def without_waiting(self, database: peewee.Database) -> Iterator[None]:
        [[usual]] = database.execute_sql("PRAGMA busy_timeout").fetchall()
        database.execute_sql(f"PRAGMA busy_timeout = {_BUSY_MILLISECONDS}")
        try:
            yield
        finally:
            database.execute_sql(f"PRAGMA busy_timeout = {usual}")

    def is_busy(self, error: StoreError) -> bool:
        return isinstance(error, StoreUnavailable) and "database is locked" in str(error)

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        # Trying again later can help, unless the file is no database.
        failure = self.classify(error, where)
        if isinstance(error, sqlite3.Error) and not isinstance(failure, StoreRejected):
            return failure
        return StoreUnavailable(f"{where} can't be used at the moment: {type(error).__name__}: {error}")

    def classify(self, error: Exception, where: str) -> StoreError:
        if isinstance(error, (sqlite3.DataError, sqlite3.IntegrityError)):
            return StoreRejected(f"{where} refuses the data: {error}")
        if isinstance(error, sqlite3.OperationalError):
            if getattr(error, "sqlite_errorcode", None) == sqlite3.SQLITE_ERROR:
                # SQL that fails, for instance since a function that a trigger calls has raised.
                return StatementRefused(f"{where} can't do it at the moment: {error}")
            return StoreUnavailable(f"{where} can't be used at the moment: {error}")
        if isinstance(error, sqlite3.Error):
            return StoreError(f"{where} is not usable: {error}")
        if isinstance(error, (ValueError, TypeError, OverflowError)):
            return StoreRejected(f"the data can't be written to {where}: {error}")
        return StoreError(f"{where} failed in an unexpected way: {type(error).__name__}: {error}")


def _write_all(cursor: sqlite3.Cursor, saves: Sequence[Save], now: str) -> list[bool] | None:
    updates, inserts = [], []
    for save in saves:
        if save.base is None:
            inserts.append(_inserted(save, now))
        else:
            updates.append(_updated(save, now))
    if updates:
        cursor.executemany(_UPDATE, updates)
        if cursor.rowcount != len(updates):
            return None
    if inserts:
        cursor.executemany(_INSERT, inserts)
        if cursor.rowcount != len(inserts):
            return None
    return [True] * len(saves)


def _write_one(cursor: sqlite3.Cursor, save: Save, now: str) -> bool:
    if save.base is None:
        cursor.execute(_INSERT, _inserted(save, now))
    else:
        cursor.execute(_UPDATE, _updated(save, now))
    return cursor.rowcount == 1


def _inserted(save: Save, now: str) -> tuple[object, ...]:
    name, key, _, epoch, version, state, schema, _, commit_id = save
    return (name, key, epoch, version, schema, state.decode(), now, commit_id)


def _updated(save: Save, now: str) -> tuple[object, ...]:
    # Flat, and without a helper per column: this runs once per row on the hottest path of the store.
    name, key, base, epoch, version, state, schema, base_commit_id, commit_id = save
    base_epoch, base_version = base  # type: ignore[misc]  # an update has a base
    return (
        state.decode(),
        epoch,
        version,
        schema,
        now,
        commit_id,
        name,
        key,
        base_epoch,
        base_version,
        base_commit_id,
        base_commit_id,
    )
