"""The store: version checks, one transaction, errors that say whether to try again."""

from __future__ import annotations

import itertools
import os
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import peewee
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from keyfold.store import (
    DecodeError,
    EncodeError,
    InvalidKey,
    Position,
    ProjectionDeadLetter,
    ProjectionError,
    ProjectionKey,
    ProjectionSnapshot,
    SnapshotStore,
    StoreError,
    StoreRejected,
    StoreUnavailable,
    VersionConflict,
    open_database,
)
from keyfold.store.dialects.postgres import _MIGRATION_LOCK
from keyfold.store.rows import DeadLetter, Head, Save, new_commit_id
from support.parking import DEADLINE

FIRST = Save("test", "a", None, "e1", 1, b'{"n":1}')
LETTER = DeadLetter("test", "a", "Event", '"\\u0000"', "error", "traceback")


def position(store: SnapshotStore, key: str = "a") -> Position | None:
    """Return where the row of a key stands."""
    row = store.row("test", key)
    return None if row is None else Position(row.epoch, row.version)


# -- rows that went back


def test_a_row_gets_a_new_epoch_where_it_has_lost_a_commit_and_nowhere_else(store: SnapshotStore) -> None:
    """The statement decides as Head.is_gone_from does, for each row by itself; state and version stay."""
    heads = [Head(epoch, version, id_) for epoch in "ef" for version in (1, 2, 3) for id_ in (None, "x", "y")]
    losses = [*heads, Head.end_of("e")]
    cases = {f"{index:03}": pair for index, pair in enumerate(itertools.product(heads, losses))}
    saves = [
        Save("test", key, None, row.epoch, row.version, b'{"n":1}', commit_id=row.commit_id)
        for key, (row, _) in cases.items()
    ]
    assert all(store.commit(saves))
    renewed = store.renew([("test", key, lost) for key, (_, lost) in cases.items()])
    expected = {key for key, (row, lost) in cases.items() if lost.is_gone_from(row)}
    assert {key for _, key in renewed} == expected
    for (_, key), after in store.rows([("test", key) for key in cases]).items():
        before, _ = cases[key]
        assert (after.epoch == before.epoch) == (key not in expected)
        assert after.head._replace(epoch=before.epoch) == before
    assert store.renew([]) == []


# -- version checks


def test_a_row_is_inserted_only_where_none_is(store: SnapshotStore) -> None:
    """Promise 2: the second insert of the same key is a conflict and changes nothing."""
    assert store.commit([FIRST]) == [True]
    assert store.commit([FIRST._replace(epoch="e2", version=9)]) == [False]
    assert position(store) == ("e1", 1)


@pytest.mark.parametrize("base", [("e1", 2), ("e2", 1), ("e1", 0)])
def test_a_row_is_updated_only_over_its_position(store: SnapshotStore, base: tuple[str, int]) -> None:
    """Promise 2: both epoch and version must match; and promise 3, the new epoch may differ (a rebuild)."""
    store.commit([FIRST])
    later = Save("test", "a", Position(*base), "e3", 7, b'{"n":7}')
    assert store.commit([later]) == [False]
    assert position(store) == ("e1", 1)
    assert store.commit([later._replace(base=Position("e1", 1))]) == [True]
    assert position(store) == ("e3", 7)
    row = store.row("test", "a")
    assert row is not None
    assert row.state.replace(b" ", b"") == b'{"n":7}'
    assert abs(row.updated_at - datetime.now(UTC)) < timedelta(minutes=1)


def test_conflicts_in_a_batch_are_told_apart(store: SnapshotStore) -> None:
    """Promise 2: in one transaction, each save is answered for itself; the good ones are written."""
    store.commit([Save("test", f"k{n}", None, "e", 1, b"1") for n in range(6)])
    saves = [Save("test", f"k{n}", Position("e", 1 if n % 2 else 5), "e", 2, b"2") for n in range(6)] + [
        Save("test", "new", None, "e", 1, b"1"),
        Save("test", "k0", None, "e", 1, b"1"),
    ][:1]
    assert store.commit(saves) == [False, True, False, True, False, True, True]
    assert [position(store, f"k{n}") for n in range(4)] == [("e", 1), ("e", 2), ("e", 1), ("e", 2)]


