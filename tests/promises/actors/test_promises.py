"""The promises of the design, one by one, on both databases."""

from __future__ import annotations

import contextlib
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import peewee
import pykka
import pytest
from keyfold.actors import (
    Applied,
    ApplyError,
    BroadcastError,
    Closed,
    MailboxFull,
    Projection,
    ProjectionRuntime,
    ProjectionSystem,
    Receipt,
    StateNotFound,
)
from keyfold.actors.broadcaster import Committed
from keyfold.store import ProjectionDeadLetter, StoreError
from playhouse.db_url import connect
from playhouse.pool import PooledDatabase
from support.counting import Added, RecordingBroadcaster, Total, Totals, park_in, poison
from support.parking import DEADLINE, Parking

Runtime = ProjectionRuntime[Added, Total]


def letters(system: ProjectionSystem) -> list[ProjectionDeadLetter]:
    """Return the dead letters, oldest first."""
    query = ProjectionDeadLetter.select().order_by(ProjectionDeadLetter.id)
    try:
        return list(query.execute(system.store.database))
    finally:
        system.store.database.close()


# -- 1: per-key order


def test_events_of_one_thread_are_folded_in_the_order_they_were_dispatched(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """Promise 1, over many turns: the actor is parked so that batches of every size form."""
    parking = Parking()
    system.bus.dispatch(Added("a", 0, park_in(parking)))
    parking.wait_for_arrival()
    receipts = [system.bus.dispatch(Added("a", number)) for number in range(1, 500)]
    parking.release()
    assert [receipt.result(DEADLINE)[0].version for receipt in receipts] == list(range(2, 501))
    assert totals.read_required("a").amounts == list(range(500))


def test_keys_run_side_by_side(system: ProjectionSystem, totals: Runtime) -> None:
    """Promise 1: a key that is stuck in apply does not hold up another."""
    parking = Parking()
    stuck = system.bus.dispatch(Added("stuck", 1, park_in(parking)))
    parking.wait_for_arrival()
    assert system.bus.dispatch(Added("free", 2)).result(DEADLINE)[0].version == 1
    assert not stuck.done()
    parking.release()
    stuck.result(DEADLINE)


def test_twenty_threads_over_five_keys_lose_no_increment(system: ProjectionSystem, totals: Runtime) -> None:
    """Promises 1 and 2, the seed's own test."""
    together = threading.Barrier(20)

    def work(number: int) -> None:
        together.wait(DEADLINE)
        receipts = [system.bus.dispatch(Added(f"key {n % 5}", 1)) for n in range(number, number + 50)]
        for receipt in receipts:
            receipt.result(DEADLINE)

    with ThreadPoolExecutor(20) as pool:
        list(pool.map(work, range(20)))
    states = [totals.snapshot(f"key {n}") for n in range(5)]
    assert [state.state.total for state in states if state] == [200] * 5
    assert [state.version for state in states if state] == [200] * 5


# -- 2: no lost update


def test_two_systems_on_one_key_reload_fold_again_and_lose_nothing(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 2: both actors hold the key resident, so each save of the other is a conflict."""
    systems = [make_system(), make_system()]
    runtimes = [system.register(Totals()) for system in systems]
    for turn in range(20):
        for system in systems:
            system.bus.dispatch(Added("a", 10**turn)).result(DEADLINE)
    assert runtimes[0].read_required("a").total == int("2" * 20)
    snapshot = runtimes[1].snapshot("a")
    assert snapshot is not None
    assert snapshot.version == 40
    conflicts = [system.stats()["projections"]["test.totals"]["conflicts"] for system in systems]
    assert sum(conflicts) == 38


def test_a_conflict_keeps_the_batch_in_order(make_system: Callable[..., ProjectionSystem]) -> None:
    """Promises 1 and 2: events folded again after a conflict keep their order and count once."""
    ours, theirs = make_system(), make_system()
    mine, other = ours.register(Totals()), theirs.register(Totals())
    ours.bus.dispatch(Added("a", 1)).result(DEADLINE)
    parking = Parking()
    first = ours.bus.dispatch(Added("a", 2, park_in(parking)))
    parking.wait_for_arrival()
    later = [ours.bus.dispatch(Added("a", number)) for number in (3, 4, 5)]
    other.apply_event(Added("a", 100), DEADLINE)
    parking.release()
    for receipt in (first, *later):
        receipt.result(DEADLINE)
    assert mine.read_required("a").amounts == [1, 100, 2, 3, 4, 5]
    assert ours.stats()["projections"]["test.totals"]["conflicts"] >= 1


# -- 3: one number


def test_the_version_counts_events_and_is_one_number_everywhere(
    system: ProjectionSystem, totals: Runtime, broadcaster: RecordingBroadcaster
) -> None:
    """Promise 3: Receipt, row and published delta agree on (epoch, version)."""
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 1, park_in(parking)))]
    parking.wait_for_arrival()
    receipts += [system.bus.dispatch(Added("a", 1)) for _ in range(9)]
    parking.release()
    applied = [receipt.result(DEADLINE)[0] for receipt in receipts]
    snapshot = totals.snapshot("a")
    assert snapshot is not None
    assert [one.version for one in applied] == list(range(1, 11))
    assert (snapshot.epoch, snapshot.version) == (applied[-1].epoch, 10)
    published = [
        (turn.epoch, version)
        for turn in broadcaster.published
        for version in range(turn.base_version + 1, turn.version + 1)
    ]
    assert published == [(one.epoch, one.version) for one in applied]


def test_rebuild_and_wipe_draw_new_epochs(system: ProjectionSystem, totals: Runtime) -> None:
    """Promise 3: an old position never comes back, not even with the same version."""
    [first] = totals.apply_event(Added("a", 1), DEADLINE)
    totals.rebuild("a", [Added("a", 5)])
    rebuilt = totals.snapshot("a")
    totals.wipe("a")
    assert totals.read("a") is None
    with pytest.raises(StateNotFound):
        totals.read_required("a")
    [after] = totals.apply_event(Added("a", 7), DEADLINE)
    assert rebuilt is not None
    assert (rebuilt.version, after.version) == (1, 1)
    assert len({first.epoch, rebuilt.epoch, after.epoch}) == 3


# -- 4: commit, then publish


def test_nobody_is_told_before_the_commit(
    make_system: Callable[..., ProjectionSystem], database_url: str
) -> None:
    """Promise 4: at the moment of publishing, another connection reads the version that is published."""
    seen: list[tuple[int, int]] = []
    reader = ProjectionSystem(database_url)

    def look(committed: Committed) -> None:
        row = reader.store.row(committed.projection, committed.key)
        assert row is not None
        seen.append((committed.version, row.version))
        assert not waiting[-1].done()

    waiting: list[Receipt] = []
    system = make_system(broadcaster=RecordingBroadcaster(look))
    system.register(Totals())
    lock = threading.Lock()
    for _ in range(5):
        with lock:
            waiting.append(system.bus.dispatch(Added("a")))
        waiting[-1].result(DEADLINE)
    reader.close()
    assert seen == [(version, version) for version in range(1, 6)]


# -- 5: a failed broadcast loses nothing


def test_a_failed_broadcast_keeps_the_row_and_says_so(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 5.

    The row stays, the Receipt raises BroadcastError, the channel is invalidated, it is counted.
    """

    def fail(_committed: Committed) -> None:
        msg = "no wire"
        raise OSError(msg)

    broadcaster = RecordingBroadcaster(fail)
    system = make_system(broadcaster=broadcaster)
    totals = system.register(Totals())
    receipt = system.bus.dispatch(Added("a", 3))
    with pytest.raises(BroadcastError, match="version 1 of key 'a' is committed") as caught:
        receipt.result(DEADLINE)
    assert (caught.value.key, caught.value.version) == ("a", 1)
    assert totals.read_required("a").total == 3
    assert broadcaster.invalidated == ["a"]
    assert system.stats()["projections"]["test.totals"]["broadcast_errors"] == 1
    broadcaster.before = None
    assert system.bus.dispatch(Added("a", 4)).result(DEADLINE)[0].version == 2


# -- 6: a poison event harms one event


def test_a_poison_event_between_good_ones_of_two_keys_harms_itself_alone(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """Promise 6: in one batch, half-changed state is thrown away, and the others count once."""
    parkings = {key: Parking() for key in "ab"}
    receipts: dict[str, list[Receipt]] = {}
    for key, parking in parkings.items():
        receipts[key] = [system.bus.dispatch(Added(key, 1, park_in(parking)))]
        parking.wait_for_arrival()
    for key in "ab":
        receipts[key] += [
            system.bus.dispatch(event)
            for event in (Added(key, 10), Added(key, 100, poison if key == "a" else None), Added(key, 1000))
        ]
    for parking in parkings.values():
        parking.release()
    errors = {key: [receipt.exception(DEADLINE) for receipt in receipts[key]] for key in "ab"}
    assert errors["b"] == [None] * 4
    assert [type(error) for error in errors["a"]] == [type(None), type(None), ApplyError, type(None)]
    assert totals.read_required("a").amounts == [1, 10, 1000]
    assert totals.read_required("b").amounts == [1, 10, 100, 1000]
    [letter] = letters(system)
    assert (letter.projection_name, letter.key) == ("test.totals", "a")
    assert letter.error == "ValueError: poison"
    assert "in poison" in letter.traceback
    assert "100" in letter.event
    error = errors["a"][2]
    assert isinstance(error, ApplyError)
    assert isinstance(error.__cause__, ValueError)
    assert (error.projection, error.key, error.version) == ("test.totals", "a", 3)


@pytest.mark.parametrize("exception", [SystemExit, KeyboardInterrupt, RecursionError, MemoryError])
def test_whatever_apply_raises_is_poison(
    system: ProjectionSystem, totals: Runtime, exception: type[BaseException]
) -> None:
    """Promise 6: not even SystemExit in apply ends more than its event."""

    def raise_it(_state: Total) -> None:
        raise exception

    assert isinstance(system.bus.dispatch(Added("a", 1, raise_it)).exception(DEADLINE), ApplyError)
    assert system.bus.dispatch(Added("a", 2)).result(DEADLINE)[0].version == 1
    assert totals.read_required("a").amounts == [2]


def test_many_poison_events_cost_folds_in_proportion(system: ProjectionSystem, totals: Runtime) -> None:
    """Promise 6: 100 poison events in a batch of 300 must not fold the whole batch 100 times."""
    parking = Parking()
    system.bus.dispatch(Added("a", 0, park_in(parking)))
    parking.wait_for_arrival()
    folds = 0

    def count(_state: Total) -> None:
        nonlocal folds
        folds += 1

    receipts = [
        system.bus.dispatch(Added("a", number, poison if number % 3 == 0 else count))
        for number in range(1, 301)
    ]
    parking.release()
    for receipt in receipts:
        receipt.exception(DEADLINE)
    assert totals.read_required("a").amounts == [0] + [n for n in range(1, 301) if n % 3]
    assert folds <= 3 * 200
    assert len(letters(system)) == 100


@pytest.mark.parametrize("place", ["delta", "state"])
def test_what_cannot_be_encoded_is_poison_and_named(
    system: ProjectionSystem, totals: Runtime, place: str
) -> None:
    """Promise 6: a delta or a state with a part that JSON has no form for; the message names the field."""
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 1, park_in(parking)))]
    parking.wait_for_arrival()

    def spoil(state: Total) -> Any:
        if place == "delta":
            return {"inner": [1, threading.Lock()]}
        state.amounts.append(threading.Lock())  # type: ignore[arg-type]
        return None

    receipts += [system.bus.dispatch(Added("a", n, spoil if n == 4 else None)) for n in range(2, 8)]
    parking.release()
    errors = [receipt.exception(DEADLINE) for receipt in receipts]
    assert [error is None for error in errors] == [True, True, True, False, True, True, True]
    assert isinstance(errors[3], ApplyError)
    assert ("['inner'][1]" if place == "delta" else "amounts[") in str(errors[3])
    assert "lock" in str(errors[3])
    assert totals.read_required("a").amounts == [1, 2, 3, 5, 6, 7]


