"""Promise 7: an event that arrives while its actor retires is folded by that actor or by the next, once."""

from __future__ import annotations

import random
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
from keyfold.actors import MailboxFull, ProjectionRuntime, ProjectionSystem
from keyfold.actors.key_actor.actor import KeyActor
from keyfold.actors.pool.threads import on_dispatcher_thread
from support.counting import Added, Total, Totals, park_in
from support.parking import DEADLINE, Parking

Runtime = ProjectionRuntime[Added, Total]
NEVER = 1e9


def sweep(system: ProjectionSystem, now: float = NEVER) -> int:
    """Hint to every actor that is idle at that moment."""
    engine = system._engine
    assert engine is not None
    return engine.sweep(now)


def actor_of(totals: Runtime, key: str) -> KeyActor:
    """Return the live actor of a key."""
    assert totals.supervisor is not None
    return totals.supervisor.actors[key]


def wait_for_retirement(totals: Runtime, key: str, actor: KeyActor) -> None:
    """Return when this actor is sealed and unmapped."""
    supervisor = totals.supervisor
    assert supervisor is not None
    condition = threading.Condition()
    remove = supervisor.context.population.remove

    def removed(one: KeyActor) -> None:
        remove(one)
        with condition:
            condition.notify_all()

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(supervisor.context.population, "remove", removed)
        with condition:
            assert condition.wait_for(lambda: supervisor.actors.get(key) is not actor, DEADLINE)


