"""Stores for the tests of the store."""

from __future__ import annotations

from collections.abc import Callable, Iterator

import pytest
from keyfold.store import SnapshotStore


@pytest.fixture
def make_store(database_url: str) -> Iterator[Callable[[], SnapshotStore]]:
    """Make stores on the test's database, each with connections of its own."""
    made: list[SnapshotStore] = []

    def make() -> SnapshotStore:
        made.append(SnapshotStore(database_url))
        return made[-1]

    yield make
    for store in made:
        store.database.close()


@pytest.fixture
def store(make_store: Callable[[], SnapshotStore]) -> SnapshotStore:
    """One store."""
    return make_store()
