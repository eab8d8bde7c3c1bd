"""At the edges.

Odd keys, events, states, deltas and exceptions, each of which harms itself alone and loses nothing.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Callable
from dataclasses import dataclass, field
from enum import Enum
from types import SimpleNamespace
from typing import Any, ClassVar, Literal

import pytest
from keyfold.actors import (
    ApplyError,
    BroadcastError,
    InvalidEvent,
    InvalidProjection,
    Projection,
    ProjectionRuntime,
    ProjectionSystem,
    StoreError,
)
from keyfold.actors.broadcaster import Committed
from keyfold.actors.key_actor.fold import fold
from support.counting import Added, RecordingBroadcaster, Total, Totals, poison
from support.parking import DEADLINE, wait_until

MakeSystem = Callable[..., ProjectionSystem]
Runtime = ProjectionRuntime[Added, Total]


# -- keys


class Region(str, Enum):  # noqa: UP042  # StrEnum has a str() that is not odd
    """Its own str() is Region.NORTH, which is nobody's key."""

    NORTH = "north"


def test_a_key_that_is_a_str_enum_is_its_plain_string(make_system: MakeSystem) -> None:
    """In the row, in the Receipt, and for a reader that uses it or the string."""
    system = make_system()
    totals = system.register(Totals())
    [applied] = system.bus.dispatch(Added(Region.NORTH)).result(DEADLINE)
    assert (applied.key, type(applied.key)) == ("north", str)
    assert system.bus.dispatch(Added("north")).result(DEADLINE)[0].version == 2
    assert totals.read(Region.NORTH) == totals.read("north") == Total(2, [1, 1])
    assert system.store.row("test.totals", "Region.NORTH") is None
    assert list(totals.running().actors) == ["north"]


class Twice(Totals):
    """Names one key by two objects."""

    name = "test.twice"
    returned: Any = ()

    def keys(self, event: Added) -> Any:
        return self.returned


def test_a_key_named_twice_takes_the_event_once(make_system: MakeSystem) -> None:
    """By its string and by an enum of the same string."""
    projection = Twice()
    projection.returned = ("north", Region.NORTH)
    runtime = make_system().register(projection)
    assert [one.version for one in runtime.apply_event(Added("x"), DEADLINE)] == [1]


def test_keys_that_is_one_str_is_refused(make_system: MakeSystem) -> None:
    """It would be a key for each character."""
    projection = Twice()
    projection.returned = "north"
    system = make_system()
    runtime = system.register(projection)
    with pytest.raises(InvalidEvent, match=r"return a list or tuple of keys"):
        system.bus.dispatch(Added("x"))
    assert runtime.read("n") is None


# -- events


@dataclass
class Noted:
    """A text, as a request brings it."""

    key: str
    text: str
    weight: float = 0.0


@dataclass
class Notes:
    """All texts."""

    texts: list[str] = field(default_factory=list)
    mean: float = 0.0


class Pad(Projection[Noted, Notes]):
    """Collects texts; one of them is forbidden at the moment."""

    name = "test.pad"
    forbidden: str | None = None

    def key(self, event: Noted) -> str:
        return event.key

    def apply(self, state: Notes, event: Noted) -> dict[str, str]:
        if self.forbidden is not None and event.text.startswith(self.forbidden):
            raise ValueError(self.forbidden)
        state.texts.append(event.text)
        state.mean = event.weight
        return {"text": event.text}


class HaltingPad(Pad):
    """Parks."""

    on_error: ClassVar[Literal["dead_letter", "halt"]] = "halt"


@pytest.mark.parametrize("kind", [Pad, HaltingPad])
def test_a_large_event_is_kept_whole_and_folded_later(make_system: MakeSystem, kind: type[Pad]) -> None:
    """Promise 6: also one of nearly a megabyte; only the error and its traceback are cut."""
    projection = kind()
    projection.forbidden = "bad"
    system = make_system()
    runtime = system.register(projection)
    texts = ["bad" + "x" * 30_000, "good" + "é" * 400_000]
    receipts = [system.bus.dispatch(Noted("a", text)) for text in texts]
    assert receipts[0].exception(DEADLINE) is not None
    receipts[1].exception(DEADLINE)
    projection.forbidden = None
    if kind is HaltingPad:
        assert runtime.dead_letters.resume("a") == 2
    else:
        [letter] = runtime.dead_letters.find()
        runtime.dead_letters.retry(letter.id)
    assert sorted(runtime.read_required("a").texts) == texts
    assert runtime.dead_letters.find() == []