def test_an_idle_actor_retires_and_the_next_event_gets_a_new_one(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """Spawn, retire, spawn: the state goes on from the row."""
    totals.apply_event(Added("a", 1), DEADLINE)
    first = actor_of(totals, "a")
    assert sweep(system) == 1
    wait_for_retirement(totals, "a", first)
    facts = system.stats()["projections"]["test.totals"]
    assert (facts["spawned"], facts["retired"], facts["live"]) == (1, 1, 0)
    assert totals.apply_event(Added("a", 2), DEADLINE)[0].version == 2
    assert totals.read_required("a").amounts == [1, 2]
    assert actor_of(totals, "a") is not first


def test_an_actor_that_is_not_idle_yet_is_left_alone(system: ProjectionSystem, totals: Runtime) -> None:
    """Idle means no turn for idle_seconds."""
    totals.apply_event(Added("a", 1), DEADLINE)
    assert sweep(system, monotonic()) == 0


def test_an_event_between_the_hint_and_the_seal_keeps_the_actor_alive(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """The order hint, event, seal: the actor finds the event in its mailbox and does not seal."""
    parking = Parking()
    parked = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    actor = actor_of(totals, "a")
    assert actor.suggest_retirement()
    receipt = system.bus.dispatch(Added("a", 2))
    parking.release()
    assert parked.result(DEADLINE)[0].version == 1
    assert receipt.result(DEADLINE)[0].version == 2
    assert actor_of(totals, "a") is actor
    assert system.stats()["projections"]["test.totals"]["retired"] == 0


def test_an_event_between_the_seal_and_the_unmapping_goes_to_the_next_incarnation(
    system: ProjectionSystem, totals: Runtime, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The order hint, seal, event, unmapping: the sender meets the seal and asks the supervisor again."""
    totals.apply_event(Added("a", 1), DEADLINE)
    sealed = actor_of(totals, "a")
    supervisor = totals.supervisor
    assert supervisor is not None
    parking = Parking()
    remove = supervisor.context.population.remove

    def parked(actor: KeyActor) -> None:
        if on_dispatcher_thread():  # the actor itself; the sender removes it, too
            parking.park()
        remove(actor)

    monkeypatch.setattr(supervisor.context.population, "remove", parked)
    assert sweep(system) == 1
    parking.wait_for_arrival()
    assert sealed.actor_inbox.sealed
    assert supervisor.actors["a"] is sealed
    assert system.bus.dispatch(Added("a", 2)).result(DEADLINE)[0].version == 2
    successor = actor_of(totals, "a")
    assert successor is not sealed
    parking.release()
    assert system.bus.dispatch(Added("a", 3)).result(DEADLINE)[0].version == 3
    assert actor_of(totals, "a") is successor, "the late unmapping removed the successor"
    assert totals.read_required("a").amounts == [1, 2, 3]


def test_an_actor_whose_turn_is_being_saved_does_not_retire(
    system: ProjectionSystem, totals: Runtime, broadcaster: Any
) -> None:
    """The load of a new actor would not see a commit that is still on its way to the row."""
    parking = Parking()
    broadcaster.before = lambda _committed: parking.park()
    receipt = system.bus.dispatch(Added("a", 1))
    parking.wait_for_arrival()
    actor = actor_of(totals, "a")
    sweep(system)
    assert not actor.actor_inbox.sealed
    parking.release()
    receipt.result(DEADLINE)


def test_over_the_limit_the_least_recently_used_retire(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9 for live actors: a limit, a policy, a counter."""
    system = make_system(max_live_actors=32, dispatch_timeout=DEADLINE)
    totals = system.register(Totals())
    for number in range(500):
        totals.apply_event(Added(f"key {number}", number), DEADLINE)
    facts = system.stats()["projections"]["test.totals"]
    assert facts["live"] <= 32 + 32 // 8
    assert facts["retired"] >= 500 - 36
    assert facts["spawned"] - facts["retired"] == facts["live"]
    assert totals.supervisor is not None
    assert "key 499" in totals.supervisor.actors
    assert totals.read_required("key 3").total == 3


def test_a_tiny_limit_of_live_actors_makes_room_by_retiring_the_idle(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """An eighth of it is none, and nobody retired before idle_seconds were over: each new key was refused."""
    system = make_system(max_live_actors=2, dispatch_timeout=DEADLINE, idle_seconds=3600)
    totals = system.register(Totals())
    for number in range(10):
        totals.apply_event(Added(f"key {number}"), DEADLINE)
    assert system.stats()["projections"]["test.totals"]["live"] <= 2


def test_when_all_live_actors_are_busy_spawning_waits_and_then_refuses(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9: an actor at work is never retired, so the limit pushes back on dispatch instead."""
    system = make_system(max_live_actors=2, dispatch_timeout=0.05, tuning={"dispatcher_threads": 1})
    system.register(Totals())
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 1, park_in(parking)))]
    parking.wait_for_arrival()
    receipts.append(system.bus.dispatch(Added("b")))
    with pytest.raises(MailboxFull, match="2 actors are live and busy"):
        system.bus.dispatch(Added("c"))
    parking.release()
    for receipt in receipts:
        receipt.result(DEADLINE)


@pytest.mark.timeout(300)
def test_churn_loses_nothing_and_doubles_nothing(sqlite_url: str) -> None:
    """120,000 events over 2,000 keys while every idle actor is retired at once: all versions contiguous."""
    seed = random.SystemRandom().randrange(2**32)
    print(f"seed {seed}")  # noqa: T201  # to run a failure again
    threads, each, keys = 4, 30_000, 2_000
    with ProjectionSystem(sqlite_url, idle_seconds=0.0) as system:
        totals = system.register(Totals())
        versions: dict[str, list[int]] = {f"key {n}": [] for n in range(keys)}
        lock = threading.Lock()

        def work(number: int) -> None:
            rng = random.Random(seed + number)
            mine = []
            for _ in range(each):
                # Mostly a small hot set, so that keys are dispatched to in the middle of their retirement.
                span = 20 if rng.random() < 0.5 else keys
                mine.append(system.bus.dispatch(Added(f"key {rng.randrange(span)}")))
            with lock:
                for receipt in mine:
                    [applied] = receipt.result(DEADLINE)
                    versions[applied.key].append(applied.version)

        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(work, range(threads)))
        facts = system.stats()["projections"]["test.totals"]
        assert facts["events"] == threads * each
        assert facts["retired"] > 100
        for key, seen in versions.items():
            assert sorted(seen) == list(range(1, len(seen) + 1)), f"seed {seed}, {key}"
            if seen:
                assert totals.read_required(key).total == len(seen)
