"""The tables at the first use of a store."""

from __future__ import annotations

import threading

import pytest
from keyfold.store import SnapshotStore, StoreError, pending
from support.parking import DEADLINE


def test_threads_that_come_first_together_make_the_tables_once(store: SnapshotStore) -> None:
    """Each goes on when they are there."""
    failures: list[BaseException] = []

    def use() -> None:
        try:
            assert store.row("test", "a") is None
        except BaseException as error:
            failures.append(error)

    threads = [threading.Thread(target=use) for _ in range(5)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(DEADLINE)
    assert failures == []
    with store.database.connection_context():
        assert pending(store.database) == []


def test_a_transaction_of_the_app_that_only_reads_does_not_matter(store: SnapshotStore) -> None:
    """The tables are made on another connection, and outlive its end."""
    with store.database.connection_context():
        with store.database.atomic() as transaction:
            store.ensure_tables()
            transaction.rollback()
        assert pending(store.database) == []


def test_a_transaction_that_has_written_is_named_at_once(sqlite_url: str) -> None:
    """SQLite has one writer; the message says how to avoid it."""
    store = SnapshotStore(sqlite_url)
    with store.database.connection_context():
        store.database.execute_sql("CREATE TABLE of_the_app (id INTEGER)")
        with (
            store.database.atomic("IMMEDIATE"),
            pytest.raises(StoreError, match="has a transaction open on the same database"),
        ):
            store.ensure_tables()
    assert store.row("test", "a") is None
