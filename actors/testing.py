"""For the tests of apps: projections without a runtime, systems without a file, and a checker of ``apply``."""

from __future__ import annotations

import pprint
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from msgspec import json

from ..store.codec import Codec, ReadBackError
from ..store.validation import check_key
from .projection import EventT, Projection, StateT, check_projection, delta_type, event_types
from .system import ProjectionSystem

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_UNSAID: Any = object()


@contextmanager
def running(
    *projections: Projection[Any, Any], tuning: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[ProjectionSystem]:
    """Run a system with these projections on a database in memory, and close it afterwards.

    Args:
        projections: The projections to register.
        tuning: The tuning keys of the ProjectionSystem. Without ``report_seconds`` it writes no reports.
        settings: Further keywords of the ProjectionSystem.
    """
    quiet = {} if "report_seconds" in settings else {"report_seconds": 0}
    with ProjectionSystem("sqlite://", tuning={**quiet, **(tuning or {})}, **settings) as system:
        for projection in projections:
            system.register(projection)
        yield system


# -- one projection by itself


def given(
    projection: Projection[EventT, StateT], events: Iterable[EventT], *, key: str | None = None
) -> Given:
    """Fold events by hand: ``given(Stock(), [Adjusted("north", "apple", 3)]).expect(state, deltas)``.

    Only the events of ``key`` are folded; it may be left out if all are for one. Nothing runs: no
    thread, no database. State and deltas go through JSON as they would. What ``apply`` raises is raised.
    """
    check_projection(projection)
    events = list(events)
    keys = {name for event in events for name in projection.keys(event)}
    if key is None and len(keys) > 1:
        msg = f"the events are for the keys {', '.join(map(repr, sorted(keys)))}: say which by key="
        raise ValueError(msg)
    chosen = [event for event in events if key is None or key in projection.keys(event)]
    codecs = _Codecs(projection)
    state, deltas = projection.state_type(), []
    for event in chosen:
        deltas.append(codecs.plain_delta(projection.apply(state, event)))
        state = codecs.round_trip(state)
    return Given(state, deltas, codecs)


class Given:
    """What came of the events: ``state``, and ``deltas`` as subscribers would see them."""

    def __init__(self, state: Any, deltas: list[Any], codecs: _Codecs) -> None:
        self.state = state
        self.deltas = deltas
        self._codecs = codecs

    def expect(self, state: Any = _UNSAID, deltas: Sequence[Any] = _UNSAID) -> None:
        """Raise AssertionError unless it is so. Both may be given as objects or as their plain JSON values."""
        __tracebackhide__ = True
        if state is not _UNSAID and self._codecs.plain(self.state) != self._codecs.plain(state):
            _differ("the state", self._codecs.plain(state), self._codecs.plain(self.state))
        if deltas is not _UNSAID:
            wanted = [self._codecs.plain_delta(delta) for delta in deltas]
            if wanted != self.deltas:
                _differ("the deltas", wanted, self.deltas)


class _Codecs:
    def __init__(self, projection: Projection[Any, Any]) -> None:
        encode, decode = projection.encode_hook, projection.decode_hook
        self._state = Codec(projection.state_type, encode_hook=encode, decode_hook=decode)
        self._delta = Codec(delta_type(projection), encode_hook=encode, decode_hook=decode)
        self._verifies = projection.verify

    def plain(self, state: Any) -> Any:
        return json.decode(self._state.encode(state))

    def plain_delta(self, delta: Any) -> Any:
        encoded = self._delta.encode(delta)
        if self._verifies:
            undecodable = self._delta.decodes([encoded])
            if undecodable is not None:
                raise ReadBackError(str(undecodable[1]))
        return json.decode(encoded)

    def round_trip(self, state: Any) -> Any:
        return self._state.decode(self.encode(state))

    def encode(self, state: Any) -> bytes:
        """Return the state as its row would have it. Raises EncodeError as the actor's turn would."""
        encoded = self._state.encode(state)
        if self._verifies:
            self._state.verify(state, encoded)
        return encoded


def _differ(what: str, wanted: Any, found: Any) -> NoReturn:
    __tracebackhide__ = True
    msg = f"{what} should be\n{pprint.pformat(wanted)}\nand is\n{pprint.pformat(found)}"
    raise AssertionError(msg)


# -- the checker


class _Folded(NamedTuple):
    state: Any
    outcomes: list[Any]


def check_apply(
    projection: Projection[EventT, StateT],
    events: SearchStrategy[EventT] | Sequence[EventT],
    *,
    examples: int = 200,
) -> None:
    """Look for a sequence of events on which ``apply`` would not do in a running system.

    Needs Hypothesis (https://hypothesis.readthedocs.io). ``events`` is a strategy, or some events to draw
    from. Tried are: batches split anywhere, so that the state is read back from its row in between; events
    delivered again after a conflict, on a state read back; events read back from a dead letter; keys
    asked for twice. Each has to lead to the same states and deltas, or to the same refusal. Raises
    AssertionError with the shortest sequence that was found, and what differs.
    """
    from hypothesis import HealthCheck, given, settings  # noqa: PLC0415  # the app's own, for its tests
    from hypothesis import strategies as st  # noqa: PLC0415

    check_projection(projection)
    drawn = events if isinstance(events, st.SearchStrategy) else st.sampled_from(list(events))
    codecs = _Codecs(projection)

    @settings(max_examples=examples, database=None, deadline=None, suppress_health_check=list(HealthCheck))
    @given(st.lists(drawn, min_size=1, max_size=12), st.sets(st.integers(0, 12)))
    def check(sequence: list[Any], cuts: set[int]) -> None:
        by_key: dict[str, list[Any]] = {}
        for event in sequence:
            keys = list(projection.keys(event))
            if keys != list(projection.keys(event)):
                _found("asked twice, the keys differ", [event], keys, list(projection.keys(event)))
            for key in keys:
                check_key(key, projection=projection.name)
                by_key.setdefault(key, []).append(event)
        for own in by_key.values():
            _check_one(projection, codecs, own, cuts)

    check()


def _check_one(projection: Projection[Any, Any], codecs: _Codecs, events: list[Any], cuts: set[int]) -> None:
    plain = _fold(projection, codecs, events)
    again = _fold(projection, codecs, events)
    _compare(
        "folded twice, it differs: apply is not deterministic, or changes its event", events, plain, again
    )
    split = _fold(projection, codecs, events, cuts=cuts)
    at = sorted(cut for cut in cuts if cut < len(events))
    _compare(
        f"read back from its row before events {at}, the state folds on differently", events, plain, split
    )
    twice = _fold(projection, codecs, events, rehearse=True)
    _compare(
        "after each event was folded once before, on a state thrown away, it differs", events, plain, twice
    )
    copies = [_read_back(projection, event) for event in events]
    kept = _fold(projection, codecs, copies)
    _compare("with its events read back from JSON, as from dead letters, it differs", events, plain, kept)


def _fold(
    projection: Projection[Any, Any],
    codecs: _Codecs,
    events: list[Any],
    *,
    cuts: set[int] = frozenset(),  # type: ignore[assignment]
    rehearse: bool = False,
) -> _Folded:
    state, outcomes = projection.state_type(), []
    for number, event in enumerate(events):
        if number in cuts:
            state = codecs.round_trip(state)
        before = codecs.round_trip(state)
        if rehearse:
            _outcome(projection, codecs, codecs.round_trip(state), event)
        outcome = _outcome(projection, codecs, state, event)
        if isinstance(outcome, _Refusal):
            state = before  # as a poison event is treated: the half-changed state is thrown away
        outcomes.append(outcome)
    return _Folded(codecs.plain(state), outcomes)


class _Refusal(NamedTuple):
    error: str


def _outcome(projection: Projection[Any, Any], codecs: _Codecs, state: Any, event: Any) -> Any:
    try:
        delta = codecs.plain_delta(projection.apply(state, event))
        codecs.encode(state)
    except ReadBackError as error:
        _found(
            "the event is refused: its state or delta is not read back as it was",
            [event],
            "equal",
            str(error),
        )
    except Exception as error:
        return _Refusal(f"{type(error).__name__}: {error}")
    return delta


def _read_back(projection: Projection[Any, Any], event: Any) -> Any:
    if not isinstance(event, event_types(projection)):
        msg = f"{event!r} is no event of {projection.name}"
        raise TypeError(msg)
    codec = Codec(type(event), encode_hook=projection.encode_hook, decode_hook=projection.decode_hook)
    try:
        return codec.decode(codec.encode(event))
    except ValueError as error:
        _found(
            "an event has no way through JSON, so as a dead letter it can't be retried",
            [event],
            "JSON",
            str(error),
        )


def _compare(what: str, events: list[Any], wanted: _Folded, found: _Folded) -> None:
    if wanted.outcomes != found.outcomes:
        _found(f"{what}: the deltas", events, wanted.outcomes, found.outcomes)
    if wanted.state != found.state:
        _found(f"{what}: the state", events, wanted.state, found.state)


def _found(what: str, events: list[Any], wanted: Any, found: Any) -> NoReturn:
    shown = "\n".join(f"    {event!r}" for event in events)
    msg = f"{what}\nfor the events\n{shown}\n  one way:   {wanted!r}\n  the other: {found!r}"
    raise AssertionError(msg)
