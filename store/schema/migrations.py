"""The tables, step by step. Each step goes forward and back, and may run twice or in two processes."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from typing import ClassVar

import peewee

from ..dialects import new_dialect

_FLAGS = (("projection_snapshots", "halted"), ("projection_dead_letters", "parked"))


class Migration:
    """One step. ``forward`` and ``back`` run inside the caller's transaction, and may run twice."""

    number: ClassVar[int]

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Make the change."""
        raise NotImplementedError

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Undo the change. The data in it is lost."""
        raise NotImplementedError


class CreateProjectionSnapshotsTable(Migration):
    """The table of snapshots. With ``auto_migrate=False``, an app may run this step in its own migrations."""

    number = 1

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_snapshots."""
        types = new_dialect(database).column_types
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_snapshots (
                projection_name VARCHAR(128) NOT NULL,
                key VARCHAR(512) NOT NULL,
                state {types.state} NOT NULL,
                epoch VARCHAR(32) NOT NULL,
                version BIGINT NOT NULL,
                schema_version INTEGER NOT NULL DEFAULT 1,
                updated_at {types.moment} NOT NULL,
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
        types = new_dialect(database).column_types
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_dead_letters (
                id {types.identity},
                projection_name VARCHAR(128) NOT NULL,
                key VARCHAR(512) NOT NULL,
                event_type TEXT NOT NULL,
                event TEXT NOT NULL,
                error TEXT NOT NULL,
                traceback TEXT NOT NULL,
                at {types.moment} NOT NULL
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
    """The ledger, by which a writer learns whether a commit happened whose answer was lost."""

    number = 3

    @staticmethod
    def forward(database: peewee.Database) -> None:
        """Create projection_writers."""
        database.execute_sql(
            f"""
            CREATE TABLE IF NOT EXISTS projection_writers (
                writer VARCHAR(32) PRIMARY KEY,
                turn BIGINT NOT NULL,
                at {new_dialect(database).column_types.moment} NOT NULL
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
        """Add projection_snapshots.halted and projection_dead_letters.parked, with partial indexes."""
        for table, column in _FLAGS:
            if column not in _columns(database, table):
                database.execute_sql(
                    f"ALTER TABLE {table} ADD COLUMN {column} BOOLEAN NOT NULL DEFAULT FALSE"
                )
            database.execute_sql(
                f"CREATE INDEX IF NOT EXISTS {table}_{column} "
                f"ON {table} (projection_name, key) WHERE {column}"
            )

    @staticmethod
    def back(database: peewee.Database) -> None:
        """Drop the two columns."""
        for table, column in _FLAGS:
            database.execute_sql(f"DROP INDEX IF EXISTS {table}_{column}")
            if column in _columns(database, table):
                database.execute_sql(f"ALTER TABLE {table} DROP COLUMN {column}")


class CreateProjectionProcessesTable(Migration):
    """The last report of each running process, so that an operator sees all of them."""

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
    """The commit that a row holds: after the restore of a backup its version alone does not tell."""

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
    """Return the names of the steps that a database has not had yet.

    Args:
        database: A database that ``open_database`` has returned, with a connection open.

    Returns:
        The names in the order of the steps.
    """
    return [step.__name__ for step in MIGRATIONS if step.number not in _applied(database)]


def migrate(database: peewee.Database) -> list[str]:
    """Run all pending steps in one transaction. Takes no lock if none is pending.

    Args:
        database: A database that ``open_database`` has returned, with a connection open.

    Returns:
        The names of the steps that were run.
    """
    if not pending(database):
        return []
    sql = new_dialect(database).statements.record_migration
    with _exclusively(database):
        applied = _applied(database)
        steps = [step for step in MIGRATIONS if step.number not in applied]
        for step in steps:
            step.forward(database)
            database.execute_sql(sql, (step.number, step.__name__, datetime.now(UTC).isoformat()))
    return [step.__name__ for step in steps]


def rollback(database: peewee.Database, *, to: int = 0) -> list[str]:
    """Undo steps in one transaction, the newest first. The data of dropped tables and columns is lost.

    Args:
        database: A database that ``open_database`` has returned, with a connection open.
        to: The number of the newest step that stays; 0 undoes all of them.

    Returns:
        The names of the steps that were undone.
    """
    sql = new_dialect(database).statements.delete_migration
    with _exclusively(database):
        applied = _applied(database)
        steps = [step for step in reversed(MIGRATIONS) if to < step.number and step.number in applied]
        for step in steps:
            step.back(database)
            database.execute_sql(sql, (step.number,))
    return [step.__name__ for step in steps]


def _columns(database: peewee.Database, table: str) -> set[str]:
    return {column.name for column in database.get_columns(table)}


def _applied(database: peewee.Database) -> set[int]:
    if not database.table_exists("projection_migrations"):
        return set()
    rows: Iterator[tuple[int]] = database.execute_sql("SELECT number FROM projection_migrations")
    return {number for (number,) in rows}


@contextmanager
def _exclusively(database: peewee.Database) -> Iterator[None]:
    """Enter a transaction that no other process migrates in, with the table of applied steps."""
    with new_dialect(database).migrating(database):
        database.execute_sql(
            "CREATE TABLE IF NOT EXISTS projection_migrations "
            "(number INTEGER PRIMARY KEY, name TEXT NOT NULL, at TEXT NOT NULL)"
        )
        yield