def test_of_fifty_warm_connections_racing_one_version_exactly_one_wins(
    make_store: Callable[[], SnapshotStore],
) -> None:
    """Promise 2: the row count of the same statement decides, never a later read."""
    make_store().commit([FIRST])
    together = threading.Barrier(50)

    def race(number: int) -> bool:
        store = make_store()
        store.keep_connection()
        try:
            assert position(store) == ("e1", 1)  # warm
            together.wait(DEADLINE)
            save = Save("test", "a", Position("e1", 1), "e1", 2, str(number).encode())
            return store.commit([save])[0]
        finally:
            store.disconnect()

    with ThreadPoolExecutor(50) as pool:
        wins = list(pool.map(race, range(50)))
    assert wins.count(True) == 1
    row = make_store().row("test", "a")
    assert row is not None
    assert (row.version, row.state) == (2, str(wins.index(True)).encode())


def test_of_twenty_inserts_of_one_key_exactly_one_wins(make_store: Callable[[], SnapshotStore]) -> None:
    """Promise 2 where there is no row yet to lock."""
    make_store().ensure_tables()
    together = threading.Barrier(20)

    def race(number: int) -> bool:
        store = make_store()
        together.wait(DEADLINE)
        return store.commit([FIRST._replace(epoch=f"e{number}")])[0]

    with ThreadPoolExecutor(20) as pool:
        assert list(pool.map(race, range(20))).count(True) == 1


def test_a_commit_is_one_transaction(store: SnapshotStore) -> None:
    """A refused row takes the whole transaction back, dead letters too."""
    too_long = Save("test", "k" * 600, None, "e", 1, b"1")
    if isinstance(store.database, peewee.SqliteDatabase):
        too_long = Save("test", None, None, "e", 1, b"1")  # type: ignore[arg-type]
    with pytest.raises(StoreRejected):
        store.commit([FIRST, too_long], [LETTER])
    assert position(store) is None
    assert store.commit([FIRST], [LETTER]) == [True]
    [letter] = ProjectionDeadLetter.select().execute(store.database)
    assert (letter.event, letter.key) == ('"\\u0000"', "a")


def test_a_key_may_be_of_a_subclass_of_str(store: SnapshotStore) -> None:
    """As an app's own ``key()`` may return; it is stored as the string that it is."""
    key = ProjectionKey('a "key" \\ with é signs')
    assert store.commit([Save("p", key, None, "e", 1, b"{}", 1)]) == [True]
    assert store.commit([Save("p", key, Position("e", 1), "e", 2, b"{}", 1)]) == [True]
    row = store.row("p", str(key))
    assert row is not None
    assert row.version == 2


def test_rows_are_read_in_one_batch(store: SnapshotStore) -> None:
    """Only those that exist, with keys that need quoting in every dialect."""
    keys = [
        "plain",
        "it's",
        'dou"ble',
        "back\\slash",
        "per%cent",
        "{brace}",
        "näme/..//日本 語",
        "a,b",
        "NULL",
    ]
    store.commit([Save("test", key, None, "e", number, b"{}") for number, key in enumerate(keys, 1)])
    found = store.rows([("test", key) for key in (*keys, "absent")])
    assert {key: found["test", key].version for key in keys} == {key: n for n, key in enumerate(keys, 1)}
    assert len(found) == len(keys)
    assert store.rows([]) == {}


def test_heads_are_those_of_the_rows(store: SnapshotStore) -> None:
    """For any number of keys, tombstones included; without a row there is none."""
    saves = [Save("test", f"k{n}", None, "e1", n + 1, b"null" if n % 2 else b"1") for n in range(600)]
    assert all(store.commit(saves))
    addresses = [("test", f"k{n}") for n in range(601)] + [("other", "k1")]
    rows = store.rows(addresses)
    assert store.heads(addresses) == {address: row.head for address, row in rows.items()}
    assert len(rows) == 600
    assert store.heads([]) == {}