def test_an_event_above_the_limit_is_refused_by_dispatch(make_system: MakeSystem) -> None:
    """Bounded: the error names the setting; the limit itself still goes."""
    system = make_system(event_bytes=1_000)
    runtime = system.register(Pad())
    with pytest.raises(InvalidEvent, match="KEYFOLD_EVENT_BYTES"):
        system.bus.dispatch(Noted("a", "x" * 1_000))
    assert system.settle(0)
    assert runtime.apply_event(Noted("a", "x" * 900), DEADLINE)[0].version == 1


@pytest.mark.parametrize(
    ("event", "message"),
    [
        (Noted("a", ["not", "a", "text"]), r"'text'.*array"),  # type: ignore[arg-type]
        (Noted("a", "x", math.nan), r"'weight'"),
        (Noted("a", "x", -math.inf), r"'weight'"),
        (Noted("a", "x", "heavy"), r"'weight'.*str"),  # type: ignore[arg-type]
    ],
)
@pytest.mark.parametrize("kind", [Pad, HaltingPad])
def test_an_event_that_could_not_be_read_back_is_refused_by_name(
    make_system: MakeSystem, kind: type[Pad], event: Noted, message: str
) -> None:
    """At dispatch, with nothing accepted.

    A badly typed event was committed once, and bricked its key later.
    """
    system = make_system()
    runtime = system.register(kind())
    before = runtime.apply_event(Noted("a", "fine"), DEADLINE)
    with pytest.raises(InvalidEvent, match=message) as caught:
        system.bus.dispatch(event)
    assert (caught.value.event, caught.value.projection) == (event, "test.pad")
    assert system.settle(0)
    snapshot = runtime.snapshot("a")
    assert snapshot is not None
    assert (snapshot.epoch, snapshot.version) == (before[0].epoch, 1)
    assert runtime.dead_letters.find() == []


class Plain:
    """An event without a form in JSON."""

    key = "a"


class Plains(Projection[Plain, Total]):
    """Halts."""

    name = "test.plains"
    on_error: ClassVar[Literal["dead_letter", "halt"]] = "halt"

    def key(self, event: Plain) -> str:
        return event.key

    def apply(self, state: Total, event: Plain) -> None:
        state.total += 1


def test_a_key_that_may_halt_takes_only_events_that_can_be_kept(make_system: MakeSystem) -> None:
    """Parked as its repr an event could never be folded, and the good ones behind it were gone."""
    system = make_system()
    runtime = system.register(Plains())
    with pytest.raises(InvalidEvent, match="Plain"):
        system.bus.dispatch(Plain())
    assert runtime.read("a") is None


def test_a_letter_kept_by_a_script_is_retried_under_the_name_of_its_module(make_system: MakeSystem) -> None:
    """The class of a script is __main__.Noted there, and shop.Noted to a module that imports it."""
    system = make_system()
    runtime = system.register(Pad())
    here = Noted.__module__
    for name in ("Noted", f"{here}.Noted", "__main__.Noted"):
        assert runtime.decode_event('{"key": "a", "text": "x"}', name) == Noted("a", "x")
    for name in ("other.Noted", "__main__.NotNoted", "XNoted"):
        with pytest.raises(InvalidEvent, match="no event of it"):
            runtime.decode_event('{"key": "a", "text": "x"}', name)


def test_classes_made_on_the_fly_are_not_all_kept(make_system: MakeSystem) -> None:
    """An app that makes a class for each event must not grow with them."""
    system = make_system()
    runtime = system.register(Totals())
    system.bus.listen(SimpleNamespace, lambda _event: None)
    for number in range(2_500):
        system.bus.dispatch(type(f"Made{number}", (SimpleNamespace,), {})())
        kind = type(f"Added{number}", (Added,), {})
        runtime._check_of(kind)
    assert len(system.bus._routes) <= 1_000
    assert len(runtime._checks) <= 1_000


