"""For the tests of apps: projections without a runtime, systems in memory, and a checker of ``apply``."""

from __future__ import annotations

import pprint
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any, NamedTuple, NoReturn

from msgspec import json

from ..store.codec import ReadBackError
from ..store.validation import check_key
from .projection import EventT, Projection, StateT, check_projection, event_types
from .projection_codec import ProjectionCodec
from .system import ProjectionSystem

if TYPE_CHECKING:
    from hypothesis.strategies import SearchStrategy

_NOT_GIVEN: Any = object()


@contextmanager
def running(
    *projections: Projection[Any, Any], tuning: Mapping[str, Any] | None = None, **settings: Any
) -> Iterator[ProjectionSystem]:
    """Run a system on a database in memory, and close it afterwards.

    Args:
        *projections: Registered before the system is returned.
        tuning: The tuning keys of the ProjectionSystem. Without ``report_seconds`` it writes no reports.
        **settings: Further keywords of the ProjectionSystem.

    Yields:
        The system.
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
    """Fold events without a system: ``given(Stock(), [Adjusted("north", "apple", 3)]).expect(state)``.

    No thread and no database is involved. State and deltas go through JSON as they would in a system.

    Args:
        projection: An instance.
        events: The events, oldest first.
        key: Fold only the events of this key. It may be left out if all events are for one key.

    Returns:
        The state and the deltas.

    Raises:
        ValueError: The events are for several keys, and ``key`` is not given.
        Exception: Every exception of ``apply``.
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
    """The result of ``given``: ``state``, and ``deltas`` as subscribers would see them."""

    def __init__(self, state: Any, deltas: list[Any], codecs: _Codecs) -> None:
        self.state = state
        self.deltas = deltas
        self._codecs = codecs

    def expect(self, state: Any = _NOT_GIVEN, deltas: Sequence[Any] = _NOT_GIVEN) -> None:
        """Raise AssertionError unless the state and the deltas are these.

        Args:
            state: An object, or its plain JSON value. Left out: any state.
            deltas: Objects, or their plain JSON values. Left out: any deltas.
        """
        __tracebackhide__ = True
        if state is not _NOT_GIVEN and self._codecs.plain(self.state) != self._codecs.plain(state):
            _differ("the state", self._codecs.plain(state), self._codecs.plain(self.state))
        if deltas is not _NOT_GIVEN:
            wanted = [self._codecs.plain_delta(delta) for delta in deltas]
            if wanted != self.deltas:
                _differ("the deltas", wanted, self.deltas)


class _Codecs:
    def __init__(self, projection: Projection[Any, Any]) -> None:
        self._codec = ProjectionCodec(projection)

    def plain(self, state: Any) -> Any:
        return json.decode(self._codec.state.encode(state))

    def plain_delta(self, delta: Any) -> Any:
        encoded = self._codec.delta.encode(delta)
        undecodable = self._codec.first_undecodable([encoded])
        if undecodable is not None:
            raise ReadBackError(str(undecodable[1]))
        return json.decode(encoded)

    def round_trip(self, state: Any) -> Any:
        return self._codec.state.decode(self.encode(state))

    def encode(self, state: Any) -> bytes:
        """Return the state as its row would have it. Raises EncodeError as the actor would."""
        return self._codec.encode_state(state)

    def read_back(self, event: Any) -> Any:
        """Return the event as it comes back from a dead letter. Raises EncodeError or DecodeError."""
        codec = self._codec.codec_of(type(event))
        return codec.decode(codec.encode(event))


def _differ(subject: str, wanted: Any, found: Any) -> NoReturn:
    __tracebackhide__ = True
    msg = f"{subject} should be\n{pprint.pformat(wanted)}\nand is\n{pprint.pformat(found)}"
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
    """Look for a sequence of events for which ``apply`` does not work in a running system.

    Needs Hypothesis (https://hypothesis.readthedocs.io). It tries batches that are split anywhere, so that
    the state is read back from its row in between; events that are delivered again after a conflict, on a
    state read back; events that are read back from a dead letter; and keys that are asked for twice. Each has
    to lead to the same states and deltas, or to the same refusal.

    Args:
        projection: An instance.
        events: A Hypothesis strategy, or some events to draw from.
        examples: How many sequences are tried.

    Raises:
        AssertionError: With the shortest sequence that was found, and the difference.
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
    copies = [_read_back(projection, codecs, event) for event in events]
    copied = _fold(projection, codecs, copies)
    _compare("with its events read back from JSON, as from dead letters, it differs", events, plain, copied)


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
            state = before  # as for a poison event: the half-changed state is thrown away
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


def _read_back(projection: Projection[Any, Any], codecs: _Codecs, event: Any) -> Any:
    if not isinstance(event, event_types(projection)):
        msg = f"{event!r} is no event of {projection.name}"
        raise TypeError(msg)
    try:
        return codecs.read_back(event)
    except ValueError as error:
        _found(
            "an event has no way through JSON, so as a dead letter it can't be retried",
            [event],
            "JSON",
            str(error),
        )


def _compare(finding: str, events: list[Any], wanted: _Folded, found: _Folded) -> None:
    if wanted.outcomes != found.outcomes:
        _found(f"{finding}: the deltas", events, wanted.outcomes, found.outcomes)
    if wanted.state != found.state:
        _found(f"{finding}: the state", events, wanted.state, found.state)


def _found(finding: str, events: list[Any], wanted: Any, found: Any) -> NoReturn:
    shown = "\n".join(f"    {event!r}" for event in events)
    msg = f"{finding}\nfor the events\n{shown}\n  one way:   {wanted!r}\n  the other: {found!r}"
    raise AssertionError(msg)
