"""The ledger: what a commit left behind for a writer that got no answer."""

from __future__ import annotations

import pytest
from keyfold.store import Ledger, Position, Save, SnapshotStore, ledger

EIGHT_DAYS = 8 * 86_400.0


def committed(store: SnapshotStore, book: Ledger, turn: int) -> bool:
    return store.run(lambda: book.has_committed(store.database, turn))


def test_each_commit_leaves_its_number(postgres_url: str) -> None:
    """Its own, and no other's; at the end of the writer nothing is left."""
    store, book, other = SnapshotStore(postgres_url), Ledger(), Ledger()
    store.commit([Save("test", "a", None, "e", 1, b"1")], (), book)
    store.commit([Save("test", "b", None, "e", 1, b"1")], (), other)
    assert committed(store, book, 1)
    assert not committed(store, book, 2)
    store.sign_off(book)
    assert not committed(store, book, 1)
    assert committed(store, other, 1)


def test_a_writer_that_was_forgotten_leaves_its_number_again(
    postgres_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Idle for a week, it is taken for dead by another; its next commit can be looked up all the same."""
    now = 0.0
    monkeypatch.setattr(ledger, "monotonic", lambda: now)
    store, idle, other = SnapshotStore(postgres_url), Ledger(), Ledger()
    store.commit([Save("test", "a", None, "e", 1, b"1")], (), idle)
    sql = "UPDATE projection_writers SET at = at - interval '8 days'"
    store.run(lambda: store.database.execute_sql(sql))
    store.commit([Save("test", "b", None, "e", 1, b"1")], (), other)
    [[writers]] = store.run(
        lambda: store.database.execute_sql("SELECT count(*) FROM projection_writers").fetchall()
    )
    assert writers == 1
    now += EIGHT_DAYS
    store.commit([Save("test", "a", Position("e", 1), "e", 2, b"2")], (), idle)
    assert committed(store, idle, 2)
