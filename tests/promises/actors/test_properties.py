"""The seed's own properties, by Hypothesis, and its reservation events."""

from __future__ import annotations

import copy
from dataclasses import dataclass, field

from hypothesis import given, settings
from hypothesis import strategies as st
from keyfold.actors import Projection, ProjectionSystem
from support.counting import Added, Total, Totals
from support.parking import DEADLINE

amounts = st.lists(st.integers(-1000, 1000), max_size=30)


def fold(events: list[Added]) -> Total:
    """The pure fold."""
    state = Total()
    for event in events:
        Totals().apply(state, event)
    return state


@settings(max_examples=25, deadline=None)
@given(amounts)
def test_sequential_applies_equal_the_pure_fold_and_one_rebuild(given_amounts: list[int]) -> None:
    """N applies = the fold = one rebuild; the version is N either way."""
    events = [Added("a", amount) for amount in given_amounts]
    with ProjectionSystem("sqlite://") as system:
        totals = system.register(Totals())
        for event in events:
            totals.apply_event(event, DEADLINE)
        applied = totals.snapshot("a")
        rebuilt_state = totals.rebuild("b", [Added("b", amount) for amount in given_amounts])
        rebuilt = totals.snapshot("b")
    assert rebuilt_state == fold(events)
    if not events:
        assert applied is rebuilt is None
        return
    assert applied is not None
    assert rebuilt is not None
    assert applied.state == rebuilt.state == fold(events)
    assert applied.version == rebuilt.version == len(events)


@settings(max_examples=25, deadline=None)
@given(st.data(), st.dictionaries(st.sampled_from("abcd"), amounts, min_size=1))
def test_keys_are_independent_of_how_they_interleave(
    data: st.DataObject, by_key: dict[str, list[int]]
) -> None:
    """Whatever the interleaving between keys, each key ends as if it were alone."""
    left = copy.deepcopy(by_key)
    with ProjectionSystem("sqlite://") as system:
        totals = system.register(Totals())
        receipts = []
        while any(left.values()):
            key = data.draw(st.sampled_from([key for key, values in left.items() if values]))
            receipts.append(system.bus.dispatch(Added(key, left[key].pop(0))))
        for receipt in receipts:
            receipt.result(DEADLINE)
        for key, values in by_key.items():
            expected = fold([Added(key, value) for value in values]) if values else None
            assert totals.read(key) == expected


@dataclass
class Held:
    kind: str
    units: int = 1


@dataclass
class Committed:
    kind: str
    units: int = 1


@dataclass
class Released:
    kind: str
    units: int = 1


@dataclass
class Expired:
    kind: str
    units: int = 1


Reservation = Held | Committed | Released | Expired


@dataclass
class Usage:
    held: int = 0
    by_event: dict[str, int] = field(default_factory=dict)


class Reservations(Projection[Held | Committed | Released | Expired, Usage]):
    """Counters per kind of resource, from a union of event types."""

    name = "test.reservations"

    def key(self, event: Reservation) -> str:
        return event.kind

    def apply(self, state: Usage, event: Reservation) -> Usage:
        state.held += event.units if isinstance(event, Held) else -event.units
        name = type(event).__name__
        state.by_event[name] = state.by_event.get(name, 0) + 1
        return state


reservations = st.lists(
    st.builds(
        lambda kind, type_, units: type_(kind, units),
        st.sampled_from(["room", "desk", "car"]),
        st.sampled_from([Held, Committed, Released, Expired]),
        st.integers(1, 5),
    ),
    max_size=40,
)


@settings(max_examples=25, deadline=None)
@given(reservations)
def test_reservation_events_fold_into_counters_per_kind(events: list[Reservation]) -> None:
    """held, committed, released, expired: a union of types, routed each by its class."""
    with ProjectionSystem("sqlite://") as system:
        usage = system.register(Reservations())
        assert set(usage.event_types) == {Held, Committed, Released, Expired}
        for receipt in [system.bus.dispatch(event) for event in events]:
            receipt.result(DEADLINE)
        for kind in ("room", "desk", "car"):
            of_kind = [event for event in events if event.kind == kind]
            state = usage.read(kind)
            if not of_kind:
                assert state is None
                continue
            assert state is not None
            assert sum(state.by_event.values()) == len(of_kind)
            held = sum(event.units if isinstance(event, Held) else -event.units for event in of_kind)
            assert state.held == held