def test_a_nul_in_a_string_is_poison_on_postgresql_and_fine_on_sqlite(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 6.

    PostgreSQL refuses the row of the whole batch; the guilty event is found, the others are kept.
    """

    class Names(Projection[Added, dict[str, str]]):
        name = "test.names"

        def key(self, event: Added) -> str:
            return event.key

        def apply(self, state: dict[str, str], event: Added) -> int:
            if event.then is not None:
                event.then(Total())
            state[str(event.amount)] = "a\0b" if event.amount == 6 else "name"
            return event.amount

    system = make_system()
    names = system.register(Names())
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 0, park_in(parking)))]
    parking.wait_for_arrival()
    receipts += [system.bus.dispatch(Added("a", number)) for number in range(1, 10)]
    other = system.bus.dispatch(Added("b", 1))
    parking.release()
    assert other.result(DEADLINE)
    failed = [number for number, receipt in enumerate(receipts) if receipt.exception(DEADLINE)]
    postgres = "PostgreSQL" in system.stats()["database"]
    assert failed == ([6] if postgres else [])
    assert sorted(names.read_required("a")) == [str(number) for number in range(10) if number not in failed]
    assert [letter.key for letter in letters(system)] == (["a"] if postgres else [])


def test_a_state_row_that_no_longer_decodes_is_named_and_untouched(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """Promise 6 for rows: StoreError names the row, which stays as it is; a rebuild mends the key."""
    system.store.write("test.totals", "a", {"total": "not a number"})
    system.store.write("test.totals", "b", {"total": 1, "amounts": [1]})
    receipt = system.bus.dispatch(Added("a", 1))
    with pytest.raises(StoreError, match=r"row of key 'a' at \S+:1 does not decode.*total"):
        receipt.result(DEADLINE)
    with pytest.raises(StoreError, match="row of key 'a'"):
        totals.read("a")
    assert system.store.read("test.totals", "a") == {"total": "not a number"}
    assert [letter.key for letter in letters(system)] == ["a"]
    assert totals.apply_event(Added("b", 5), DEADLINE)[0].version == 2
    assert totals.rebuild("a", [Added("a", 2)]) == Total(2, [2])
    assert totals.apply_event(Added("a", 3), DEADLINE)[0].version == 2


# -- 9: bounded everything


def test_a_full_mailbox_pushes_back_within_the_timeout(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9.

    Dispatch waits for room as long as it is told, then raises MailboxFull, and it is counted.
    """
    system = make_system(mailbox_limit=3, dispatch_timeout=0.05)
    totals = system.register(Totals())
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 1, park_in(parking)))]
    parking.wait_for_arrival()
    receipts += [system.bus.dispatch(Added("a")) for _ in range(3)]
    started = monotonic()
    with pytest.raises(MailboxFull, match="mailbox of key 'a' holds 3 events") as caught:
        system.bus.dispatch(Added("a"))
    assert monotonic() - started >= 0.05
    assert caught.value.limit == 3
    assert system.bus.dispatch(Added("b")).result(DEADLINE)  # another key has room
    assert system.stats()["projections"]["test.totals"]["refused"] == 1
    parking.release()
    for receipt in receipts:
        receipt.result(DEADLINE)
    assert totals.read_required("a").total == 4
    assert system.settle(DEADLINE)