# -- states and deltas


class Kept(Projection[Added, dict]):  # type: ignore[type-arg]
    """Changes its untyped state by the function in the event."""

    name = "test.kept"

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Any, event: Added) -> Any:
        state["n"] = state.get("n", 0) + 1
        return event.then(state) if event.then is not None else None


def nested(levels: int) -> list[Any]:
    value: list[Any] = []
    for _ in range(levels):
        value = [value]
    return value


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda state: state.update({7: 1}), "int keys"),
        (lambda state: state.update(mean=math.nan), "'mean'|mean"),
        (lambda state: state.update(mean=math.inf), "'mean'|mean"),
        (lambda state: state.update(pair=(1, 2)), "tuple"),
        (lambda state: state.update(seen={1}), "set"),
        (lambda state: state.update(deep=nested(990)), "nested deeper|recursion depth"),
        (lambda state: state.update(deep=nested(300)), "nested deeper"),
    ],
)
def test_a_state_that_would_come_back_as_another_is_the_events_error(
    make_system: MakeSystem, broadcaster: RecordingBroadcaster, change: Callable[[Any], Any], message: str
) -> None:
    """At the event that brings it, with the state of before intact and shown.

    The next event is folded on that.
    """
    system = make_system(broadcaster=broadcaster)
    runtime = system.register(Kept())
    for _ in range(2):
        runtime.apply_event(Added("a"), DEADLINE)
    receipts = [system.bus.dispatch(event) for event in (Added("a"), Added("a", 1, change), Added("a"))]
    errors = [receipt.exception(DEADLINE) for receipt in receipts]
    assert [type(error) for error in errors] == [type(None), ApplyError, type(None)]
    with pytest.raises(ApplyError, match=message):
        receipts[1].result(0)
    assert runtime.read("a") == {"n": 4}
    assert sum(len(turn.deltas) for turn in broadcaster.published) == 4


class Typed(Totals):
    """Its delta is not always of the annotated type."""

    name = "test.typed"

    def apply(self, state: Total, event: Added) -> dict[str, int]:
        delta: dict[str, int] = super().apply(state, event)
        return delta


@pytest.mark.parametrize("wrong", [{"total": 0.5}, {"total": math.nan}, ["no"], {"total": "1"}])
def test_a_delta_that_is_not_as_annotated_is_the_events_error(make_system: MakeSystem, wrong: Any) -> None:
    """A Receipt of a committed event raised DecodeError once, and a retry never ended."""
    system = make_system()
    runtime = system.register(Typed())
    receipts = [
        system.bus.dispatch(event)
        for event in (Added("a"), Added("a", 10, lambda _state: wrong), Added("a", 100))
    ]
    errors = [receipt.exception(DEADLINE) for receipt in receipts]
    assert [type(error) for error in errors] == [type(None), ApplyError, type(None)]
    assert runtime.read_required("a").amounts == [1, 100]
    assert receipts[2].result(0)[0].delta == {"total": 101}


class Fickle(Typed):
    """A release whose deltas are wrong for letters."""

    name = "test.fickle"
    delta: Any = None

    def apply(self, state: Total, event: Added) -> dict[str, int]:
        super().apply(state, event)
        if self.delta is None:
            raise ValueError
        return self.delta  # type: ignore[no-any-return]


def test_a_retry_of_a_delta_that_does_not_decode_ends(make_system: MakeSystem) -> None:
    """With an ApplyError; the letter stays, and nothing is under way."""
    system = make_system()
    projection = Fickle()
    runtime = system.register(projection)
    assert isinstance(system.bus.dispatch(Added("a")).exception(DEADLINE), ApplyError)
    projection.delta = {"total": 0.5}
    [letter] = runtime.dead_letters.find()
    with pytest.raises(ApplyError):
        runtime.dead_letters.retry(letter.id)
    assert system.settle(DEADLINE)
    projection.delta = {"total": 1}
    assert runtime.dead_letters.retry(letter.id)[0].delta == {"total": 1}


