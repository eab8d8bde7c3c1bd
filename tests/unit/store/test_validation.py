"""A key of a subclass of str is the string that it is, everywhere."""

from __future__ import annotations

import enum
from collections.abc import Callable
from dataclasses import dataclass, field

from keyfold.actors import Projection, ProjectionSystem
from keyfold.store import Position, ProjectionKey, SnapshotStore
from keyfold.store.operator_queries import Queries
from keyfold.store.rows import Amendment, DeadLetter, Head, Save
from keyfold.store.validation import check_key, check_name
from support.parking import DEADLINE


class Region(str, enum.Enum):  # noqa: UP042  # as apps have it: its __str__ is "Region.NORTH"
    NORTH = "north"


class Loud(str):
    """Says something else wherever it is asked to."""

    __slots__ = ()

    def __str__(self) -> str:
        return "loud"

    def __hash__(self) -> int:
        return 1

    def __eq__(self, other: object) -> bool:
        return False


@dataclass
class Sold:
    region: Region


@dataclass
class Total:
    regions: list[str] = field(default_factory=list)


class Totals(Projection[Sold, Total]):
    name = "test.regions"

    def key(self, event: Sold) -> str:
        return event.region

    def apply(self, state: Total, event: Sold) -> int:
        state.regions.append("one")
        return len(state.regions)


def keys_in(store: SnapshotStore) -> list[str]:
    sql = "SELECT key FROM projection_snapshots ORDER BY key"
    return [key for (key,) in store.run(lambda: store.database.execute_sql(sql).fetchall())]


def test_checking_a_key_or_a_name_makes_it_plain() -> None:
    """By its own characters, although its class has other ones."""
    for text in (Region.NORTH, Loud("north"), ProjectionKey("north"), "north"):
        assert (type(check_key(text)), type(check_name(text))) == (str, str)
        assert [check_key(text), check_name(text)] == ["north", "north"]
    assert ProjectionKey(Region.NORTH) == "north"
    assert type(ProjectionKey(Region.NORTH)) is ProjectionKey


def test_a_member_of_an_enum_is_a_key_of_values_of_ones_own(store: SnapshotStore) -> None:
    """Written, written over, read, by whichever of them."""
    for number, key in enumerate((Region.NORTH, Loud("north"), "north"), 1):
        assert store.write("settings", key, number).version == number
        assert store.read("settings", key) == number
        row = store.row("settings", key)
        assert row is not None
        assert row.version == number
    assert keys_in(store) == ["north"]
    assert [facts.key for facts in Queries(store).keys("settings")] == ["north"]


def test_every_record_of_a_commit_may_have_one(store: SnapshotStore) -> None:
    """Saves, letters and amendments; their rows are found under the plain string."""
    key = Loud("north")
    letter = DeadLetter("test", key, "Event", "{}", "error", "trace", parked=True)
    assert store.commit([Save("test", key, None, "e", 1, b"1")], [letter]) == [True]
    here = Position("e", 1)
    halt = Amendment("test", key, here, was_halted=False, position=here, halt=True, letters=(letter,))
    assert store.commit([], amendments=[halt]) == [True]
    assert keys_in(store) == ["north"]
    assert list(store.rows([("test", key)])) == [("test", "north")]
    assert store.heads([("test", key)]) == {("test", "north"): Head(*here)}
    assert {found.key for found in Queries(store).letters("test", key)} == {"north"}


def test_a_member_of_an_enum_is_a_key_of_a_projection(database_url: str) -> None:
    """Its event is committed once, under the plain string."""
    with ProjectionSystem(database_url, close_timeout=3) as system:
        totals = system.register(Totals())
        for version in (1, 2):
            [applied] = system.bus.dispatch(Sold(Region.NORTH)).result(DEADLINE)
            assert applied.version == version
        assert totals.read_required("north").regions == ["one", "one"]
        assert totals.read_required(Region.NORTH).regions == ["one", "one"]
        assert keys_in(system.store) == ["north"]
        assert system.stats()["projections"]["test.regions"]["conflicts"] == 0


def test_a_key_of_a_new_projection_is_checked_once(make_store: Callable[[], SnapshotStore]) -> None:
    """Two stores, one with the member and one with its string, write the same row."""
    make_store().write("settings", Region.NORTH, 1)
    assert make_store().write("settings", "north", 2).version == 2
