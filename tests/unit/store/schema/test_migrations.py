"""Migrations: forward and back, twice, and from two processes at once."""

from __future__ import annotations

import subprocess
import sys

import peewee
from keyfold.store import (
    CreateProjectionSnapshotsTable,
    SnapshotStore,
    migrate,
    open_database,
    pending,
    rollback,
)

ALL = [
    "CreateProjectionSnapshotsTable",
    "CreateProjectionDeadLettersTable",
    "CreateProjectionWritersTable",
    "AddHaltedKeys",
    "CreateProjectionProcessesTable",
    "AddCommitIds",
]
TABLES = ["projection_snapshots", "projection_dead_letters", "projection_writers"]


def existing(database: peewee.Database) -> list[str]:
    """Return which of our tables there are."""
    return [table for table in TABLES if database.table_exists(table)]


def test_forward_and_back_and_forward_again(database_url: str) -> None:
    """Each step is recorded, and undone newest first."""
    database = open_database(database_url)
    with database.connection_context():
        assert pending(database) == ALL
        assert migrate(database) == ALL
        assert existing(database) == TABLES
        assert migrate(database) == []
        assert rollback(database, to=1) == ALL[:0:-1]
        assert existing(database) == TABLES[:1]
        assert pending(database) == ALL[1:]
        assert migrate(database) == ALL[1:]
        assert rollback(database) == ALL[::-1]
        assert existing(database) == []
        assert rollback(database) == []


def test_two_processes_at_once_migrate_once(database_url: str) -> None:
    """Neither fails, and every step is recorded once."""
    program = (
        "import sys; from keyfold.store import SnapshotStore; sys.stdin.read(1); "
        f"SnapshotStore({database_url!r}).write('settings', sys.argv[1], 1)"
    )
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", program, f"key {number}"],
            stdin=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd="/",
        )
        for number in range(4)
    ]  # fmt: skip
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go")
        process.stdin.flush()
    for process in processes:
        _, errors = process.communicate(timeout=60)
        assert process.returncode == 0, errors
    store = SnapshotStore(database_url)
    assert [store.read("settings", f"key {number}") for number in range(4)] == [1] * 4
    with store.database.connection_context():
        [count] = store.database.execute_sql("SELECT count(*) FROM projection_migrations").fetchone()
    assert count == len(ALL)


def test_an_app_runs_the_step_in_a_migration_set_of_its_own(database_url: str) -> None:
    """``CreateProjectionSnapshotsTable`` works without our records; running ours after it does no harm."""
    database = open_database(database_url)
    with database.connection_context():
        CreateProjectionSnapshotsTable.forward(database)
        CreateProjectionSnapshotsTable.forward(database)
        assert existing(database) == TABLES[:1]
        migrate(database)
        assert existing(database) == TABLES
        CreateProjectionSnapshotsTable.back(database)
        assert existing(database) == TABLES[1:]


def test_without_auto_migrate_nothing_is_created(database_url: str) -> None:
    """``auto_migrate=False``: the app's own migrations make the tables."""
    database = open_database(database_url)
    SnapshotStore(database, auto_migrate=False).ensure_tables()
    with database.connection_context():
        assert existing(database) == []