def keep_an_object(state: Any) -> None:
    """Change an untyped state to one without a form in JSON."""
    state["odd"] = object()


def keep_a_pair(state: Any) -> None:
    """Change an untyped state to one that comes back as another."""
    state["pair"] = (1, 2)


class Trusting(Kept):
    """Switches the verification off, and knows the consequences."""

    name = "test.trusting"
    verify = False


def test_a_projection_may_turn_the_check_off_and_says_so(make_system: MakeSystem) -> None:
    """By its name, in its facts."""
    system = make_system()
    trusting, kept = system.register(Trusting()), system.register(Kept())
    trusting.apply_event(Added("a", 1, keep_a_pair), DEADLINE)
    assert trusting.read("a") == {"n": 1, "pair": [1, 2]}
    facts = system.stats()["projections"]
    assert (facts[trusting.name]["verified"], facts[kept.name]["verified"]) == (False, True)
    bad = Trusting()
    bad.verify = "no"  # type: ignore[assignment, misc]
    with pytest.raises(InvalidProjection, match="verify"):
        make_system().register(bad)


def test_a_rebuild_to_a_state_without_a_form_in_json_is_a_projection_error(make_system: MakeSystem) -> None:
    """Nothing is written then."""
    runtime = make_system().register(Kept())
    runtime.apply_event(Added("a"), DEADLINE)
    with pytest.raises(ApplyError):
        runtime.rebuild("a", [Added("a", 1, keep_an_object)])
    assert runtime.read("a") == {"n": 1}


# -- exceptions


class Unspeakable(Exception):
    """Its text can't be had."""

    def __str__(self) -> str:
        raise AttributeError

    __repr__ = __str__


def test_an_exception_whose_text_raises_harms_one_event(totals: Runtime, system: ProjectionSystem) -> None:
    """Promise 6: it killed the actor once, and with it a thousand events."""

    def fail(_state: Total) -> None:
        raise Unspeakable

    receipts = [system.bus.dispatch(Added("a", n, fail if n == 25 else None)) for n in range(50)]
    errors = [receipt.exception(DEADLINE) for receipt in receipts]
    assert [n for n, error in enumerate(errors) if error is not None] == [25]
    assert isinstance(errors[25], ApplyError)
    assert "Unspeakable" in str(errors[25])
    [letter] = totals.dead_letters.find()
    assert "Unspeakable" in letter.error
    assert totals.read_required("a").amounts == [n for n in range(50) if n != 25]


def test_a_broadcast_that_fails_with_such_an_exception_loses_nothing(make_system: MakeSystem) -> None:
    """Promise 5."""

    def fail(_committed: Committed) -> None:
        raise Unspeakable

    system = make_system(broadcaster=RecordingBroadcaster(before=fail))
    runtime = system.register(Totals())
    assert isinstance(system.bus.dispatch(Added("a")).exception(DEADLINE), BroadcastError)
    assert runtime.read_required("a").total == 1


# -- resuming


def test_a_broadcast_that_fails_does_not_end_a_resume(make_system: MakeSystem) -> None:
    """Promise 5: all 251 parked events are committed, in as many chunks as it takes."""
    fails = False

    def before(_committed: Committed) -> None:
        if fails:
            raise OSError

    system = make_system(broadcaster=RecordingBroadcaster(before))
    projection = HaltingPad()
    projection.forbidden = "bad"
    runtime = system.register(projection)
    receipts = [system.bus.dispatch(Noted("a", "bad" if n == 0 else str(n))) for n in range(251)]
    for receipt in receipts:
        receipt.exception(DEADLINE)
    projection.forbidden = None
    fails = True
    assert runtime.dead_letters.resume("a") == 251
    assert len(runtime.read_required("a").texts) == 251
    assert runtime.dead_letters.find() == []


