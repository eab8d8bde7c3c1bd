"""Connections: kept by a thread, or opened for one operation."""

from __future__ import annotations

import threading
from collections.abc import Iterator

import peewee
import pytest
from keyfold.store import StoreError, StoreRejected, StoreUnavailable, open_database
from keyfold.store.connect.connections import Connections
from keyfold.store.dialects import new_dialect
from support.parking import DEADLINE


@pytest.fixture
def database(file_url: str) -> Iterator[peewee.Database]:
    """A database that no thread is connected to."""
    database = open_database(file_url)
    yield database
    database.close()


@pytest.fixture
def connections(database: peewee.Database) -> Connections:
    """The connections to it."""
    return Connections(database, new_dialect(database), file_required=False)


def test_a_connection_is_closed_after_each_operation_unless_it_is_kept(
    database: peewee.Database, connections: Connections
) -> None:
    """Also after one that fails."""
    assert connections.run(database.connection)
    assert database.is_closed()
    with pytest.raises(StoreError):
        connections.run(lambda: database.execute_sql("no SQL"))
    assert database.is_closed()
    connections.keep()
    kept = connections.run(database.connection)
    assert connections.run(database.connection) is kept
    connections.disconnect()
    assert database.is_closed()


def test_a_connection_of_the_app_stays_open(database: peewee.Database, connections: Connections) -> None:
    """It was open before the operation."""
    with database.connection_context():
        own = database.connection()
        assert connections.run(database.connection) is own
        assert not database.is_closed()


def test_refused_data_costs_no_connection_and_other_errors_do(
    database: peewee.Database, connections: Connections
) -> None:
    """A broken connection is replaced by the next operation."""
    connections.keep()
    kept = connections.run(database.connection)

    def refuse() -> None:
        raise ValueError

    with pytest.raises(StoreRejected):
        connections.run(refuse)
    assert connections.run(database.connection) is kept

    def fail() -> None:
        raise ZeroDivisionError

    with pytest.raises(StoreError, match="failed in an unexpected way: ZeroDivisionError"):
        connections.run(fail)
    assert database.is_closed()
    assert connections.run(database.connection) is not kept
    connections.disconnect()


def test_an_interrupt_makes_a_running_call_of_another_thread_fail(
    database: peewee.Database, connections: Connections
) -> None:
    """Of the threads that are named, and that keep a connection."""
    endless = {
        True: "SELECT pg_sleep(60)",
        False: "WITH RECURSIVE c (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM c) SELECT max(n) FROM c",
    }[isinstance(database, peewee.PostgresqlDatabase)]
    started, errors = threading.Event(), list[BaseException]()

    def call() -> None:
        def run() -> None:
            started.set()
            database.execute_sql(endless).fetchall()

        connections.keep()
        try:
            connections.run(run)
        except StoreUnavailable as error:
            errors.append(error)
        finally:
            connections.disconnect()

    caller = threading.Thread(target=call)
    caller.start()
    assert started.wait(DEADLINE)
    connections.interrupt([-1])
    assert caller.is_alive()
    for _ in range(1_000):
        connections.interrupt(None)
        caller.join(0.02)
        if not caller.is_alive():
            break
    assert len(errors) == 1