def test_the_same_key_twice_in_one_commit_is_refused(store: SnapshotStore) -> None:
    """Which of the two would it be?"""
    with pytest.raises(StoreRejected, match="same key twice"):
        store.commit([FIRST, FIRST])


# -- the public door


def test_values_of_ones_own_are_written_and_read(store: SnapshotStore) -> None:
    """``write`` and ``read`` without a projection; every JSON scalar keeps its type."""
    for value in ({"dark": True}, [1, 2.5, None], "text", "0", 0, 17, 1.5, False):
        written = store.write("settings", "theme", value)
        found = store.read("settings", "theme")
        assert (found, type(found)) == (value, type(value))
    assert written.version == 8
    assert store.read("settings", "absent") is None
    assert store.read("settings", "theme", bool) is False
    with pytest.raises(DecodeError):
        store.read("settings", "theme", dict)
    with pytest.raises(EncodeError):
        store.write("settings", "theme", object())
    with pytest.raises(InvalidKey):
        store.write("settings", "", 1)
    with pytest.raises(ProjectionError, match="not a valid projection name"):
        store.write("no name", "a", 1)


def test_a_value_may_be_written_over_a_known_one_only(store: SnapshotStore) -> None:
    """Promise 2 for values of one's own: VersionConflict with the facts, and nothing written."""
    first = store.write("settings", "theme", 1)
    second = store.write("settings", "theme", 2, expected=first)
    with pytest.raises(VersionConflict, match="no longer at") as caught:
        store.write("settings", "theme", 3, expected=first)
    assert (caught.value.projection, caught.value.key) == ("settings", "theme")
    assert caught.value.expected == str(first)
    assert store.read("settings", "theme") == 2
    assert second == (first.epoch, 2)


def test_concurrent_writes_of_one_value_all_count(make_store: Callable[[], SnapshotStore]) -> None:
    """The last writer wins, but no write is lost from the version."""
    make_store().ensure_tables()

    def write(number: int) -> None:
        store = make_store()
        for _ in range(10):
            store.write("settings", "a", number)

    with ThreadPoolExecutor(4) as pool:
        list(pool.map(write, range(4)))
    row = make_store().row("settings", "a")
    assert row is not None
    assert row.version == 40


def test_the_model_reads_what_the_store_wrote(store: SnapshotStore) -> None:
    """``ProjectionSnapshot`` is a Peewee model for an app's own queries."""
    store.write("settings", "theme", {"dark": True})
    with store.database.bind_ctx([ProjectionSnapshot]):
        [row] = ProjectionSnapshot.select().where(ProjectionSnapshot.projection_name == "settings")
    assert (row.key, row.version, row.state) == ("theme", 1, {"dark": True})
    assert row.updated_at.tzinfo is not None


# -- keys


@pytest.mark.parametrize(
    ("key", "reason"),
    [
        ("", "empty"),
        ("k" * 513, "513 characters"),
        ("a\nb", r"U\+000A"),
        ("nul\0", r"U\+0000"),
        ("\ud800", r"U\+D800"),
        ("\u2028", r"U\+2028"),
        (5, "a int, not a str"),
        (None, "a NoneType"),
    ],
)
def test_a_bad_key_is_refused_with_the_reason(store: SnapshotStore, key: Any, reason: str) -> None:
    """InvalidKey names the rule that it breaks."""
    with pytest.raises(InvalidKey, match=reason):
        ProjectionKey(key)
    with pytest.raises(InvalidKey, match=reason):
        store.write("test", key, 1)


@pytest.mark.parametrize(
    "key",
    ["k" * 512, "a b", "a/b.c", "日本", "👩‍🚀" * 50, "می‌خواهم", "\u00a0", "𝕂" * 512],
)
def test_every_other_key_goes_all_the_way(store: SnapshotStore, key: str) -> None:
    """Any script, spaces, emoji, 512 characters of four bytes each."""
    assert ProjectionKey(key) == key
    store.write("n" * 128, key, 1)
    assert store.read("n" * 128, ProjectionKey(key)) == 1