def test_letters_before_one_that_does_not_decode_are_folded(make_system: MakeSystem) -> None:
    """It is named, and stays with those behind it."""
    system = make_system()
    projection = HaltingPad()
    projection.forbidden = "bad"
    runtime = system.register(projection)
    receipts = [system.bus.dispatch(Noted("a", "bad" if n == 0 else str(n))) for n in range(20)]
    for receipt in receipts:
        receipt.exception(DEADLINE)
    broken = runtime.dead_letters.find()[11]
    sql = "UPDATE projection_dead_letters SET event = '{\"key\": 5}' WHERE id = " + str(broken.id)
    system.store.run(lambda: system.store.database.execute_sql(sql))
    projection.forbidden = None
    with pytest.raises(InvalidEvent, match=f"dead letter {broken.id}"):
        runtime.dead_letters.resume("a")
    assert len(runtime.read_required("a").texts) == 11
    assert len(runtime.dead_letters.find()) == 9


# -- releases


class NewPad(Pad):
    """A newer release."""

    schema_version = 2

    def upgrade(self, state: Any, from_version: int) -> Any:
        return {"texts": [text.upper() for text in state["texts"]], "mean": state["mean"]}


def test_an_old_release_does_not_rebuild_over_the_row_of_a_newer_one(make_system: MakeSystem) -> None:
    """It knows neither the shape nor the events of that; wiping and repairing stay possible."""
    new = make_system().register(NewPad())
    new.apply_event(Noted("a", "x"), DEADLINE)
    old = make_system().register(Pad())
    with pytest.raises(StoreError, match="schema 2"):
        old.rebuild("a", [Noted("a", "y")])
    assert new.read_required("a").texts == ["x"]


def test_a_value_written_by_hand_is_in_todays_shape(make_system: MakeSystem) -> None:
    """It was upgraded once more by the next read, and 500 became 50,000."""
    system = make_system()
    new = system.register(NewPad())
    system.store.write("test.pad", "b", Notes(["x"]))
    assert new.read_required("b").texts == ["x"]


# -- turns


def test_slow_events_are_timed_one_by_one_and_fast_ones_are_not(monkeypatch: pytest.MonkeyPatch) -> None:
    """The limit of a turn holds where one event takes longer than it; the clock costs fast ones little."""
    now, looks = 0.0, 0

    def clock() -> float:
        nonlocal looks
        looks += 1
        return now

    monkeypatch.setattr("keyfold.actors.key_actor.fold.monotonic", clock)

    def apply(_state: Any, seconds: float) -> None:
        nonlocal now
        now += seconds

    codec: Any = SimpleNamespace(
        projection=SimpleNamespace(apply=apply),
        delta=SimpleNamespace(encode_part=lambda _delta: b""),
        first_undecodable=lambda _deltas: None,
    )
    batch = [SimpleNamespace(event=0.03) for _ in range(100)]
    deltas, error = fold(codec, None, batch, now + 0.01)
    assert (len(deltas), error) == (1, None)
    deltas, _ = fold(codec, None, batch, now + 0.1)
    assert len(deltas) == 4
    now, looks = 0.0, 0
    deltas, _ = fold(codec, None, [SimpleNamespace(event=0.00001) for _ in range(1_000)], 1.0)
    assert len(deltas) == 1_000
    assert looks < 50


# -- connections


def test_no_connection_is_left_after_a_close(postgres_url: str) -> None:
    """However many systems a process opens and closes."""
    systems = []
    for _ in range(6):
        system = ProjectionSystem(postgres_url)
        runtime = system.register(Totals())
        everyone = [threading.Thread(target=runtime.read, args=("a",)) for _ in range(6)]
        for thread in everyone:
            thread.start()
        system.bus.dispatch(Added("a")).result(DEADLINE)
        for thread in everyone:
            thread.join(DEADLINE)
        system.close(DEADLINE)
        systems.append(system)
    probe = ProjectionSystem(postgres_url)
    sql = (
        "SELECT count(*) FROM pg_stat_activity WHERE datname = current_database() "
        "AND backend_type = 'client backend' AND pid <> pg_backend_pid()"
    )
    # A server's process takes notice of the end a moment later.
    wait_until(lambda: probe.store.run(lambda: probe.store.database.execute_sql(sql).fetchone()) == (0,))
    probe.close()


def test_poisons_of_this_module_poison(totals: Runtime) -> None:
    """The helper raises, so the tests that use it mean something."""
    with pytest.raises(ApplyError):
        totals.apply_event(Added("a", 1, poison), DEADLINE)
