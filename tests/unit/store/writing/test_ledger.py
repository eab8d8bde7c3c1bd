"""The ledger: the number that a commit leaves for a writer that got no answer."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import psycopg2
import pytest
from keyfold.actors import ProjectionSystem
from keyfold.store import Position, SnapshotStore
from keyfold.store.rows import Save
from keyfold.store.writing import ledger
from keyfold.store.writing.ledger import Ledger
from support.counting import Added, Totals
from support.parking import DEADLINE
from support.postgres import PostgresServer
from support.tcp_proxy import TcpProxy

EIGHT_DAYS = 8 * 86_400.0


def committed(store: SnapshotStore, book: Ledger, number: int) -> bool:
    return store.run(lambda: store.dialect.has_committed(store.database, book, number))


def test_each_commit_leaves_its_number(postgres_url: str) -> None:
    """Its own, and no other's; at the end of the writer nothing is left."""
    store, book, other = SnapshotStore(postgres_url), Ledger(), Ledger()
    store.commit([Save("test", "a", None, "e", 1, b"1")], (), book)
    store.commit([Save("test", "b", None, "e", 1, b"1")], (), other)
    assert committed(store, book, 1)
    assert not committed(store, book, 2)
    store.remove_writer(book)
    assert not committed(store, book, 1)
    assert committed(store, other, 1)


@pytest.mark.parametrize("clock_went_on", [True, False])
def test_a_writer_that_was_forgotten_leaves_its_number_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch, *, clock_went_on: bool
) -> None:
    """After a week it is taken for dead by another; its next commit can be looked up all the same.

    It was idle, or asleep with its whole machine, and then its monotonic clock stood still.
    """
    now = 0.0
    monkeypatch.setattr(ledger, "monotonic", lambda: now)
    store, idle, other = SnapshotStore(postgres_url), Ledger(), Ledger()
    store.commit([Save("test", "a", None, "e", 1, b"1")], (), idle)
    sql = "UPDATE projection_writers SET at = at - interval '8 days'"
    store.run(lambda: store.database.execute_sql(sql))
    store.commit([Save("test", "b", None, "e", 1, b"1")], (), other)
    assert writers(store) == 1
    now += EIGHT_DAYS if clock_went_on else 0
    store.commit([Save("test", "a", Position("e", 1), "e", 2, b"2")], (), idle)
    assert committed(store, idle, 2)


def writers(store: SnapshotStore) -> int:
    sql = "SELECT count(*) FROM projection_writers"
    [[count]] = store.run(lambda: store.database.execute_sql(sql).fetchall())
    return int(count)


def test_rows_of_dead_writers_are_removed_once_a_day(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By any writer that commits, and also if another session has locked one of them."""
    now = 0.0
    monkeypatch.setattr(ledger, "monotonic", lambda: now)
    store, book = SnapshotStore(postgres_url), Ledger()
    store.commit([Save("test", "a", None, "e", 1, b"1")], (), book)
    dead = "INSERT INTO projection_writers VALUES (%s, 7, now() - interval '8 days')"
    with store.database.connection_context():
        for name in ("dead", "locked"):
            store.database.execute_sql(dead, (name,))
    store.commit([Save("test", "b", None, "e", 1, b"1")], (), book)
    assert writers(store) == 3
    now += 86_401.0
    session = psycopg2.connect(postgres_url)
    session.cursor().execute("SELECT 1 FROM projection_writers WHERE writer = 'locked' FOR UPDATE")
    store.commit([Save("test", "c", None, "e", 1, b"1")], (), book)
    session.close()
    assert writers(store) == 2


@pytest.mark.parametrize("commits", [True, False])
def test_a_transaction_that_is_still_running_is_waited_for_also_if_it_makes_the_row(
    postgres_url: str, *, commits: bool
) -> None:
    """The old connection's, which no other can see yet, decides once it has ended."""
    store, book = SnapshotStore(postgres_url), Ledger()
    store.ensure_tables()
    running = psycopg2.connect(postgres_url)
    running.cursor().execute("INSERT INTO projection_writers VALUES (%s, 1, now())", (book.writer,))
    found: list[bool] = []
    asking = threading.Thread(target=lambda: found.append(committed(store, book, 1)))
    asking.start()
    watching = psycopg2.connect(postgres_url)
    watching.autocommit = True
    cursor = watching.cursor()
    waits = (
        "SELECT count(*) FROM pg_stat_activity "
        "WHERE datname = current_database() AND wait_event_type = 'Lock'"
    )
    for _ in range(1_000):
        cursor.execute(waits)
        if cursor.fetchone() == (1,) or not asking.is_alive():
            break
        threading.Event().wait(0.01)
    assert found == []
    if commits:
        running.commit()
    running.close()
    watching.close()
    asking.join(DEADLINE)
    assert found == [commits]


@pytest.fixture
def behind_proxy(postgres_server: PostgresServer, postgres_proxy: TcpProxy) -> Iterator[ProjectionSystem]:
    """A system whose connections go through the proxy."""
    with ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port)) as system:
        yield system


@pytest.mark.parametrize("server_had_committed", [True, False])
def test_a_lost_commit_counts_once_also_if_the_ledger_was_emptied(
    behind_proxy: ProjectionSystem,
    postgres_server: PostgresServer,
    postgres_proxy: TcpProxy,
    *,
    server_had_committed: bool,
) -> None:
    """By a clean-up job, or a restore without that table: each commit makes its own row."""
    totals = behind_proxy.register(Totals())
    behind_proxy.bus.dispatch(Added("a", 1)).result(DEADLINE)
    postgres_server.execute("TRUNCATE projection_writers")
    if server_had_committed:
        postgres_proxy.swallow_reply_to(b"COMMIT")
    else:
        postgres_proxy.cut_before(b"COMMIT")
    [applied] = behind_proxy.bus.dispatch(Added("a", 10)).result(DEADLINE)
    assert postgres_proxy.swallowed.is_set()
    assert applied.version == 2
    assert totals.read_required("a").amounts == [1, 10]
