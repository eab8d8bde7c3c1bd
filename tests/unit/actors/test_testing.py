"""The helpers for tests of apps find the mistakes that they are for, and no others."""

from __future__ import annotations

import itertools
from dataclasses import dataclass, field
from typing import Any

import pytest
from hypothesis import strategies as st
from keyfold.actors import Projection
from keyfold.actors.testing import check_apply, given, running


@dataclass
class Moved:
    """Some of an article went from one place to another."""

    place: str
    article: str
    count: int = 1
    tags: list[str] = field(default_factory=list)


@dataclass
class Place:
    """What is there."""

    stock: dict[str, int] = field(default_factory=dict)


class Places(Projection[Moved, Place]):
    """As it should be."""

    name = "test.places"

    def key(self, event: Moved) -> str:
        return event.place

    def apply(self, state: Place, event: Moved) -> Any:
        if event.count == 0:
            msg = "nothing moved"
            raise ValueError(msg)
        state.stock[event.article] = state.stock.get(event.article, 0) + event.count
        return {event.article: state.stock[event.article]}


MOVES = [Moved("a", "pen", 2), Moved("a", "ink"), Moved("a", "pen", 3)]


def test_given_expect() -> None:
    """State and deltas, as objects or as plain values; nothing runs."""
    result = given(Places(), MOVES)
    result.expect(Place({"pen": 5, "ink": 1}), [{"pen": 2}, {"ink": 1}, {"pen": 5}])
    result.expect(state={"stock": {"pen": 5, "ink": 1}})
    result.expect(deltas=[{"pen": 2}, {"ink": 1}, {"pen": 5}])
    with pytest.raises(AssertionError, match="the state should be"):
        result.expect(Place({"pen": 6}))
    with pytest.raises(AssertionError, match="the deltas should be"):
        result.expect(deltas=[])


def test_given_asks_which_key() -> None:
    """Where the events are for several."""
    moves = [*MOVES, Moved("b", "ink", 7)]
    with pytest.raises(ValueError, match="the keys 'a', 'b'"):
        given(Places(), moves)
    given(Places(), moves, key="b").expect(Place({"ink": 7}))
    given(Places(), [], key="b").expect(Place())


def test_what_apply_raises_is_raised() -> None:
    """The failure shows the expected value."""
    with pytest.raises(ValueError, match="nothing moved"):
        given(Places(), [Moved("a", "pen", 0)])


def test_running_is_a_system_in_memory() -> None:
    """With everything that a real one has."""
    with running(Places()) as system:
        [applied] = system.bus.dispatch(MOVES[0]).result(10)
        assert (applied.version, applied.delta) == (1, {"pen": 2})
        assert system.settle(10)
    assert system.closed


moves = st.builds(Moved, st.sampled_from("ab"), st.sampled_from(["pen", "ink"]), st.integers(0, 3))


def test_the_checker_is_content_with_a_good_one() -> None:
    """Refusals are no fault, as long as they are the same each time."""
    check_apply(Places(), moves)
    check_apply(Places(), MOVES)


class KeepsState(Places):
    """Counts in itself."""

    def __init__(self) -> None:
        self.seen = 0

    def apply(self, state: Place, event: Moved) -> int:
        self.seen += 1
        return self.seen


class ReadsTheClock(Places):
    """As good as a clock."""

    ticks = itertools.count()

    def apply(self, state: Place, event: Moved) -> int:
        return next(self.ticks)


class ChangesItsEvent(Places):
    """Leaves a mark."""

    def apply(self, state: Place, event: Moved) -> int:
        event.tags.append("seen")
        return len(event.tags)


class HidesState(Places):
    """Keeps something in the state that its JSON does not have."""

    def apply(self, state: Any, event: Moved) -> int:
        state.hidden = getattr(state, "hidden", 0) + 1
        count: int = state.hidden
        return count


class CountsByIdentity(Places):
    """Takes two equal states for different ones."""

    def apply(self, state: Any, event: Moved) -> bool:
        first = state.stock.setdefault("list", 0) is not None
        state.stock[event.article] = 1
        shared = getattr(state, "_shared", None)
        state._shared = state.stock
        return first and shared is state.stock


class SkipsRepeats(Places):
    """Takes an event that comes again for one that it has seen."""

    last: Moved | None = None

    def apply(self, state: Place, event: Moved) -> int:
        seen, self.last = self.last is event and bool(state.stock), event
        state.stock[event.article] = 1
        return 0 if seen else 1


@pytest.mark.parametrize(
    ("faulty", "message"),
    [
        (KeepsState, "folded twice"),
        (ReadsTheClock, "folded twice"),
        (ChangesItsEvent, "folded twice"),
        (HidesState, "read back from its row"),
        (CountsByIdentity, "read back from its row"),
        (SkipsRepeats, "folded once before"),
    ],
)
def test_the_checker_finds_and_shrinks(faulty: type[Places], message: str) -> None:
    """What would go wrong after a conflict or a restart; the sequence is short."""
    with pytest.raises(AssertionError, match=message) as caught:
        check_apply(faulty(), moves)
    shown = [line for line in str(caught.value).split("\n") if line.startswith("    Moved(")]
    assert 1 <= len(shown) <= 2


def test_an_event_that_json_loses_is_found() -> None:
    """A dead letter of it could not be retried."""

    @dataclass
    class Odd:
        what: object

    class Odds(Projection[Odd, Place]):
        name = "test.odds"

        def key(self, event: Odd) -> str:
            return "a"

        def apply(self, state: Place, event: Odd) -> int:
            return 1

    with pytest.raises(AssertionError, match="no way through JSON"):
        check_apply(Odds(), [Odd(object())])


class CountsByNumber(Projection[Moved, dict]):  # type: ignore[type-arg]
    """Has int keys in an untyped dict, which come back as str."""

    name = "test.by_number"

    def key(self, event: Moved) -> str:
        return "a"

    def apply(self, state: Any, event: Moved) -> int:
        state[1] = state.get(1, 0) + 1
        count: int = state[1]
        return count


class Misannotated(Places):
    """Returns something else than it says."""

    def apply(self, state: Place, event: Moved) -> int:
        return "text"  # type: ignore[return-value]


@pytest.mark.parametrize(
    ("faulty", "message"),
    [(CountsByNumber, "int keys don't come back as int"), (Misannotated, "Expected `int`, got `str`")],
)
def test_what_a_running_system_would_refuse_is_found(faulty: Any, message: str) -> None:
    """Each of its events would be a dead letter, so that the order of events hardly matters."""
    with pytest.raises(AssertionError, match=message):
        check_apply(faulty(), moves)
    with pytest.raises(ValueError, match=message):
        given(faulty(), [Moved("a", "b")])


def test_a_projection_that_turns_verifying_off_is_checked_for_what_it_does() -> None:
    """Its states are saved without a check, and this shows the consequence."""

    class Unverified(CountsByNumber):
        name = "test.unverified"
        verify = False

    with pytest.raises(AssertionError, match="read back from its row"):
        check_apply(Unverified(), moves)


def test_keys_that_differ_are_found() -> None:
    """The same event has to go to the same key, always."""

    class Wandering(Places):
        numbers = itertools.count()

        def key(self, event: Moved) -> str:
            return str(next(self.numbers))

    with pytest.raises(AssertionError, match="the keys differ"):
        check_apply(Wandering(), moves)
