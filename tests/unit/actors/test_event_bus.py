"""The bus: routing by class, priorities, vetoes, and the Receipt of an event without listeners."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import pytest
from keyfold.actors import (
    AlreadyRegistered,
    EventBus,
    InvalidEvent,
    InvalidKey,
    InvalidProjection,
    Projection,
    ProjectionError,
    ProjectionRuntime,
    ProjectionSystem,
    Receipt,
)
from keyfold.actors.errors import UnknownProjection
from support.counting import Added, Total, Totals
from support.parking import DEADLINE


@dataclass
class Base:
    key: str = "a"


@dataclass
class Derived(Base):
    pass


def test_higher_priority_goes_first_and_equal_priority_in_order() -> None:
    """Listeners run in the caller's thread, before dispatch returns."""
    bus, seen = EventBus(), list[tuple[str, str]]()

    def listener(name: str) -> Any:
        return lambda _event: seen.append((name, threading.current_thread().name))

    bus.listen(Base, listener("first"))
    bus.listen(Base, listener("second"))
    bus.listen(Base, listener("early"), priority=5)
    bus.listen(Base, listener("late"), priority=-5)
    bus.dispatch(Base())
    assert [name for name, _ in seen] == ["early", "first", "second", "late"]
    assert {thread for _, thread in seen} == {threading.current_thread().name}


def test_routing_is_by_class_base_classes_included() -> None:
    """A listener for the base hears of the derived, not the other way round."""
    bus, seen = EventBus(), list[str]()

    @bus.on(Base)
    def on_base(event: Base) -> None:
        seen.append(f"base {type(event).__name__}")

    @bus.on(Derived, priority=1)
    def on_derived(event: Derived) -> None:
        seen.append(f"derived {type(event).__name__}")

    bus.dispatch(Base())
    bus.dispatch(Derived())
    assert seen == ["base Base", "derived Derived", "base Derived"]
    assert on_base is not None
    assert on_derived is not None


def test_has_listeners_forget_and_flush() -> None:
    """``forget`` is for exactly one class, ``flush`` for all; routes made before are forgotten too."""
    bus, seen = EventBus(), list[object]()
    bus.listen(Base, seen.append)
    bus.listen(Derived, seen.append)
    assert bus.has_listeners(Derived)
    assert not bus.has_listeners(str)
    bus.dispatch(Derived())
    bus.forget(Base)
    assert not bus.has_listeners(Base)
    bus.dispatch(Derived())
    assert len(seen) == 3
    bus.flush()
    assert not bus.has_listeners(Derived)
    bus.dispatch(Derived())
    assert len(seen) == 3


def test_the_first_listener_that_raises_stops_the_rest(system: ProjectionSystem) -> None:
    """Its error leaves dispatch: a veto in front of a projection keeps the event from it."""
    totals = system.register(Totals())
    seen: list[object] = []

    def veto(event: Added) -> None:
        if event.amount < 0:
            msg = "no"
            raise ValueError(msg)

    system.bus.listen(Added, veto, priority=1)
    system.bus.listen(Added, seen.append, priority=-1)
    with pytest.raises(ValueError, match="no"):
        system.bus.dispatch(Added("a", -1))
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    assert len(seen) == 1
    assert totals.read_required("a").amounts == [1]


def test_without_a_listener_the_receipt_is_done_and_empty() -> None:
    """Nobody listens: nothing waits, nothing is raised."""
    receipt = EventBus().dispatch(Base())
    assert receipt.done()
    assert receipt.result(timeout=0) == ()
    assert receipt.exception(timeout=0) is None
    called: list[Receipt] = []
    receipt.add_done_callback(called.append)
    assert called == [receipt]


@pytest.mark.parametrize("event", [None, Base])
def test_what_is_no_event_is_refused(event: Any) -> None:
    """A class instead of an object is a common slip."""
    bus = EventBus()
    bus.listen(object, lambda _event: None)
    with pytest.raises(InvalidEvent, match="dispatch an event object"):
        bus.dispatch(event)


