"""The store at its edges: lost connections and files, forks, transactions of the app's, older releases."""

from __future__ import annotations

import os
import shutil
import threading
import weakref
from collections.abc import Callable
from concurrent.futures import Future
from pathlib import Path
from time import monotonic
from typing import Any
from urllib.parse import urlsplit

import peewee
import pytest
from keyfold.actors import ProjectionSystem
from keyfold.store import Position, SnapshotStore, StoreError, StoreUnavailable
from keyfold.store.processes import Processes
from keyfold.store.rows import Head, Save
from playhouse.pool import PooledPostgresqlDatabase
from support.counting import Added, Totals
from support.parking import DEADLINE, Parking

FIRST = Save("test", "a", None, "e1", 1, b"1")
SECOND = Save("test", "a", Position("e1", 1), "e1", 2, b"2")


def in_thread(call: Callable[[], Any]) -> Future[Any]:
    """Start a call on a thread of its own."""
    future: Future[Any] = Future()

    def run() -> None:
        try:
            future.set_result(call())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=run, daemon=True).start()
    return future


# -- connecting


def test_a_pool_of_the_apps_own_that_is_exhausted_is_waited_for(postgres_url: str) -> None:
    """The error does not blame the data: an accepted event is committed once there is a connection."""
    parts = urlsplit(postgres_url)
    database = PooledPostgresqlDatabase(
        parts.path[1:], max_connections=2, user="postgres", host=parts.hostname, port=parts.port
    )
    with ProjectionSystem(database, close_timeout=5, tuning={"report_seconds": 0}) as system:
        totals = system.register(Totals())
        totals.apply_event(Added("a"), DEADLINE)
        # The writer's connection breaks, and a request thread has the last one when it connects again.
        with database.connection_context():
            database.execute_sql(
                "SELECT pg_terminate_backend(pid) FROM pg_stat_activity "
                "WHERE datname = current_database() AND pid <> pg_backend_pid()"
            )
            database._max_connections = 1
            receipt = system.bus.dispatch(Added("a"))
            wait_until(lambda: receipt.done() or "Exceeded maximum connections" in system.trouble)
            assert not receipt.done()
        assert receipt.result(DEADLINE)[0].version == 2


@pytest.mark.parametrize(
    "error",
    [
        ValueError("no connection for you"),
        UnicodeDecodeError("utf-8", b"\xff", 0, 1, "greeting"),
        KeyError("x"),
    ],
)
def test_any_error_of_connecting_may_be_over_later(store: SnapshotStore, error: Exception) -> None:
    """StoreUnavailable: no data was sent that could be at fault."""
    store.ensure_tables()

    def refuse() -> None:
        raise error

    vars(store.database)["_connect"] = refuse
    with pytest.raises(StoreUnavailable, match="can't be used at the moment"):
        store.commit([FIRST])
    del vars(store.database)["_connect"]
    assert store.commit([FIRST]) == [True]


def test_only_the_calls_of_the_threads_named_are_interrupted(postgres_url: str) -> None:
    """The other one's goes on."""
    store = SnapshotStore(postgres_url)
    store.ensure_tables()
    ready = threading.Semaphore(0)
    idents: list[int] = []

    def sleep(seconds: float) -> Any:
        store.keep_connection()
        store.run(lambda: store.database.execute_sql("SELECT 1"))
        idents.append(threading.get_ident())
        ready.release()
        try:
            return store.run(lambda: store.database.execute_sql("SELECT pg_sleep(%s)", (seconds,)).fetchall())
        finally:
            store.disconnect()

    long = in_thread(lambda: sleep(3600))
    assert ready.acquire(timeout=DEADLINE)
    short = in_thread(lambda: sleep(0.5))
    assert ready.acquire(timeout=DEADLINE)
    store.interrupt([idents[0]])
    with pytest.raises(StoreUnavailable):
        long.result(DEADLINE)
    assert len(short.result(DEADLINE)) == 1


# -- the first use inside a transaction of the app's


def test_a_first_dispatch_in_the_apps_own_sqlite_transaction_raises_at_once(sqlite_url: str) -> None:
    """It would lock itself out. The error says how to avoid it; afterwards all threads can work."""
    with ProjectionSystem(sqlite_url) as system:
        system.register(Totals())
        database = system.store.database
        with database.connection_context(), database.atomic("IMMEDIATE"):
            database.execute_sql("CREATE TABLE mine (n INTEGER)")
            started = monotonic()
            with pytest.raises(StoreError, match="flask keyfold migrate") as caught:
                system.bus.dispatch(Added("a"))
            assert monotonic() - started < 3
            assert not isinstance(caught.value, StoreUnavailable)
        assert in_thread(lambda: system.bus.dispatch(Added("a")).result(DEADLINE)).result(DEADLINE)
        with database.connection_context(), database.atomic("IMMEDIATE"):
            receipt = system.bus.dispatch(Added("a"))
        assert receipt.result(DEADLINE)[0].version == 2


