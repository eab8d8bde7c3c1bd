"""A key whose row does not load is seen, harms no other, and has a way back that needs no SQL."""

from __future__ import annotations

import os
import threading
from collections.abc import Callable
from typing import Any

import pytest
from keyfold.actors import (
    ApplyError,
    InvalidState,
    KeyHalted,
    ProjectionRuntime,
    ProjectionSystem,
    StoreError,
)
from keyfold.actors.errors import WouldDeadlock
from keyfold.actors.upkeep.degraded import MAX_KEYS, Degraded
from keyfold.store import StoreRejected, StoreUnavailable
from support.counting import Added, RecordingBroadcaster, Total, Totals, poison
from support.damage import BROKEN, damage
from support.parking import DEADLINE, Parking

Runtime = ProjectionRuntime[Added, Total]


class Audited(Totals):
    """Halts."""

    name = "test.audited"
    on_error = "halt"


def facts(system: ProjectionSystem, name: str = "test.totals") -> dict[str, str]:
    found: dict[str, Any] = system.stats()["projections"][name]
    assert found["degraded"] == len(found["degraded_keys"])
    return dict(found["degraded_keys"])


def retire(runtime: Runtime) -> None:
    """Let the actors forget their rows."""
    runtime._system._engine.sweep(float("inf"))  # type: ignore[union-attr]
    supervisor = runtime.supervisor
    assert supervisor is not None
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE, deadline.set)
    timer.start()
    while supervisor.actors:
        assert not deadline.is_set(), "the actors did not retire"
    timer.cancel()


def break_row(system: ProjectionSystem, runtime: Runtime, key: str = "a", **how: Any) -> None:
    """Fold two events into key, and damage its row."""
    for _ in range(2):
        runtime.apply_event(Added(key), DEADLINE)
    retire(runtime)
    damage(system, key, name=runtime.name, **how)


# -- it is seen


@pytest.mark.parametrize("how", [{}, {"schema": 2}], ids=["of another type", "of a newer schema"])
def test_an_actor_that_cannot_load_its_row_says_so(
    system: ProjectionSystem, totals: Runtime, how: dict[str, Any]
) -> None:
    """By key and error, until a load succeeds; other keys are not concerned."""
    state = '{"total": 7, "amounts": [7]}' if how else BROKEN
    break_row(system, totals, state=state, **how)
    assert facts(system) == {}
    totals.apply_event(Added("b"), DEADLINE)
    assert isinstance(totals.accept(Added("a")).exception(DEADLINE), StoreError)
    assert list(facts(system)) == ["a"]
    assert ("newer release" if how else "Expected `int`, got `str`") in facts(system)["a"]
    damage(system, "a", '{"total": 7, "amounts": [7]}')
    totals.apply_event(Added("a"), DEADLINE)
    assert facts(system) == {}


@pytest.mark.parametrize("how", [{}, {"schema": 2}], ids=["of another type", "of a newer schema"])
def test_a_read_that_fails_says_so(system: ProjectionSystem, totals: Runtime, how: dict[str, Any]) -> None:
    """And one that succeeds takes it back, also where the row is gone."""
    break_row(system, totals, **how)
    for read in (totals.read, totals.snapshot, totals.read_required):
        with pytest.raises(StoreError):
            read("a")
        assert list(facts(system)) == ["a"]
    damage(system, "a", '{"total": 7, "amounts": [7]}')
    assert totals.read_required("a").total == 7
    assert facts(system) == {}
    damage(system, "a")
    with pytest.raises(StoreError):
        totals.read("a")
    totals.wipe("a")
    assert facts(system) == {}
    assert totals.read("a") is None


def test_what_another_process_mends_is_found_whole_at_the_next_report(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """A key that nobody asks for again does not stay degraded for ever."""
    here, there = make_system(tuning={"report_seconds": 0.01}), make_system()
    totals, elsewhere = here.register(Totals()), there.register(Totals())
    break_row(here, totals)
    with pytest.raises(StoreError):
        totals.read("a")
    assert list(facts(here)) == ["a"]
    elsewhere.repair("a", '{"total": 7, "amounts": [7]}')
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE, deadline.set)
    timer.start()
    while facts(here):
        assert not deadline.is_set(), "it is still taken for broken"
        here.reporter.report()
    timer.cancel()