def test_listening_wrongly_is_refused() -> None:
    """A clear error at the moment it is written."""
    bus = EventBus()
    with pytest.raises(InvalidProjection, match="must be callable"):
        bus.listen(Base, "print")  # type: ignore[arg-type]
    with pytest.raises(InvalidProjection, match="listen for a class"):
        bus.listen("Base", print)  # type: ignore[arg-type]


def test_a_runtime_registered_twice_is_an_error(
    system: ProjectionSystem, totals: ProjectionRuntime[Added, Total]
) -> None:
    """The seed folds every event twice then."""
    with pytest.raises(AlreadyRegistered, match=r"test\.totals"):
        system.register(Totals())
    with pytest.raises(AlreadyRegistered, match="listens on this bus already"):
        system.bus.attach(totals)
    assert totals.apply_event(Added("a", 1), DEADLINE)[0].version == 1


def test_registering_while_dispatching_loses_nobody() -> None:
    """Thread-safe: every listener that was registered before a dispatch hears of it."""
    bus = EventBus()
    counts = [0] * 200

    def work(number: int) -> None:
        def listener(event: int) -> None:
            if event == number:
                counts[number] += 1

        bus.listen(int, listener)
        bus.dispatch(number)

    with ThreadPoolExecutor(8) as pool:
        list(pool.map(work, range(200)))
    assert counts == [1] * 200


def test_callbacks_run_when_the_commit_is_there(
    system: ProjectionSystem, totals: ProjectionRuntime[Added, Total]
) -> None:
    """``add_done_callback``: with the receipt, in order; one that raises is logged and harms nobody."""
    ready = threading.Event()
    seen: list[int] = []

    def fail(_receipt: Receipt) -> None:
        raise SystemExit

    receipt = system.bus.dispatch(Added("a"))
    receipt.add_done_callback(fail)
    receipt.add_done_callback(lambda done: seen.append(done.result(0)[0].version))
    receipt.add_done_callback(lambda _receipt: ready.set())
    assert ready.wait(DEADLINE)
    assert seen == [1]


def test_an_event_of_several_projections_and_keys_has_one_receipt(system: ProjectionSystem) -> None:
    """In the order of registration; each key once; done when all are."""

    class Both(Totals):
        name = "test.both"

        def keys(self, event: Added) -> list[str]:
            return [event.key, "all", event.key]

    system.register(Totals())
    system.register(Both())
    applied = system.bus.dispatch(Added("a", 2)).result(DEADLINE)
    assert [(one.projection, one.key) for one in applied] == [
        ("test.totals", "a"), ("test.both", "a"), ("test.both", "all"),
    ]  # fmt: skip


def test_a_union_with_a_base_and_its_subclass_folds_once(system: ProjectionSystem) -> None:
    """Routing finds the projection twice, and calls it once."""

    class Counting(Projection[Base | Derived, dict[str, int]]):
        name = "test.counting"

        def key(self, event: Base) -> str:
            return event.key

        def apply(self, state: dict[str, int], event: Base) -> dict[str, int]:
            state["count"] = state.get("count", 0) + 1
            return state

    counting = system.register(Counting())
    assert counting.event_types == (Base, Derived)
    [applied] = system.bus.dispatch(Derived()).result(DEADLINE)
    assert applied.delta == {"count": 1}


def test_a_key_of_none_is_not_for_this_projection(system: ProjectionSystem) -> None:
    """Nothing is folded, and the Receipt is done and empty."""

    class Picky(Totals):
        name = "test.picky"

        def key(self, event: Added) -> str | None:  # type: ignore[override]
            return event.key if event.amount > 0 else None

    picky = system.register(Picky())
    assert system.bus.dispatch(Added("a", 0)).result(0) == ()
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    assert picky.read_required("a").amounts == [1]


