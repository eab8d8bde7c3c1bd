"""The hot statements in PostgreSQL's dialect."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import psycopg2
from msgspec import json

from ..connect.database import driver_error
from ..errors import CommitInDoubt, StatementRefused, StoreError, StoreRejected, StoreUnavailable
from ..rows import Amendment, DeadLetter, Head, Renewal, Row, RowKey, Save
from ..schema.models import as_utc
from .amendments import amend

if TYPE_CHECKING:
    import peewee

    from ..writing.ledger import Ledger

_BEGIN_IMPATIENTLY = "BEGIN; SET LOCAL lock_timeout = %d;"  # in milliseconds
_WANTED = """
    FROM unnest(%s::text[], %s::text[]) AS wanted (name, key)
    JOIN projection_snapshots AS s ON s.projection_name = wanted.name AND s.key = wanted.key
"""
_SELECT = (
    "SELECT s.projection_name, s.key, s.epoch, s.version, s.schema_version, s.state::text, s.updated_at, s.halted, "
    "s.commit_id" + _WANTED
)
_SELECT_HEADS = "SELECT s.projection_name, s.key, s.epoch, s.version, s.commit_id" + _WANTED
# The condition is as Head.is_gone_from. Locked in an order, so that two that draw new epochs do not wait for each
# other in a ring.
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
# The lock that an UPDATE of ours takes.
_SELECT_UNLOCKED = "SELECT s.projection_name, s.key" + _WANTED + "FOR NO KEY UPDATE OF s SKIP LOCKED"

# One statement and one round trip for everything. Its own RETURNING says what was written: a later
# read could see somebody else's row and call it ours. What is small travels as one JSON text: as eight
# arrays, each item is a node to the server's parser, and 500 rows take twice as long. (A state in that
# text would be escaped twice, which a large one feels; inserted unescaped, it could break out of its place.)
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
_BURY = """
    INSERT INTO projection_dead_letters (projection_name, key, event_type, event, error, traceback, parked, at)
    SELECT *, now() FROM unnest(
        %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::text[], %s::boolean[]
    )
"""

# SQLSTATE classes and codes (https://www.postgresql.org/docs/current/errcodes-appendix.html) that blame the
# data: data exception, integrity violation, program limit exceeded, and a RAISE in a trigger of the app's.
_GUILTY_DATA = ("22", "23", "54", "P0001")
# ... that blame the connection, the server, or what goes on in it at the same time: the whole transaction
# has to be tried again. All others blame something in the statement.
_AWAY = ("08", "25", "28", "3D", "40", "53", "57P", "58", "F0")
_LOCK_NOT_AVAILABLE = "55P03"
# ... and those that are a definite "no" to a COMMIT. Any other failure of a COMMIT leaves it in doubt.
_DEFINITE = ("09", "22", "23", "25", "27", "38", "39", "40", "42", "44", "54", "55", "57014", "P0")

_PROBE_SECONDS = 0.05


class PostgresDialect:
    """PostgreSQL through psycopg2."""

    gate = None

    def before_connecting(self, database: peewee.Database) -> None:
        """Allow it: the server knows what is in use."""

    def connected(self, database: peewee.Database) -> None:
        """Take note of nothing."""

    def check_connection(self, database: peewee.Database) -> None:
        """Allow it: a server that is gone says so."""

    def select(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among row_keys."""
        names, keys = zip(*row_keys, strict=True)
        cursor = database.execute_sql(_SELECT, (list(names), list(keys)))
        return {
            (name, key): Row(epoch, version, schema, state.encode(), as_utc(at), halted, commit_id)
            for name, key, epoch, version, schema, state, at, halted, commit_id in cursor.fetchall()
        }

    def heads(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        """Return the commits of the rows that exist among row_keys."""
        names, keys = zip(*row_keys, strict=True)
        cursor = database.execute_sql(_SELECT_HEADS, (list(names), list(keys)))
        return {(name, key): Head(*head) for name, key, *head in cursor.fetchall()}

    def renew(self, database: peewee.Database, renewals: Sequence[Renewal]) -> list[RowKey]:
        """Draw new epochs, and return the row keys of the rows that got one."""
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
        """Write all in one transaction; say for each save and amendment whether its base was still there.

        Raises CommitInDoubt if the answer to the COMMIT got lost.
        """
        turn = ledger.next_turn(database) if ledger is not None else 0
        # In the same order in every process, so that two of them rarely wait for each other in a ring.
        ordered = sorted(saves)
        parameters: list[Any] = [
            json.encode([_flat(save) for save in ordered]).decode(),
            [save.state.decode() for save in ordered],
            ledger.writer if ledger is not None else None,
            turn,
        ]
        sql = "BEGIN;" if lock_seconds is None else _BEGIN_IMPATIENTLY % (1000 * lock_seconds)
        if letters:
            sql += _BURY + ";"
            parameters = [list(column) for column in zip(*letters, strict=True)] + parameters
        try:
            cursor = database.execute_sql(sql + _WRITE, parameters)
            found = set(cursor.fetchall())
            amended = [amend(database, amendment) for amendment in amendments]
        except Exception:
            _roll_back(database)
            raise
        written = [(save.name, save.key) in found for save in saves] + amended
        try:
            database.execute_sql("COMMIT")
            return written
        except Exception as error:
            if _sqlstate(error).startswith(_DEFINITE):
                raise
            msg = f"the answer to a COMMIT got lost: {error}"
            raise CommitInDoubt(msg, turn=turn, written=written) from error

    def locked(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the row keys whose rows another transaction has locked at the moment."""
        there = self.heads(database, row_keys).keys()
        names, keys = zip(*row_keys, strict=True)
        try:
            sql = _BEGIN_IMPATIENTLY % (1000 * _PROBE_SECONDS) + _SELECT_UNLOCKED
            unlocked = database.execute_sql(sql, (list(names), list(keys))).fetchall()
        finally:
            _roll_back(database)
        return there - set(unlocked)

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        """Say that trying again later can help: whatever went wrong, no data was sent."""
        return StoreUnavailable(f"{where} can't be used at the moment: {type(error).__name__}: {error}")

    def classify(self, error: Exception, where: str) -> StoreError:
        """Say whether trying again later can help."""
        text, code = str(error).strip(), _sqlstate(error)
        if code.startswith(_GUILTY_DATA):
            return StoreRejected(f"{where} refuses the data: {text}")
        if code and not code.startswith(_AWAY):
            locked = code == _LOCK_NOT_AVAILABLE
            return StatementRefused(f"{where} can't do it at the moment: {text}", locked=locked)
        if isinstance(error, psycopg2.Error):
            return StoreUnavailable(f"{where} can't be used at the moment: {text}")
        if isinstance(error, (ValueError, TypeError, OverflowError)):
            return StoreRejected(f"the data can't be written to {where}: {error}")
        return StoreError(f"{where} failed in an unexpected way: {type(error).__name__}: {error}")


def _flat(save: Save) -> tuple[Any, ...]:
    """All but the state."""
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
