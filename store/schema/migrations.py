"""The tables, step by step: each step forward and back, recorded, safe to run twice or side by side."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar

import peewee

from ..connect.database import is_postgres

_FLAGS = (("projection_snapshots", "halted"), ("projection_dead_letters", "parked"))
_LOCK = 0x6B6579666F6C64  # an advisory lock of PostgreSQL: "keyfold" in ASCII


class Migration:
    """One step. ``forward(db)`` and ``back(db)`` run inside the caller's transaction; twice does no harm."""

    number: ClassVar[int]

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Make the change."""
        raise NotImplementedError

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Undo the change, and lose what it holds."""
        raise NotImplementedError


class CreateProjectionSnapshotsTable(Migration):
    """The table of snapshots. An app may run it in a migration set of its own (``auto_migrate=False``)."""

    number = 1

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_snapshots."""
        # TEXT and not JSON on SQLite: a type it does not know has numeric affinity, and "0" becomes 0.
        json, moment = ("JSONB", "TIMESTAMPTZ") if is_postgres(database) else ("TEXT", "TEXT")
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_snapshots (
                projection_name VARCHAR(128) NOT NULL,
                key VARCHAR(512) NOT NULL,
                state {json} NOT NULL,
                epoch VARCHAR(32) NOT NULL,
                version BIGINT NOT NULL,
                schema_version INTEGER NOT NULL DEFAULT 1,
                updated_at {moment} NOT NULL,
                PRIMARY KEY (projection_name, key)
            )
            """
        )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop projection_snapshots."""
        database.execute_sql("DROP TABLE IF EXISTS projection_snapshots")


class CreateProjectionDeadLettersTable(Migration):
    """The table of events that could not be folded."""

    number = 2

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_dead_letters."""
        postgres = is_postgres(database)
        identity = "BIGSERIAL PRIMARY KEY" if postgres else "INTEGER PRIMARY KEY AUTOINCREMENT"
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_dead_letters (
                id {identity},
                projection_name VARCHAR(128) NOT NULL,
                key VARCHAR(512) NOT NULL,
                event_type TEXT NOT NULL,
                event TEXT NOT NULL,
                error TEXT NOT NULL,
                traceback TEXT NOT NULL,
                at {"TIMESTAMPTZ" if postgres else "TEXT"} NOT NULL
            )
            """
        )
        database.execute_sql(
            "CREATE INDEX IF NOT EXISTS projection_dead_letters_of_key "
            "ON projection_dead_letters (projection_name, key)"
        )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop projection_dead_letters."""
        database.execute_sql("DROP TABLE IF EXISTS projection_dead_letters")