@pytest.mark.parametrize("key", ["", "k" * 513, "a\nb", 5, ["a"], b"a"])
def test_a_bad_key_is_refused_at_dispatch(system: ProjectionSystem, key: Any) -> None:
    """InvalidKey, nothing accepted, and the projection goes on."""
    totals = system.register(Totals())
    with pytest.raises(InvalidKey, match=r"test\.totals: .* is not a valid key"):
        system.bus.dispatch(Added(key))
    assert system.settle(DEADLINE)
    assert totals.apply_event(Added("a"), DEADLINE)[0].version == 1


def test_a_key_function_that_raises_is_an_invalid_event(system: ProjectionSystem) -> None:
    """With the projection, the event and the cause."""

    class Broken(Totals):
        name = "test.broken"

        def key(self, event: Added) -> str:
            return str(event.nothing)  # type: ignore[attr-defined]

    system.register(Broken())
    with pytest.raises(
        InvalidEvent, match=r"test\.broken: key\(\) raised for Added: AttributeError"
    ) as caught:
        system.bus.dispatch(Added("a"))
    assert caught.value.projection == "test.broken"
    assert isinstance(caught.value.__cause__, AttributeError)


def test_apply_event_is_for_one_projection_alone(system: ProjectionSystem) -> None:
    """And only for the events that it folds."""
    seen: list[object] = []
    system.bus.listen(Added, seen.append)
    totals = system.register(Totals())
    assert totals.apply_event(Added("a", 1), DEADLINE)[0].version == 1
    assert seen == []
    with pytest.raises(InvalidEvent, match="it folds Added, not Base"):
        totals.apply_event(Base(), DEADLINE)  # type: ignore[arg-type]


def test_rebuild_takes_the_events_of_its_key_only(system: ProjectionSystem) -> None:
    """An event of another key, or one that can't be folded: nothing is written."""
    totals = system.register(Totals())
    totals.apply_event(Added("a", 1), DEADLINE)
    with pytest.raises(InvalidEvent, match=r"event 2 of the rebuild, .* is not for key 'a'"):
        totals.rebuild("a", [Added("a"), Added("b")])

    def fail(_state: Total) -> None:
        raise ValueError

    with pytest.raises(ProjectionError, match="could not be folded"):
        totals.rebuild("a", [Added("a"), Added("a", 1, fail)])
    assert totals.read_required("a").amounts == [1]
    assert totals.rebuild("a", []) == Total()
    assert totals.read("a") is None


def test_unknown_names_are_named(system: ProjectionSystem) -> None:
    """The message names the registered ones."""
    system.register(Totals())
    with pytest.raises(UnknownProjection, match=r"'absent'; registered: test\.totals"):
        system.runtime("absent")


@pytest.mark.parametrize(
    ("namespace", "message"),
    [
        ({}, "has no name"),
        ({"name": "no spaces please"}, "not a valid projection name"),
        ({"name": "ok", "key": Projection.key}, "must define key"),
    ],
)
def test_a_projection_that_cannot_run_is_refused(
    system: ProjectionSystem, namespace: dict[str, Any], message: str
) -> None:
    """At registration, by a message that names the change to make."""
    body = {"key": lambda self, event: "a", "apply": lambda self, state, event: {}, **namespace}
    made = type("Made", (Projection,), {**body, "events": Base, "state_type": dict})
    with pytest.raises(ProjectionError, match=message):
        system.register(made())
    with pytest.raises(ProjectionError, match="register an instance"):
        system.register(Totals)  # type: ignore[arg-type]


def test_an_async_apply_is_refused(system: ProjectionSystem) -> None:
    """It would be a coroutine for a delta."""

    class Async(Totals):
        name = "test.async"

        async def apply(self, state: Total, event: Added) -> None:
            return None

    with pytest.raises(InvalidProjection, match="not async"):
        system.register(Async())