def test_what_another_process_mends_takes_the_next_event_here(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """An actor that could not load its row does not hold on to it: no event more is lost to it."""
    here, there = make_system(), make_system()
    totals, elsewhere = here.register(Totals()), there.register(Totals())
    break_row(here, totals)
    assert isinstance(totals.accept(Added("a")).exception(DEADLINE), StoreError)
    elsewhere.rebuild("a", [Added("a", 5)])
    [applied] = totals.apply_event(Added("a", 6), DEADLINE)
    assert (applied.version, totals.read_required("a")) == (2, Total(11, [5, 6]))
    assert facts(here) == {}


def test_a_forked_child_knows_of_no_broken_key(system: ProjectionSystem, totals: Runtime) -> None:
    """The keys that the parent has met are the parent's, and so is the lock."""
    break_row(system, totals)
    with pytest.raises(StoreError):
        totals.read("a")
    reading, writing = os.pipe()
    child = os.fork()
    if not child:
        try:
            os.write(writing, b"some" if totals.degraded else b"none")
        finally:
            os._exit(0)  # also after an error: this is no second run of the tests
    os.waitpid(child, 0)
    assert os.read(reading, 9) == b"none"
    os.close(reading)
    os.close(writing)
    assert len(totals.degraded) == 1


def test_broken_keys_are_counted_up_to_a_bound() -> None:
    """Above it the count means "at least"; 20 are shown, in their order."""
    degraded = Degraded()
    for number in range(MAX_KEYS + 5):
        degraded.note(f"{number:05}", StoreError("x" * 10_000))
    shown = degraded.stats()
    assert (shown["degraded"], list(shown["degraded_keys"])) == (MAX_KEYS, [f"{n:05}" for n in range(20)])
    assert all(len(error) <= 500 for error in shown["degraded_keys"].values())
    degraded.note("00000", StoreError("again"))
    assert degraded.oldest(2) == ["00001", "00002"]
    for number in range(MAX_KEYS):
        degraded.clear(f"{number:05}")
    assert not degraded
    assert degraded.stats() == {"degraded": 0, "degraded_keys": {}}


def test_the_facts_say_whether_states_are_verified(system: ProjectionSystem) -> None:
    """They are, unless the projection says otherwise."""

    class Trusting(Totals):
        name = "test.trusting"
        verify = False

    for projection in (Totals(), Trusting()):
        system.register(projection)
    of = system.stats()["projections"]
    assert (of["test.totals"]["verified"], of["test.trusting"]["verified"]) == (True, False)


# -- the way back


@pytest.mark.parametrize("live", ["its actor is live", ""])
@pytest.mark.parametrize("how", [{}, {"schema": 2}], ids=["of another type", "of a newer schema"])
def test_a_broken_key_is_repaired(
    system: ProjectionSystem,
    totals: Runtime,
    broadcaster: RecordingBroadcaster,
    how: dict[str, Any],
    live: str,
) -> None:
    """A new epoch, the version of the row, one snapshot for subscribers; and events go on from there."""
    break_row(system, totals, **how)
    if live:
        assert totals.accept(Added("a")).exception(DEADLINE) is not None
    with pytest.raises(StoreError):
        totals.read("a")
    row = system.store.row("test.totals", "a")
    assert row is not None
    assert totals.repair("a", '{"total": 7, "amounts": [3, 4]}') == Total(7, [3, 4])
    repaired = totals.snapshot("a")
    assert repaired is not None
    assert (repaired.state, repaired.version) == (Total(7, [3, 4]), 2)
    assert repaired.epoch != row.epoch
    [(key, position, state, reason)] = broadcaster.snapshots
    assert (key, position, reason) == ("a", (repaired.epoch, 2), "rebuild")
    assert state == b'{"total":7,"amounts":[3,4]}'
    assert facts(system) == {}
    [applied] = totals.apply_event(Added("a", 5), DEADLINE)
    assert (applied.version, totals.read_required("a").total) == (3, 12)


def test_a_repair_comes_behind_the_events_that_wait(system: ProjectionSystem, totals: Runtime) -> None:
    """Those that can't be folded become letters first, and are retried on the repaired state."""
    break_row(system, totals)
    parking = Parking()
    totals.apply_event(Added("b"), DEADLINE)
    gate = totals.accept(Added("b", then=lambda _: parking.park()))
    parking.wait_for_arrival()
    receipts = [totals.accept(Added("a", amount)) for amount in (5, 6)]
    parking.release()
    gate.result(DEADLINE)
    totals.repair("a", '{"total": 0}')
    for receipt in receipts:
        assert isinstance(receipt.exception(DEADLINE), StoreError)
    letters = totals.dead_letters.find("a")
    assert [totals.dead_letters.retry(letter.id)[0].version for letter in letters] == [3, 4]
    assert totals.read_required("a") == Total(11, [5, 6])


@pytest.mark.parametrize("before", ["wiped", "never there"])
def test_a_key_without_a_row_is_repaired_at_version_1(
    system: ProjectionSystem, totals: Runtime, before: str
) -> None:
    """Also one that was wiped: version 0 would be a tombstone again."""
    if before == "wiped":
        totals.apply_event(Added("a"), DEADLINE)
        totals.wipe("a")
    totals.repair("a", b'{"total": 7}')
    snapshot = totals.snapshot("a")
    assert snapshot is not None
    assert (snapshot.version, snapshot.state.total) == (1, 7)


def test_a_halted_key_stays_halted_when_it_is_repaired(system: ProjectionSystem) -> None:
    """Nobody has decided about the parked events; resumed, they are folded on the repaired state."""
    audited = system.register(Audited())
    break_row(system, audited)
    assert isinstance(audited.accept(Added("a", 5)).exception(DEADLINE), StoreError)
    assert isinstance(audited.accept(Added("a", 6)).exception(DEADLINE), KeyHalted)
    assert list(facts(system, "test.audited")) == ["a"]
    audited.repair("a", '{"total": 100}')
    row = system.store.row("test.audited", "a")
    assert row is not None
    assert (row.halted, row.version) == (True, 2)
    assert audited.dead_letters.resume("a") == 2
    assert audited.read_required("a") == Total(111, [5, 6])
    assert facts(system, "test.audited") == {}


@pytest.mark.parametrize(
    "data",
    [
        "",
        "nonsense",
        "7",
        "null",
        '{"total": "many"}',
        '{"total": 1} x',
        b"\xff",
        '"\ud800"',
        '{"total": NaN}',
    ],
)
def test_what_is_no_state_is_refused(system: ProjectionSystem, totals: Runtime, data: str | bytes) -> None:
    """By InvalidState that has it and names the field; nothing is written."""
    totals.apply_event(Added("a"), DEADLINE)
    before = system.store.row("test.totals", "a")
    with pytest.raises(InvalidState, match=r"test\.totals: this is no state for key 'a'") as refused:
        totals.repair("a", data)
    assert (refused.value.data, refused.value.projection, refused.value.key) == (data, "test.totals", "a")
    assert system.store.row("test.totals", "a") == before


def test_a_state_that_the_hooks_cannot_read_back_is_refused(system: ProjectionSystem) -> None:
    """A state that decodes once and is written in another shape would break the key again."""

    class Celsius:
        def __init__(self, degrees: float) -> None:
            self.degrees = degrees

    def decode(_type: type[Any], plain: Any) -> Celsius:
        if not isinstance(plain, int):
            msg = "only numbers are read"
            raise TypeError(msg)
        return Celsius(plain)

    class Weather(Totals):
        name = "test.weather"
        state_type: Any = Celsius
        encode_hook = staticmethod(lambda celsius: f"{celsius.degrees} C")
        decode_hook = staticmethod(decode)

    weather = system.register(Weather())
    with pytest.raises(InvalidState, match="only numbers"):
        weather.repair("a", "7")
    assert weather.read("a") is None


def test_what_the_database_refuses_fails_the_repair(postgres_url: str) -> None:
    """PostgreSQL has no NUL in its JSON; the row stays."""

    class Names(Totals):
        name = "test.names"
        state_type: Any = list

    with ProjectionSystem(postgres_url) as system:
        names = system.register(Names())
        names.repair("a", '["good"]')
        with pytest.raises(StoreRejected):
            names.repair("a", '["\\u0000"]')
        kept: Any = names.read("a")
        assert kept == ["good"]


def test_a_repair_on_a_dispatcher_thread_is_refused(totals: Runtime) -> None:
    """It would wait for this very thread."""

    def then(_state: Total) -> None:
        totals.repair("a", "{}")

    error = totals.accept(Added("a", then=then)).exception(DEADLINE)
    assert isinstance(error, ApplyError)
    assert isinstance(error.__cause__, WouldDeadlock)


def test_a_poisoned_event_does_not_degrade_its_key(system: ProjectionSystem, totals: Runtime) -> None:
    """The row loads: it is the event that is bad."""
    assert totals.accept(Added("a", 1, poison)).exception(DEADLINE) is not None
    assert facts(system) == {}


# -- reads are bounded


def test_a_question_that_is_not_answered_in_time_is_unavailable(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """By the setting, or by the seconds given with the question; the database's name is in the message."""
    system, parking = make_system(tuning={"read_timeout": 0.05}), Parking()
    try:
        with pytest.raises(StoreUnavailable, match=r"within 0\.05 s"):
            system.ask(parking.park)
        with pytest.raises(StoreUnavailable, match=r"within 0\.01 s"):
            system.ask(parking.park, seconds=0.01)
        with pytest.raises(StoreUnavailable):
            system.read_row("test.totals", "a")
    finally:
        parking.release()
    assert system.ask(lambda: 7, seconds=DEADLINE) == 7