class CreateProjectionWritersTable(Migration):
    """The ledger of commits, by which a writer learns what became of a commit whose answer was lost."""

    number = 3

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_writers."""
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_writers (
                writer VARCHAR(32) PRIMARY KEY,
                turn BIGINT NOT NULL,
                at {"TIMESTAMPTZ" if is_postgres(database) else "TEXT"} NOT NULL
            )
            """
        )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop projection_writers."""
        database.execute_sql("DROP TABLE IF EXISTS projection_writers")


class AddHaltedKeys(Migration):
    """Keys that wait for an operator, and the events parked for them."""

    number = 4

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Add projection_snapshots.halted and projection_dead_letters.parked, with indexes of those that are."""
        for table, column in _FLAGS:
            if column not in _columns(database, table):
                database.execute_sql(
                    f"ALTER TABLE {table} ADD COLUMN {column} BOOLEAN NOT NULL DEFAULT FALSE"
                )
            database.execute_sql(
                f"CREATE INDEX IF NOT EXISTS {table}_{column} ON {table} (projection_name, key) WHERE {column}"
            )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop the two columns."""
        for table, column in _FLAGS:
            database.execute_sql(f"DROP INDEX IF EXISTS {table}_{column}")
            if column in _columns(database, table):
                database.execute_sql(f"ALTER TABLE {table} DROP COLUMN {column}")


class CreateProjectionProcessesTable(Migration):
    """What each running process last said of itself, so that an operator sees all of them."""

    number = 5

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_processes."""
        database.execute_sql(
            """
            CREATE TABLE IF NOT EXISTS projection_processes (
                process VARCHAR(64) PRIMARY KEY,
                facts TEXT NOT NULL,
                at DOUBLE PRECISION NOT NULL
            )
            """
        )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop projection_processes."""
        database.execute_sql("DROP TABLE IF EXISTS projection_processes")


class AddCommitIds(Migration):
    """Which commit a row holds: its version alone does not say it, once a backup was restored."""

    number = 6

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Add projection_snapshots.commit_id."""
        if "commit_id" not in _columns(database, "projection_snapshots"):
            database.execute_sql("ALTER TABLE projection_snapshots ADD COLUMN commit_id VARCHAR(32)")

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop the column."""
        if "commit_id" in _columns(database, "projection_snapshots"):
            database.execute_sql("ALTER TABLE projection_snapshots DROP COLUMN commit_id")


MIGRATIONS: tuple[type[Migration], ...] = (
    CreateProjectionSnapshotsTable,
    CreateProjectionDeadLettersTable,
    CreateProjectionWritersTable,
    AddHaltedKeys,
    CreateProjectionProcessesTable,
    AddCommitIds,
)


def pending(database: peewee.Database) -> list[str]:
    """Return the names of the steps that this database has not had yet, in order."""
    return [step.__name__ for step in MIGRATIONS if step.number not in _applied(database)]


def migrate(database: peewee.Database) -> list[str]:
    """Run all pending steps in one transaction, and return their names. Nothing pending: no lock is taken."""
    if not pending(database):
        return []
    with _exclusively(database):
        applied = _applied(database)
        todo = [step for step in MIGRATIONS if step.number not in applied]
        for step in todo:
            step.forward(database)
            database.execute_sql(
                _bound(database, "INSERT INTO projection_migrations (number, name, at) VALUES (?, ?, ?)"),
                (step.number, step.__name__, datetime.now(UTC).isoformat()),
            )
    return [step.__name__ for step in todo]


def rollback(database: peewee.Database, *, to: int = 0) -> list[str]:
    """Undo all steps above number ``to``, newest first, in one transaction, and return their names."""
    with _exclusively(database):
        applied = _applied(database)
        todo = [step for step in reversed(MIGRATIONS) if to < step.number and step.number in applied]
        for step in todo:
            step.back(database)
            delete = _bound(database, "DELETE FROM projection_migrations WHERE number = ?")
            database.execute_sql(delete, (step.number,))
    return [step.__name__ for step in todo]


def _columns(database: peewee.Database, table: str) -> set[str]:
    return {column.name for column in database.get_columns(table)}


def _applied(database: peewee.Database) -> set[int]:
    if not database.table_exists("projection_migrations"):
        return set()
    rows: Iterator[tuple[int]] = database.execute_sql("SELECT number FROM projection_migrations")
    return {number for (number,) in rows}


@contextmanager
def _exclusively(database: peewee.Database) -> Iterator[None]:
    """One transaction that no other process migrates in. DDL is transactional in both databases."""
    postgres = is_postgres(database)
    with database.atomic() if postgres else database.atomic("IMMEDIATE"):
        if postgres:
            # A large table takes its time, and whoever comes second waits for as long.
            database.execute_sql("SET LOCAL statement_timeout = 0; SET LOCAL lock_timeout = 0")
            database.execute_sql("SELECT pg_advisory_xact_lock(%s)", (_LOCK,))
        database.execute_sql(
            "CREATE TABLE IF NOT EXISTS projection_migrations "
            "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL)"
        )
        yield


def _bound(database: peewee.Database, sql: str) -> str:
    return sql.replace("?", database.param)
