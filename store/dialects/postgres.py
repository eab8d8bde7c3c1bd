"""PostgreSQL through psycopg2: its SQL, its transactions and its errors."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import psycopg2
from msgspec import json

from ..connect.database import driver_error
from ..errors import CommitInDoubt, StatementRefused, StoreError, StoreRejected, StoreUnavailable
from ..rows import Amendment, DeadLetter, Head, Renewal, Row, RowKey, Save, as_utc
from .amendments import amend
from .base import ColumnTypes
from .statements import Statements

if TYPE_CHECKING:
    import peewee

    from ..writing.ledger import Ledger

_BEGIN_WITH_LOCK_TIMEOUT = "BEGIN; SET LOCAL lock_timeout = %d;"  # in milliseconds
_JOIN = """
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, key)
    JOIN projection_snapshots AS s ON s.projection_name = wanted.name AND s.key = wanted.key
"""
_SELECT = (
    "SELECT s.projection_name, s.key, s.epoch, s.version, s.schema_version, s.state::text, s.updated_at, "
    "s.halted, s.commit_id" + _JOIN
)
_SELECT_HEADS = "SELECT s.projection_name, s.key, s.epoch, s.version, s.commit_id" + _JOIN
# The condition is the one of Head.is_gone_from. The rows are locked in an order, so that two transactions
# that renew epochs can't deadlock.
_RENEW = """
    WITH wanted AS (
        SELECT s.projection_name, s.key, w.new
        FROM unnest(%s::text[], %s::text[], %s::text[], %s::bigint[], %s::text[], %s::text[])
             AS w (name, key, epoch, version, commit_id, new)
        JOIN projection_snapshots AS s ON s.projection_name = w.name AND s.key = w.key AND s.epoch = w.epoch
             AND (s.version < w.version OR s.version = w.version AND s.commit_id <> w.commit_id)
        ORDER BY s.projection_name, s.key
        FOR NO KEY UPDATE OF s
    )
    UPDATE projection_snapshots AS s SET epoch = wanted.new FROM wanted
    WHERE s.projection_name = wanted.projection_name AND s.key = wanted.key
    RETURNING s.projection_name, s.key
"""
# The lock is the one that an UPDATE of ours takes.
_SELECT_UNLOCKED = "SELECT s.projection_name, s.key" + _JOIN + "FOR NO KEY UPDATE OF s SKIP LOCKED"

# One statement and one round trip for everything. Its own RETURNING names the rows that were written: a later
# read could see the row of another process and take it for ours. The small columns travel as one JSON text:
# as eight arrays, each item is a node for the server's parser, and 500 rows take twice as long. (States have
# an array of their own: within the JSON text they would be escaped twice, which is slow for large ones, and
# inserted unescaped they could change the statement.)
_WRITE = """
    WITH incoming AS (
        SELECT row->>0 AS name, row->>1 AS key, row->>2 AS base_epoch, (row->>3)::bigint AS base_version,
               row->>4 AS epoch, (row->>5)::bigint AS version, (row->>6)::int AS schema_version,
               row->>7 AS base_commit_id, row->>8 AS commit_id, state
        FROM ROWS FROM (jsonb_array_elements(%s::jsonb), unnest(%s::text[])) AS t (row, state)
    ), stamped AS (
        INSERT INTO projection_writers (writer, turn, at)
        SELECT writer, turn, now() FROM (VALUES (%s::text, %s::bigint)) AS stamp (writer, turn)
        WHERE writer IS NOT NULL
        ON CONFLICT (writer) DO UPDATE SET turn = excluded.turn, at = excluded.at
    ), updated AS (
        UPDATE projection_snapshots AS s
        SET state = i.state::jsonb, epoch = i.epoch, version = i.version,
            schema_version = i.schema_version, updated_at = now(), commit_id = i.commit_id
        FROM incoming AS i
        WHERE s.projection_name = i.name AND s.key = i.key
          AND s.epoch = i.base_epoch AND s.version = i.base_version AND NOT s.halted
          AND (s.commit_id = i.base_commit_id OR i.base_commit_id IS NULL)
        RETURNING s.projection_name, s.key
    ), inserted AS (
        INSERT INTO projection_snapshots
            (projection_name, key, epoch, version, schema_version, state, updated_at, commit_id)
        SELECT name, key, epoch, version, schema_version, state::jsonb, now(), commit_id
        FROM incoming WHERE base_epoch IS NULL
        ON CONFLICT DO NOTHING
        RETURNING projection_name, key
    )
    SELECT * FROM updated UNION ALL SELECT * FROM inserted