def test_with_the_tables_made_a_store_may_be_used_first_in_a_transaction(
    make_store: Callable[[], SnapshotStore],
) -> None:
    """Nothing is to be migrated, so nothing is locked out."""
    make_store().write("settings", "a", 5)
    store = make_store()
    with store.database.connection_context(), store.database.atomic():
        assert store.read("settings", "a") == 5


def test_on_postgresql_a_first_use_in_a_transaction_makes_the_tables(postgres_url: str) -> None:
    """Outside of it: they stay when it is rolled back."""
    store = SnapshotStore(postgres_url)
    with store.database.connection_context(), store.database.atomic() as transaction:
        store.database.execute_sql("CREATE TABLE mine (n INTEGER)")
        store.ensure_tables()
        transaction.rollback()
    assert store.write("settings", "a", 1).version == 1


def test_a_file_that_others_have_locked_is_tried_for_a_while_only(
    sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By time, however long each attempt takes."""
    monkeypatch.setattr("keyfold.store.schema.tables._PATIENCE", 0.5)
    path = sqlite_url.removeprefix("sqlite:///")
    other = peewee.SqliteDatabase(path, pragmas={"journal_mode": "wal"})
    store = SnapshotStore(peewee.SqliteDatabase(path, pragmas={"busy_timeout": 100}))
    with other.connection_context(), other.atomic("IMMEDIATE"):
        started = monotonic()
        with pytest.raises(StoreUnavailable, match="database is locked"):
            store.ensure_tables()
        assert monotonic() - started < 5
    store.ensure_tables()


# -- forks


@pytest.fixture
def own_gates(monkeypatch: pytest.MonkeyPatch) -> None:
    """A fork waits for the threads of all stores of a process: here, for those of this test alone."""
    monkeypatch.setattr("keyfold.store.dialects.fork_gate._gates", weakref.WeakSet())


def fork_and_wait() -> int:
    """Make a child that ends at once, and return its pid."""
    child = os.fork()
    if child == 0:
        os._exit(0)
    os.waitpid(child, 0)
    return child


def test_a_child_forked_while_a_thread_writes_to_sqlite_can_write(sqlite_url: str) -> None:
    """The fork waits for the transaction: the child would inherit a lock that no thread releases."""
    store = SnapshotStore(sqlite_url)
    store.ensure_tables()
    parking, forked = Parking(), threading.Event()

    def park() -> int:
        parking.park()
        return 1

    assert isinstance(store.database, peewee.SqliteDatabase)
    store.database.register_function(park, "park")
    store.run(
        lambda: store.database.execute_sql(
            "CREATE TRIGGER parks AFTER INSERT ON projection_snapshots WHEN NEW.key = 'parked' "
            "BEGIN SELECT park(); END"
        )
    )
    writing = in_thread(lambda: store.write("settings", "parked", 1))
    parking.wait_for_arrival()

    def release() -> None:
        forked.wait(1)  # a fork that does not wait is over long before
        parking.release()

    releasing = in_thread(release)
    reading, sending = os.pipe()
    child = os.fork()
    if child == 0:
        try:
            store.forget_connections()
            store.write("settings", "child", 1)
            os.write(sending, b"written")
        except BaseException as error:
            os.write(sending, repr(error).encode())
        finally:
            os._exit(0)
    forked.set()
    os.close(sending)
    with os.fdopen(reading, "rb") as answer:
        assert answer.read() == b"written"
    os.waitpid(child, 0)
    releasing.result(DEADLINE)
    assert writing.result(DEADLINE).version == 1
    assert store.read("settings", "child") == 1
    assert store.write("settings", "child", 2).version == 2


def test_a_fork_inside_an_operation_waits_for_nobody(sqlite_url: str, own_gates: None) -> None:
    """The thread that forks would wait for itself; others wait outside meanwhile, and then go on."""
    store = SnapshotStore(sqlite_url)
    store.ensure_tables()
    started = monotonic()
    assert store.run(lambda: store.run(fork_and_wait)) > 0
    assert monotonic() - started < 5
    assert in_thread(lambda: store.write("settings", "a", 1)).result(DEADLINE).version == 1


def test_a_fork_that_waits_for_too_long_names_the_threads_that_are_inside(
    sqlite_url: str, own_gates: None, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Also one that has left the inner of two operations, and is still in the outer one."""
    monkeypatch.setattr("keyfold.store.dialects.fork_gate._PATIENCE", 0.1)
    store, parking = SnapshotStore(sqlite_url), Parking()
    store.ensure_tables()

    def linger() -> None:
        store.run(lambda: store.read("settings", "a"))
        parking.park()

    thread = threading.Thread(target=store.run, args=(linger,), name="the lingering one")
    thread.start()
    parking.wait_for_arrival()
    assert fork_and_wait() > 0
    parking.release()
    thread.join(DEADLINE)
    assert "inside SQLite for 0 s (the lingering one)" in caplog.text
    caplog.clear()
    assert fork_and_wait() > 0
    assert caplog.text == ""


# -- a file that is gone


def test_a_file_that_was_deleted_is_written_no_more_until_it_is_back(tmp_path: Path) -> None:
    """No Receipt says committed, trouble names the file, and no new one is made until it is back."""
    file, away = tmp_path / "shop.db", tmp_path / "away.db"
    with ProjectionSystem(f"sqlite:///{file}", close_timeout=5) as system:
        totals = system.register(Totals())
        totals.apply_event(Added("a"), DEADLINE)
        file.rename(away)
        receipt = system.bus.dispatch(Added("a"))
        wait_until(lambda: system.trouble != "")
        assert f"{file} was deleted or replaced" in system.trouble
        with pytest.raises(StoreUnavailable, match="deleted or replaced"):
            totals.read("a")
        assert not receipt.done()
        assert not file.exists()
        away.rename(file)
        assert receipt.result(DEADLINE)[0].version == 2
        assert totals.read_required("a").total == 2
        wait_until(lambda: system.trouble == "")


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = monotonic() + DEADLINE
    while not reached():
        assert monotonic() < deadline, "it never came to that"
        threading.Event().wait(0.01)


def test_a_file_that_was_replaced_is_given_up_for_the_one_in_its_place(tmp_path: Path) -> None:
    """By a backup, for instance: nothing more is committed into the old one, which has no name any more."""
    file, backup = tmp_path / "shop.db", tmp_path / "backup.db"
    store = SnapshotStore(f"sqlite:///{file}")
    store.commit([FIRST])
    shutil.copy(file, backup)
    store.keep_connection()
    assert store.commit([SECOND]) == [True]
    for leftover in tmp_path.glob("shop.db-*"):
        leftover.unlink()
    backup.rename(file)
    third = Save("test", "a", Position("e1", 2), "e1", 3, b"3")
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        store.commit([third])
    assert store.commit([third]) == [False]
    assert store.heads([("test", "a")]) == {("test", "a"): Head("e1", 1)}
    assert store.commit([SECOND]) == [True]
    store.disconnect()


def test_a_relative_path_is_the_same_file_in_another_directory(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """No second, empty file is made where the process has gone."""
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    monkeypatch.chdir(tmp_path)
    store = SnapshotStore("sqlite:///shop.db")
    store.write("settings", "a", 1)
    monkeypatch.chdir(elsewhere)
    with pytest.raises(StoreUnavailable, match="deleted or replaced"):
        store.write("settings", "a", 2)
    assert not list(elsewhere.iterdir())
    monkeypatch.chdir(tmp_path)
    assert store.write("settings", "a", 2).version == 2


# -- shapes


def test_a_value_over_a_row_keeps_the_rows_schema_version(store: SnapshotStore) -> None:
    """Else its next reader would upgrade it once more."""
    store.commit([FIRST._replace(schema_version=3)])
    store.write("test", "a", 500)
    row = store.row("test", "a")
    assert row is not None
    assert (row.schema_version, row.version) == (3, 2)


def test_a_value_of_a_projection_is_a_state_in_its_shape(store: SnapshotStore) -> None:
    """Of its schema_version, and never over the row of a newer release."""
    store.register_schema("test", 2)
    store.commit([FIRST])
    store.write("test", "a", 500)
    row = store.row("test", "a")
    assert row is not None
    assert (row.schema_version, row.state) == (2, b"500")
    store.register_schema("test", 1)
    with pytest.raises(StoreError, match="newer release"):
        store.write("test", "a", 7)
    assert store.read("test", "a") == 500


# -- processes


def test_a_report_forgets_the_processes_that_ended_without_a_word(store: SnapshotStore) -> None:
    """As those do that end at exit, or are killed: their rows would only grow in number."""
    Processes(store).report("old", {})
    sql = "UPDATE projection_processes SET at = at - 7200"
    store.run(lambda: store.database.execute_sql(sql))
    Processes(store).report("new", {"n": 1})
    assert len(Processes(store).recent(1e9)) == 1
