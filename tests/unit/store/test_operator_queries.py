"""The questions of operators."""

from __future__ import annotations

from keyfold.store import Position, SnapshotStore, StoredLetter
from keyfold.store.operator_queries import Queries
from keyfold.store.rows import Amendment, DeadLetter, Save


def letter(name: str, key: str, number: int, *, parked: bool = False) -> DeadLetter:
    return DeadLetter(name, key, "Added", f'{{"number":{number}}}', "ValueError: text", "", parked)


def halt(store: SnapshotStore, key: str, *letters: DeadLetter) -> None:
    amendment = Amendment(
        "stock", key, None, was_halted=False, position=Position("e", 0), halt=True, letters=letters
    )
    assert store.commit([], amendments=[amendment]) == [True]


def numbers(found: list[StoredLetter]) -> list[int]:
    return [int(one.event.removeprefix('{"number":').rstrip("}")) for one in found]


def test_letters_come_oldest_first_page_by_page(store: SnapshotStore) -> None:
    """By projection, by key, and parked ones only."""
    store.commit([], [letter("stock", key, number) for number, key in enumerate("abab")])
    store.commit([], [letter("other", "a", 4)])
    halt(store, "c", letter("stock", "c", 5, parked=True))
    queries = Queries(store)
    assert numbers(queries.letters()) == [0, 1, 2, 3, 4, 5]
    assert numbers(queries.letters("stock", "a")) == [0, 2]
    assert numbers(queries.letters(parked=True)) == [5]
    first, second = queries.letters("stock", limit=2)
    assert numbers(queries.letters("stock", after=second.id, limit=2)) == [2, 3]
    assert queries.letter(first.id) == first
    assert queries.letter(10**30) is None


def test_the_newest_letters_have_the_first_parked_one_of_each_key(store: SnapshotStore) -> None:
    """Nothing is wrong with the events parked behind it."""
    store.commit([], [letter("stock", "a", 0)])
    halt(store, "b", *(letter("stock", "b", number, parked=True) for number in (1, 2, 3)))
    store.commit([], [letter("stock", "a", 4)])
    queries = Queries(store)
    assert numbers(queries.newest_letters("stock")) == [4, 1, 0]
    assert numbers(queries.newest_letters("stock", limit=1)) == [4]
    assert queries.count_parked("stock", "b") == 3
    first = queries.first_parked("stock", "b")
    assert first is not None
    assert first.event == '{"number":1}'
    assert queries.first_parked("stock", "a") is None


def test_keys_by_order_by_prefix_and_by_size(store: SnapshotStore) -> None:
    """Tombstones are left out unless they are halted."""
    sizes = {"a1": 3, "a2": 30, "b1": 10}
    store.commit([Save("stock", key, None, "e", 1, b"1" * size) for key, size in sizes.items()])
    store.commit([Save("stock", "wiped", None, "e", 0, b"null")])
    halt(store, "halted", letter("stock", "halted", 0, parked=True))
    queries = Queries(store)
    assert [one.key for one in queries.keys("stock")] == ["a1", "a2", "b1", "halted"]
    assert [one.key for one in queries.keys("stock", prefix="a")] == ["a1", "a2"]
    assert [one.key for one in queries.keys("stock", after="a1", limit=2)] == ["a2", "b1"]
    assert [one.key for one in queries.keys("stock", halted=True)] == ["halted"]
    largest = queries.keys("stock", largest=True, limit=2)
    assert [(one.key, one.bytes) for one in largest] == [("a2", 30), ("b1", 10)]


def test_epochs_go_on_behind_a_row_key(store: SnapshotStore) -> None:
    """Tombstones included, as their epochs may be renewed as well."""
    store.commit([Save(name, key, None, f"{name}{key}", 0, b"null") for name in "xy" for key in "ab"])
    queries = Queries(store)
    assert queries.epochs(limit=2) == [("x", "a", "xa"), ("x", "b", "xb")]
    assert queries.epochs(after=("x", "b")) == [("y", "a", "ya"), ("y", "b", "yb")]
    assert queries.epochs("y", "b") == [("y", "b", "yb")]


def test_totals_per_projection(store: SnapshotStore) -> None:
    """A projection without letters and halted keys is not among them."""
    queries = Queries(store)
    assert queries.totals() == {}
    store.commit([Save("calm", "a", None, "e", 1, b"1")], [letter("other", "a", 0)])
    halt(store, "a", letter("stock", "a", 1, parked=True), letter("stock", "a", 2, parked=True))
    assert queries.totals() == {
        "other": {"dead_letters": 1, "parked": 0, "halted": 0},
        "stock": {"dead_letters": 2, "parked": 2, "halted": 1},
    }
    assert queries.pending_migrations() == []