@settings(max_examples=50, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.text(min_size=1, max_size=40))
def test_a_key_is_refused_or_kept_exactly(store: SnapshotStore, key: str) -> None:
    """Nothing in between."""
    try:
        store.write("test", key, key.encode(errors="replace").decode())
    except InvalidKey:
        return
    assert store.row("test", key) is not None


# -- trouble


def test_data_that_the_database_refuses_is_rejected_and_the_next_commit_works(postgres_url: str) -> None:
    """``\\u0000`` in JSON on PostgreSQL: StoreRejected, not Unavailable, and the connection goes on."""
    store = SnapshotStore(postgres_url)
    store.keep_connection()
    with pytest.raises(StoreRejected, match="refuses the data"):
        store.commit([FIRST._replace(state=b'{"a":"\\u0000"}')])
    assert store.commit([FIRST]) == [True]
    store.disconnect()


def test_a_file_that_is_no_database_is_named(tmp_path: Path) -> None:
    """A clear, permanent error, and the file stays as it is."""
    file = tmp_path / "notes.txt"
    file.write_text("not a database at all, but long enough to be looked at as one " * 20)
    before = file.read_bytes()
    with pytest.raises(StoreError, match=r"notes\.txt is not usable: file is not a database") as caught:
        SnapshotStore(f"sqlite:///{file}").row("test", "a")
    assert not isinstance(caught.value, StoreUnavailable)
    assert file.read_bytes() == before


@pytest.mark.parametrize("path", ["", "/absent/keyfold.db"])
def test_a_path_that_cannot_be_opened_is_named(tmp_path: Path, path: str) -> None:
    """A directory, or a file in one that does not exist."""
    with pytest.raises(StoreError, match="unable to open database file"):
        SnapshotStore(f"sqlite:///{tmp_path}{path}").row("test", "a")


def test_a_full_database_is_unavailable_until_there_is_room(sqlite_url: str) -> None:
    """SQLITE_FULL: nothing of the transaction is written; with room, the same commit succeeds."""
    store = SnapshotStore(sqlite_url)
    store.ensure_tables()
    store.keep_connection()
    store.commit([FIRST])
    database = store.database
    [pages] = database.execute_sql("PRAGMA page_count").fetchone()
    big = Save("test", "big", None, "e", 1, b'"' + b"x" * 100_000 + b'"')
    database.execute_sql(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(StoreUnavailable, match="full"):
        store.commit([big, Save("test", "b", None, "e", 1, b"1")])
    assert position(store, "b") is None
    assert store.commit([big, Save("test", "b", None, "e", 1, b"1")]) == [True, True]
    store.disconnect()


def test_a_commit_never_joins_a_transaction_of_the_app(store: SnapshotStore) -> None:
    """It would be published before the app's own commit, or rolled back with it."""
    store.ensure_tables()
    with store.database.connection_context(), store.database.atomic():
        with pytest.raises(StoreError, match="transaction open"):
            store.commit([FIRST])
        assert store.row("test", "a") is None


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("mysql://u:secret@host/db", r"mysql://u:\*\*\*@host/db names neither"),
        ("shop.db", "must be a URL"),
        (7, "got int"),
        ("sqlite://shop.db", "only two slashes"),
        ("postgresql://host", "names no database|not usable"),
        (peewee.MySQLDatabase("x"), "MySQLDatabase is not supported"),
        (peewee.SqliteDatabase(":memory:"), "in-memory"),
        (peewee.SqliteDatabase("x.db", thread_safe=False), "thread_safe"),
    ],
)
def test_a_database_that_cannot_be_used_is_refused_at_once(source: Any, message: str) -> None:
    """The message says how to write it instead, and never the password."""
    with pytest.raises(ProjectionError, match=message) as caught:
        open_database(source)
    assert "secret" not in str(caught.value)


