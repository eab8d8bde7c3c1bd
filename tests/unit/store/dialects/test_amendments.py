"""A row and its letters change together, or not at all."""

from __future__ import annotations

import pytest
from keyfold.store import Position, SnapshotStore
from keyfold.store.operator_queries import Queries
from keyfold.store.rows import Amendment, DeadLetter, Save

HERE = Position("e1", 1)
LETTER = DeadLetter("test", "a", "shop.Sold", '{"count": 1}', "ValueError: no", "Traceback", parked=True)
HALT = Amendment("test", "a", HERE, was_halted=False, position=HERE, halt=True, letters=(LETTER, LETTER))


@pytest.fixture
def halted(store: SnapshotStore) -> SnapshotStore:
    """A store with a key that is halted, two events parked for it."""
    store.commit([Save("test", "a", None, "e1", 1, b'{"count":1}')])
    assert store.commit([], amendments=[HALT]) == [True]
    return store


def letters(store: SnapshotStore) -> list[int]:
    return [letter.id for letter in Queries(store).letters("test", "a")]


def state_of(store: SnapshotStore) -> tuple[str, int, bool, bytes]:
    row = store.row("test", "a")
    assert row is not None
    return row.epoch, row.version, row.halted, row.state.replace(b" ", b"")


def test_a_halted_row_takes_no_save(halted: SnapshotStore) -> None:
    """A process that has not read the halt can't write over it."""
    assert halted.commit([Save("test", "a", HERE, "e1", 2, b"{}")]) == [False]
    assert state_of(halted) == ("e1", 1, True, b'{"count":1}')
    assert len(letters(halted)) == 2


def test_an_amendment_needs_its_position_and_its_halt(halted: SnapshotStore) -> None:
    """Both as they were when its maker looked: else nothing is kept, removed or written."""
    [first, _] = letters(halted)
    right = Amendment("test", "a", HERE, was_halted=True, position=HERE, removed=(first,))
    for stale in (
        right._replace(was_halted=False),
        right._replace(base=Position("e1", 2)),
        right._replace(base=Position("e2", 1)),
        right._replace(base=None),
        right._replace(key="b"),
        right._replace(removed=(first, 10_000)),
        right._replace(removed=(10_000,), state=b"{}", letters=(LETTER,), position=Position("e1", 2)),
    ):
        assert halted.commit([], amendments=[stale]) == [False], stale
        assert state_of(halted) == ("e1", 1, True, b'{"count":1}')
        assert len(letters(halted)) == 2
    assert halted.commit([], amendments=[right]) == [True]
    assert len(letters(halted)) == 1


def test_the_halt_ends_with_the_last_parked_letter(halted: SnapshotStore) -> None:
    """A key with parked events is halted; one without goes on."""
    first, second = letters(halted)
    fold = Amendment(
        "test", "a", HERE, was_halted=True, position=Position("e1", 2), state=b"{}", removed=(first,)
    )
    assert halted.commit([], amendments=[fold]) == [True]
    assert state_of(halted) == ("e1", 2, True, b"{}")
    base = Position("e1", 2)
    skip = Amendment("test", "a", base, was_halted=True, position=base, removed=(second,))
    assert halted.commit([], amendments=[skip]) == [True]
    assert state_of(halted) == ("e1", 2, False, b"{}")


def test_a_key_without_a_row_is_halted_once(store: SnapshotStore) -> None:
    """Of two processes that have the first event of a key, one makes the tombstone."""
    first = Amendment(
        "test", "a", None, was_halted=False, position=Position("e1", 0), halt=True, letters=(LETTER,)
    )
    assert store.commit([], amendments=[first]) == [True]
    assert store.commit([], amendments=[first._replace(position=Position("e2", 0))]) == [False]
    row = store.row("test", "a")
    assert row is not None
    assert (row.epoch, row.is_tombstone, row.halted, len(letters(store))) == ("e1", True, True, 1)


def test_results_of_amendments_come_after_those_of_saves(halted: SnapshotStore) -> None:
    """In one commit, each in its order."""
    saves = [Save("test", "b", None, "e", 1, b"1"), Save("test", "a", HERE, "e", 2, b"2")]
    right = Amendment("test", "a", HERE, was_halted=True, position=HERE, halt=True)
    assert halted.commit(saves, amendments=[right._replace(was_halted=False), right]) == [
        True,
        False,
        False,
        True,
    ]
