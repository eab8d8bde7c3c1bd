"""The contract of a dialect, kept by both of them."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from datetime import UTC, datetime, timedelta
from itertools import product
from typing import cast

import peewee
import pytest
from keyfold.store import Position, StoreRejected, StoreUnavailable, migrate, open_database
from keyfold.store.dialects import new_dialect
from keyfold.store.dialects.base import Dialect
from keyfold.store.rows import Amendment, DeadLetter, Head, Renewal, Save
from keyfold.store.writing.ledger import Ledger

NAME = "test"
LETTER = DeadLetter(NAME, "a", "Added", "{}", "ValueError: text", "", parked=True)


@pytest.fixture
def database(database_url: str) -> Iterator[peewee.Database]:
    """A database with tables, and a connection of the test's thread."""
    database = open_database(database_url)
    with database.connection_context():
        migrate(database)
        yield database
    release = getattr(database, "release", None)
    if release is not None:
        release()


@pytest.fixture
def dialect(database: peewee.Database) -> Dialect:
    """The dialect of the database."""
    return new_dialect(database)


def save(key: str, version: int, commit_id: str | None = None) -> Save:
    base = Position("e", version - 1) if version > 1 else None
    return Save(NAME, key, base, "e", version, b'{"text": "%s ? \'"}', 1, None, commit_id)


def commit(
    dialect: Dialect, database: peewee.Database, *saves: Save, ledger: Ledger | None = None
) -> list[bool]:
    return dialect.commit(database, saves, [], [], ledger, lock_seconds=None)


def test_rows_come_back_as_they_were_written(dialect: Dialect, database: peewee.Database) -> None:
    """A state with both placeholders in it as well; row keys without a row are left out."""
    assert commit(dialect, database, save("a", 1, "id")) == [True]
    [(row_key, row)] = dialect.select(database, [(NAME, "a"), (NAME, "b"), ("other", "a")]).items()
    assert row_key == (NAME, "a")
    assert (row.epoch, row.version, row.schema_version, row.halted, row.commit_id) == ("e", 1, 1, False, "id")
    assert row.state == b'{"text": "%s ? \'"}'
    assert abs(row.updated_at - datetime.now(UTC)) < timedelta(minutes=1)
    assert dialect.heads(database, [(NAME, "a"), (NAME, "b")]) == {(NAME, "a"): Head("e", 1, "id")}


def test_a_commit_answers_for_each_save_in_its_order(dialect: Dialect, database: peewee.Database) -> None:
    """A save without its base is not written; the others of the same transaction are."""
    assert commit(dialect, database, save("b", 1), save("a", 1)) == [True, True]
    assert commit(dialect, database, save("b", 2), save("c", 5), save("a", 1), save("d", 1)) == [
        True, False, False, True,
    ]  # fmt: skip
    rows = dialect.select(database, [(NAME, key) for key in "abcd"])
    assert {key: row.version for (_, key), row in rows.items()} == {"a": 1, "b": 2, "d": 1}


def test_amendments_are_answered_after_the_saves(dialect: Dialect, database: peewee.Database) -> None:
    """One that lost its base changes nothing; a halted row takes no save."""
    commit(dialect, database, save("a", 1), save("b", 1))
    at = Position("e", 1)
    halt = Amendment(NAME, "a", at, was_halted=False, position=at, halt=True, letters=(LETTER,))
    lost = Amendment(NAME, "b", Position("e", 9), was_halted=False, position=Position("e", 9), halt=True)
    assert dialect.commit(database, [save("b", 2)], [], [halt, lost], None, lock_seconds=1.0) == [
        True, True, False,
    ]  # fmt: skip
    assert commit(dialect, database, save("a", 2)) == [False]
    rows = dialect.select(database, [(NAME, "a"), (NAME, "b")])
    assert {key: row.halted for (_, key), row in rows.items()} == {"a": True, "b": False}


def test_a_failed_commit_leaves_no_transaction_and_no_rows(
    dialect: Dialect, database: peewee.Database
) -> None:
    """Dead letters, saves and the connection's next transaction."""
    bad = save("a", 1)._replace(epoch=cast("str", None))
    with pytest.raises(Exception) as caught:
        dialect.commit(database, [bad, save("b", 1)], [LETTER], [], None, lock_seconds=None)
    error = getattr(caught.value, "orig", None) or caught.value
    assert isinstance(dialect.classify(error, "here"), StoreRejected)
    assert dialect.heads(database, [(NAME, "b")]) == {}
    assert commit(dialect, database, save("b", 1)) == [True]


def test_only_rows_that_lost_their_commit_get_new_epochs(dialect: Dialect, database: peewee.Database) -> None:
    """As ``Head.is_gone_from`` says; state and version stay."""
    commit(dialect, database, *(save(key, 1, f"id of {key}") for key in "abcd"))
    lost = [
        Renewal(NAME, "a", "e", 1, "another id", "new a"),
        Renewal(NAME, "b", "e", 2, "another id", "new b"),
        Renewal(NAME, "c", "e", 1, "id of c", "new c"),
        Renewal(NAME, "d", "another epoch", 2, "another id", "new d"),
        Renewal(NAME, "absent", "e", 1, None, "new"),
    ]
    assert set(dialect.renew(database, lost)) == {(NAME, "a"), (NAME, "b")}
    heads = dialect.heads(database, [(NAME, key) for key in "abcd"])
    assert [(head.epoch, head.version) for _, head in sorted(heads.items())] == [
        ("new a", 1), ("new b", 1), ("e", 1), ("e", 1),
    ]  # fmt: skip