def test_a_dispatch_that_waits_for_room_goes_on_when_there_is_some(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9: backpressure is a pause, not a loss."""
    system = make_system(mailbox_limit=1, dispatch_timeout=DEADLINE)
    totals = system.register(Totals())
    parking = Parking()
    system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    system.bus.dispatch(Added("a", 2))
    with ThreadPoolExecutor(1) as pool:
        third = pool.submit(system.bus.dispatch, Added("a", 3))
        parking.release()
        third.result(DEADLINE).result(DEADLINE)
    assert totals.read_required("a").amounts == [1, 2, 3]


def test_accepted_events_are_bounded_over_all_keys(make_system: Callable[..., ProjectionSystem]) -> None:
    """Promise 9: the process-wide bound stands above the mailboxes."""
    system = make_system(in_flight_limit=2, dispatch_timeout=0.01)
    system.register(Totals())
    parking = Parking()
    receipts = [system.bus.dispatch(Added("a", 1, park_in(parking)))]
    parking.wait_for_arrival()
    receipts.append(system.bus.dispatch(Added("a")))
    with pytest.raises(MailboxFull, match="2 events are accepted and not committed yet"):
        system.bus.dispatch(Added("z"))
    parking.release()
    for receipt in receipts:
        receipt.result(DEADLINE)
    assert system.settle(DEADLINE)
    assert system.bus.dispatch(Added("z")).result(DEADLINE)


def test_an_event_for_several_keys_is_not_refused_when_one_took_it(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9: the Receipt reports the refusal, since somebody has the event already."""

    class Both(Totals):
        name = "test.both"

        def keys(self, event: Added) -> list[str]:
            return ["free", event.key]

    system = make_system(mailbox_limit=1, dispatch_timeout=0.01)
    both = system.register(Both())
    parking = Parking()
    system.bus.dispatch(Added("full", 1, park_in(parking)))
    parking.wait_for_arrival()
    parking.wait_for_arrival()
    filler = both.supervisor
    assert filler is not None
    filler.deliver("full", Added("full", 5))
    parking.release()
    receipt = system.bus.dispatch(Added("full", 7))
    outcome = receipt.exception(DEADLINE)
    assert outcome is None or isinstance(outcome, MailboxFull)
    assert system.settle(DEADLINE)
    expected = 1 + 7
    assert both.read_required("free").total == expected


# -- 11: graceful stop


def test_close_commits_what_was_accepted_and_refuses_the_rest(
    make_system: Callable[..., ProjectionSystem], database_url: str
) -> None:
    """Promise 11: after close every accepted event is in its row; a second close does nothing."""
    system = make_system()
    system.register(Totals())
    receipts = [system.bus.dispatch(Added(f"key {n % 10}")) for n in range(1000)]
    system.close()
    system.close()
    assert all(receipt.done() for receipt in receipts)
    with pytest.raises(Closed):
        system.bus.dispatch(Added("key 0"))
    with make_system() as again:
        totals = again.register(Totals())
        assert [totals.read_required(f"key {n}").total for n in range(10)] == [100] * 10


def test_close_waits_for_a_rebuild(make_system: Callable[..., ProjectionSystem]) -> None:
    """Promise 11: the caller that asked for it gets its outcome."""
    system = make_system()
    totals = system.register(Totals())
    parking = Parking()
    system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    with ThreadPoolExecutor(2) as pool:
        rebuilt = pool.submit(totals.rebuild, "a", [Added("a", 5)])
        closed = pool.submit(system.close)
        parking.release()
        with contextlib.suppress(Closed):  # it came after the close: nothing was accepted
            assert rebuilt.result(DEADLINE) == Total(5, [5])
        closed.result(DEADLINE)


def test_close_ends_within_its_timeout_when_an_actor_is_stuck(
    make_system: Callable[..., ProjectionSystem], caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 11: apply never returns; close does, and says how many events are not committed."""
    system = make_system()
    system.register(Totals())
    parking = Parking()
    system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    system.bus.dispatch(Added("a", 2))
    started = monotonic()
    system.close(timeout=0.2)
    assert monotonic() - started < 5
    assert "closing with 2 accepted events not committed" in caplog.text
    parking.release()


def test_stopping_all_actors_of_the_app_stops_none_of_ours(system: ProjectionSystem, totals: Runtime) -> None:
    """Promise 11: only close ends the writer, and it drains first."""
    totals.apply_event(Added("a", 1), DEADLINE)
    pykka.ActorRegistry.stop_all(timeout=DEADLINE)
    assert totals.apply_event(Added("a", 2), DEADLINE)[0].version == 2


# -- the contract's small print


def test_applied_carries_the_facts_and_the_delta_as_it_was(system: ProjectionSystem, totals: Runtime) -> None:
    """The delta is the one that was sent, even if ``apply`` returned the state and changed it later."""
    parking = Parking()

    def park_and_return_it(state: Total) -> Total:
        parking.park()
        return state

    first = system.bus.dispatch(Added("a", 1, park_and_return_it))
    parking.wait_for_arrival()
    second = system.bus.dispatch(Added("a", 2, lambda state: state))
    parking.release()
    [one], [two] = first.result(DEADLINE), second.result(DEADLINE)
    assert one == Applied("test.totals", "a", one.epoch, 1, {"total": 1, "amounts": [1]})
    assert two.delta == {"total": 3, "amounts": [1, 2]}
    with pytest.raises(AttributeError):
        one.version = 5  # type: ignore[misc]


def test_a_time_out_of_result_takes_nothing_back(system: ProjectionSystem, totals: Runtime) -> None:
    """The event stays accepted, and the Receipt can be asked again."""
    parking = Parking()
    receipt = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    with pytest.raises(TimeoutError, match="not committed within"):
        receipt.result(timeout=0.01)
    parking.release()
    assert receipt.result(DEADLINE)[0].version == 1


def test_on_applied_runs_after_the_broadcast_with_the_new_state(
    system: ProjectionSystem, totals: Runtime, broadcaster: RecordingBroadcaster
) -> None:
    """``hook(key, state)``; a hook that raises is counted and harms nothing."""
    seen: list[tuple[str, int, int]] = []

    def fail(_key: str, _state: Total) -> None:
        raise SystemExit

    totals.on_applied(fail)
    totals.on_applied(lambda key, state: seen.append((key, state.total, len(broadcaster.published))))
    totals.apply_event(Added("a", 3), DEADLINE)
    assert seen == [("a", 3, 1)]
    assert system.stats()["projections"]["test.totals"]["hook_errors"] == 1


@pytest.mark.parametrize("pool", ["", "+pool"])
def test_an_app_may_bring_its_own_peewee_database(database_url: str, pool: str) -> None:
    """KEYFOLD_DATABASE takes a peewee.Database as well, pooled or not; it stays the app's to use."""
    url = database_url.replace("://", f"{pool}://", 1)
    if url.startswith("sqlite+pool"):
        url += "?check_same_thread=false"  # Peewee's pool hands a connection from thread to thread
    own: peewee.Database = connect(url)
    with ProjectionSystem(own) as system:
        totals = system.register(Totals())
        with own.connection_context(), own.atomic():
            # A transaction of the app's on this thread: the system's own threads are not in it.
            assert totals.apply_event(Added("b", 3), DEADLINE)[0].version == 1
            assert own.table_exists("projection_snapshots")
        assert totals.read_required("b").total == 3
    if isinstance(own, PooledDatabase):
        own.close_all()
