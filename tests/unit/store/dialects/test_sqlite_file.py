"""A file that is deleted or replaced while it is in use."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import peewee
import pytest
from keyfold.store import StoreUnavailable
from keyfold.store.connect.database import MemoryDatabase
from keyfold.store.dialects.sqlite_file import SqliteFile


@pytest.fixture
def database(tmp_path: Path) -> Iterator[peewee.SqliteDatabase]:
    """A file with a table, and a connection."""
    database = peewee.SqliteDatabase(str(tmp_path / "shop.db"))
    with database.connection_context():
        database.execute_sql("CREATE TABLE one (id INTEGER)")
        yield database


@pytest.mark.parametrize("replaced", [True, False])
def test_a_file_that_is_gone_or_another_one_is_noticed(
    database: peewee.SqliteDatabase, *, replaced: bool
) -> None:
    """By the connection that still has it open, and before a new connection to an empty path."""
    file, path = SqliteFile(), Path(database.database)
    file.check_path(database)  # nothing is known yet
    file.note_connection(database)
    file.check_connection(database)
    file.check_path(database)
    moved = path.rename(path.with_name("moved.db"))
    if replaced:
        path.write_bytes(moved.read_bytes())
    with pytest.raises(StoreUnavailable, match=r"shop\.db was deleted or replaced"):
        file.check_connection(database)
    if not replaced:
        with pytest.raises(StoreUnavailable):
            file.check_path(database)
        path.touch()
        with pytest.raises(StoreUnavailable):
            file.check_path(database)  # an empty file is not the one that was in use
        path.unlink()
    moved.replace(path)
    file.check_connection(database)
    file.check_path(database)


def test_a_connection_that_the_app_has_opened_is_taken_note_of(database: peewee.SqliteDatabase) -> None:
    """At its first check."""
    file = SqliteFile()
    file.check_connection(database)
    Path(database.database).unlink()
    with pytest.raises(StoreUnavailable):
        file.check_connection(database)


def test_a_database_in_memory_has_no_file() -> None:
    """Nothing is checked."""
    file, database = SqliteFile(), MemoryDatabase()
    with database.connection_context():
        file.note_connection(database)
        file.check_connection(database)
        file.check_path(database)
    database.release()