"""
_INSERT_LETTERS = """
    INSERT INTO projection_dead_letters
        (projection_name, key, event_type, event, error, traceback, parked, at)
    SELECT *, now() FROM unnest(
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[]
    )
"""

# A writer without a commit for a week counts as dead. If it is only asleep, its next commit makes its row
# again, so that this commit can be looked up.
_DELETE_OLD_WRITERS = """
    DELETE FROM projection_writers WHERE writer IN (
        SELECT writer FROM projection_writers WHERE at < now() - interval '7 days' FOR UPDATE SKIP LOCKED
    )
"""
# The row is written although only its number is asked for: in this way the statement waits for the end of the
# old connection's transaction also where that inserts the row, which no other transaction can see yet.
_LAST_TRANSACTION_NUMBER = """
    INSERT INTO projection_writers (writer, turn, at) VALUES (%s, 0, now())
    ON CONFLICT (writer) DO UPDATE SET at = excluded.at
    RETURNING turn
"""
_DELETE_WRITER = "DELETE FROM projection_writers WHERE writer = %s"

_STATEMENTS = Statements(
    param="%s", state_param="%s::jsonb", for_update="FOR UPDATE", state_bytes="octet_length(state::text)"
)

_MIGRATION_LOCK = 0x6B6579666F6C64  # an advisory lock: "keyfold" in ASCII

# SQLSTATE classes and codes (https://www.postgresql.org/docs/current/errcodes-appendix.html) that blame the
# data: data exception, integrity violation, program limit exceeded, and a RAISE in a trigger of the app's.
_DATA_REFUSED = ("22", "23", "54", "P0001")
# Codes that blame the connection, the server, or other transactions: the whole transaction has to be tried
# again. All others blame something in the statement.
_UNAVAILABLE = ("08", "25", "28", "3D", "40", "53", "57P", "58", "F0")
_LOCK_NOT_AVAILABLE = "55P03"
# Codes that are a definite "no" to a COMMIT. Any other failure of a COMMIT leaves it in doubt.
_COMMIT_REFUSED = ("09", "22", "23", "25", "27", "38", "39", "40", "42", "44", "54", "55", "57014", "P0")

_PROBE_SECONDS = 0.05


class PostgresDialect:
    """PostgreSQL: many writers at a time. A COMMIT whose answer is lost is looked up in the ledger."""

    statements = _STATEMENTS
    column_types = ColumnTypes(state="JSONB", moment="TIMESTAMPTZ", identity="BIGSERIAL PRIMARY KEY")
    gate = None

    def before_connecting(self, database: peewee.Database) -> None:
        pass  # a server can't be replaced by an empty file

    def connected(self, database: peewee.Database) -> None:
        pass

    def check_connection(self, database: peewee.Database) -> None:
        pass  # a connection to a server that is gone fails by itself

    def interrupt(self, connection: Any) -> None:
        with socket.socket(fileno=os.dup(connection.fileno())) as link:
            link.shutdown(socket.SHUT_RDWR)

    def select(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        names, keys = zip(*row_keys, strict=True)
        cursor = database.execute_sql(_SELECT, (list(names), list(keys)))
        return {
            (name, key): Row(epoch, version, schema, state.encode(), as_utc(at), halted, commit_id)
            for name, key, epoch, version, schema, state, at, halted, commit_id in cursor.fetchall()
        }

    def heads(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        names, keys = zip(*row_keys, strict=True)
        cursor = database.execute_sql(_SELECT_HEADS, (list(names), list(keys)))
        return {(name, key): Head(*head) for name, key, *head in cursor.fetchall()}

    def renew(self, database: peewee.Database, renewals: Sequence[Renewal]) -> list[RowKey]:
        columns = [list(column) for column in zip(*renewals, strict=True)]
        with database.atomic():
            return list(database.execute_sql(_RENEW, columns).fetchall())

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
        number = 0
        if ledger is not None:
            if ledger.is_clean_up_due():
                database.execute_sql(_DELETE_OLD_WRITERS)
            number = ledger.next_transaction_number()
        # The order is the same in every process, so that two of them rarely deadlock.
        ordered = sorted(saves)
        parameters: list[Any] = [
            json.encode([_flat(save) for save in ordered]).decode(),
            [save.state.decode() for save in ordered],
            ledger.writer if ledger is not None else None,
            number,
        ]
        sql = "BEGIN;" if lock_seconds is None else _BEGIN_WITH_LOCK_TIMEOUT % (1000 * lock_seconds)
        if letters:
            sql += _INSERT_LETTERS + ";"
            parameters = [list(column) for column in zip(*letters, strict=True)] + parameters
        try:
            cursor = database.execute_sql(sql + _WRITE, parameters)
            found = set(cursor.fetchall())
            amended = [amend(database, _STATEMENTS, amendment) for amendment in amendments]
        except Exception:
            _roll_back(database)
            raise
        written = [(save.name, save.key) in found for save in saves] + amended
        try:
            database.execute_sql("COMMIT")
            return written
        except Exception as error:
            if _sqlstate(error).startswith(_COMMIT_REFUSED):
                raise
            msg = f"the answer to a COMMIT was lost: {error}"
            raise CommitInDoubt(msg, transaction_number=number, written=written) from error

    def locked(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> set[RowKey]:
        there = self.heads(database, row_keys).keys()
        names, keys = zip(*row_keys, strict=True)
        try:
            sql = _BEGIN_WITH_LOCK_TIMEOUT % (1000 * _PROBE_SECONDS) + _SELECT_UNLOCKED
            unlocked = database.execute_sql(sql, (list(names), list(keys))).fetchall()
        finally:
            _roll_back(database)
        return there - set(unlocked)

    def has_committed(self, database: peewee.Database, ledger: Ledger, transaction_number: int) -> bool:
        cursor = database.execute_sql(_LAST_TRANSACTION_NUMBER, (ledger.writer,))
        return bool(cursor.fetchone() == (transaction_number,))

    def remove_writer(self, database: peewee.Database, ledger: Ledger) -> None:
        database.execute_sql(_DELETE_WRITER, (ledger.writer,))

    @contextmanager
    def migrating(self, database: peewee.Database) -> Iterator[None]:
        with database.atomic():
            # A large table takes its time, and a second process waits for as long.
            database.execute_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
            yield

    def blocks_migration(self, database: peewee.Database) -> bool:  # noqa: ARG002
        return False  # a transaction locks nothing that it has not used

    @contextmanager
    def without_waiting(self, database: peewee.Database) -> Iterator[None]:  # noqa: ARG002
        yield

    def is_busy(self, error: StoreError) -> bool:  # noqa: ARG002
        return False

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        # No data was sent, so that trying again later is right after any error.
        return StoreUnavailable(f"{where} can't be used at the moment: {type(error).__name__}: {error}")

    def classify(self, error: Exception, where: str) -> StoreError:
        text, code = str(error).strip(), _sqlstate(error)
        if code.startswith(_DATA_REFUSED):
            return StoreRejected(f"{where} refuses the data: {text}")
        if code and not code.startswith(_UNAVAILABLE):
            locked = code == _LOCK_NOT_AVAILABLE
            return StatementRefused(f"{where} can't do it at the moment: {text}", locked=locked)
        if isinstance(error, psycopg2.Error):
            return StoreUnavailable(f"{where} can't be used at the moment: {text}")
        if isinstance(error, (ValueError, TypeError, OverflowError)):
            return StoreRejected(f"the data can't be written to {where}: {error}")
        return StoreError(f"{where} failed in an unexpected way: {type(error).__name__}: {error}")


def _flat(save: Save) -> tuple[Any, ...]:
    """Return a save without its state, for the JSON text."""
    name, key, base, epoch, version, _, schema, base_commit_id, commit_id = save
    base_epoch, base_version = base or (None, None)
    return (name, key, base_epoch, base_version, epoch, version, schema, base_commit_id, commit_id)


def _sqlstate(error: Exception) -> str:
    return getattr(driver_error(error), "pgcode", None) or ""


def _roll_back(database: peewee.Database) -> None:
    try:
        database.execute_sql("ROLLBACK")
    except Exception:
        database.close()  # the connection is gone, and the transaction with it