def test_a_password_with_escapes_arrives_and_is_not_shown() -> None:
    """%40 in a URL is an @ for the server, and nothing for a log."""
    store = SnapshotStore("postgresql://u%40x:p%40ss@127.0.0.1:1/db")
    assert store.database.connect_params["password"] == "p@ss"
    assert store.database.connect_params["user"] == "u@x"
    assert "p@ss" not in store.describe()
    assert store.describe() == "PostgreSQL db on 127.0.0.1:1"


def test_a_database_in_memory_is_shared_by_all_threads() -> None:
    """``sqlite://`` for tests: one database, whichever thread asks, for as long as the store lives."""
    store = SnapshotStore("sqlite://")
    store.write("test", "a", 5)
    with ThreadPoolExecutor(1) as pool:
        assert pool.submit(store.read, "test", "a").result(DEADLINE) == 5
    assert SnapshotStore("sqlite://").read("test", "a") is None
    store.close()


def test_forgotten_connections_are_not_closed(store: SnapshotStore) -> None:
    """In a forked child: the parent's connection must stay usable for the parent."""
    store.keep_connection()
    store.write("test", "a", 1)
    inherited = store.database.connection()
    store.forget_connections()
    assert store.read("test", "a") == 1
    cursor = inherited.cursor()
    cursor.execute("SELECT 1")
    assert cursor.fetchone() == (1,)
    inherited.close()


def test_a_frozen_writer_holds_its_rows_for_a_while_only(postgres_url: str) -> None:
    """It stopped between its write and its COMMIT; the server ends its transaction."""
    impatient = f"{postgres_url}?options=-c%20idle_in_transaction_session_timeout%3D200"
    frozen, other = SnapshotStore(impatient), SnapshotStore(postgres_url)
    assert other.commit([FIRST]) == [True]
    frozen.database.connect()
    frozen.database.execute_sql("BEGIN; UPDATE projection_snapshots SET version = 7")
    newer = FIRST._replace(base=Position("e1", 1), version=2)
    assert other.commit([newer]) == [True]
    with pytest.raises(peewee.OperationalError):
        frozen.database.execute_sql("COMMIT")
    frozen.database.close()
    assert position(other) == ("e1", 2)


def test_connections_to_postgresql_have_guard_rails(postgres_url: str) -> None:
    """Each bounds how long a hanging process can block the others; a URL may set other values."""
    store = SnapshotStore(postgres_url)
    store.database.connect()
    for name, value in (
        ("idle_in_transaction_session_timeout", "10s"),
        ("lock_timeout", "10s"),
        ("statement_timeout", "30s"),
    ):
        assert store.database.execute_sql(f"SHOW {name}").fetchone() == (value,)
    store.database.close()


def test_a_migration_may_take_longer_than_a_statement(postgres_url: str) -> None:
    """It waits for another process that migrates, however short the patience of its connection is."""
    impatient = f"{postgres_url}?options=-c%20statement_timeout%3D100%20-c%20lock_timeout%3D100"
    slow, waiting = SnapshotStore(postgres_url), SnapshotStore(impatient)
    slow.database.connect()
    slow.database.execute_sql("BEGIN; SELECT pg_advisory_xact_lock(%s)", (_MIGRATION_LOCK,))
    with ThreadPoolExecutor(1) as pool:
        migrated = pool.submit(waiting.ensure_tables)
        with pytest.raises(TimeoutError):
            migrated.result(0.5)
        slow.database.execute_sql("COMMIT")
        migrated.result(DEADLINE)
    slow.database.close()
    assert waiting.commit([FIRST]) == [True]


def test_no_two_commits_have_one_id_in_this_process_or_a_forked_one() -> None:
    """A child goes on counting where its parent stood, but behind a word of its own."""
    reading, sending = os.pipe()
    if (child := os.fork()) == 0:
        os.write(sending, new_commit_id().encode())
        os._exit(0)
    os.close(sending)
    with os.fdopen(reading, "rb") as told:
        ids = [told.read().decode(), *(new_commit_id() for _ in range(1000))]
    os.waitpid(child, 0)
    assert len(set(ids)) == 1001
    assert all(0 < len(one) <= 24 for one in ids)