def test_the_ledger_tells_of_its_own_commits_only(dialect: Dialect, database: peewee.Database) -> None:
    """SQLite keeps none, as no commit is ever in doubt there."""
    ledger, other = Ledger(), Ledger()
    commit(dialect, database, save("a", 1), ledger=ledger)
    writers = database.execute_sql("SELECT writer, turn FROM projection_writers").fetchall()
    keeps_ledger = isinstance(database, peewee.PostgresqlDatabase)
    assert writers == ([(ledger.writer, 1)] if keeps_ledger else [])
    assert dialect.has_committed(database, ledger, 1) is keeps_ledger
    assert not dialect.has_committed(database, ledger, 2)
    assert not dialect.has_committed(database, other, 1)
    dialect.remove_writer(database, ledger)
    dialect.remove_writer(database, other)
    assert database.execute_sql("SELECT count(*) FROM projection_writers").fetchone() == (0,)


def test_a_migration_that_fails_leaves_nothing(dialect: Dialect, database: peewee.Database) -> None:
    """DDL is a part of its transaction."""

    def migrate_and_fail() -> None:
        with dialect.migrating(database):
            database.execute_sql("CREATE TABLE half_made (id INTEGER)")
            raise ArithmeticError

    with pytest.raises(ArithmeticError):
        migrate_and_fail()
    assert not database.table_exists("half_made")


def test_column_types_are_those_of_the_tables(dialect: Dialect, database: peewee.Database) -> None:
    """As the first migration has made them."""
    types = {column.name: column.data_type for column in database.get_columns("projection_snapshots")}
    names = {"JSONB": "jsonb", "TIMESTAMPTZ": "timestamp with time zone"}
    assert types["state"] == names.get(dialect.column_types.state, dialect.column_types.state)
    assert types["updated_at"] == names.get(dialect.column_types.moment, dialect.column_types.moment)


def test_every_statement_of_operators_can_be_run(dialect: Dialect, database: peewee.Database) -> None:
    """Each combination of conditions, with as many parameters as it says."""
    statements = dialect.statements
    database.execute_sql(statements.insert_letter, (*LETTER, datetime.now(UTC).isoformat()))
    commit(dialect, database, save("a", 1))
    for name, key, parked in product((True, False), repeat=3):
        given = [NAME] * name + ["a"] * key
        sql = statements.letters(name=name, key=key, parked=parked)
        assert len(database.execute_sql(sql, (*given, 0, 10)).fetchall()) == 1
        sql = statements.epochs(name=name, key=key)
        assert database.execute_sql(sql, (*given, "", "", 10)).fetchall() == [(NAME, "a", "e")]
    for halted, largest in product((True, False), repeat=2):
        sql = statements.keys(halted=halted, largest=largest)
        rows = database.execute_sql(sql, (NAME, "", 1, "a", 10)).fetchall()
        assert len(rows) == (0 if halted else 1)


def test_the_size_of_a_state_is_counted_in_bytes(dialect: Dialect, database: peewee.Database) -> None:
    """Not in characters."""
    commit(dialect, database, save("a", 1)._replace(state='"Übergröße"'.encode()))
    sql = dialect.statements.keys(halted=False, largest=True)
    [row] = database.execute_sql(sql, (NAME, "", 0, "", 10)).fetchall()
    assert row[6] == len('"Übergröße"'.encode())


def test_errors_say_whether_trying_again_can_help(dialect: Dialect) -> None:
    """Data that can't be written will not be writable later; a failed connection says nothing of any data."""
    assert isinstance(dialect.classify(ValueError("a NUL"), "here"), StoreRejected)
    assert isinstance(dialect.classify_connecting(OSError("no route"), "here"), StoreUnavailable)
    assert not dialect.is_busy(StoreUnavailable("the server is starting up"))


def test_only_a_transaction_that_keeps_others_from_writing_blocks_a_migration(
    dialect: Dialect, database: peewee.Database
) -> None:
    """On SQLite, which has one writer at a time."""
    assert not dialect.blocks_migration(database)
    with database.atomic():
        database.execute_sql("SELECT 1")
        assert dialect.blocks_migration(database) is isinstance(database, peewee.SqliteDatabase)
    with dialect.without_waiting(database):
        assert database.execute_sql("SELECT 1").fetchone() == (1,)


def test_a_row_that_another_transaction_writes_is_locked_where_rows_have_locks(
    dialect: Dialect, database: peewee.Database
) -> None:
    """PostgreSQL; SQLite locks its file, and so no row is in the way."""
    commit(dialect, database, save("a", 1), save("b", 1))
    row_keys = [(NAME, "a"), (NAME, "b"), (NAME, "absent")]
    assert dialect.locked(database, row_keys) == set()
    if isinstance(database, peewee.SqliteDatabase):
        return
    is_locked, is_looked_at = threading.Event(), threading.Event()

    def hold() -> None:
        with database.connection_context(), database.atomic():
            database.execute_sql("UPDATE projection_snapshots SET version = 7 WHERE key = 'a'")
            is_locked.set()
            is_looked_at.wait(10)

    holder = threading.Thread(target=hold)
    holder.start()
    assert is_locked.wait(10)
    locked = dialect.locked(database, row_keys)
    is_looked_at.set()
    holder.join()
    assert locked == {(NAME, "a")}
