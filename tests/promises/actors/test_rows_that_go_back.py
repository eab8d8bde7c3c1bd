"""A row is set back behind the commits of its actor: by a restored backup, or a replica that lagged."""

from __future__ import annotations

import threading
from collections.abc import Callable

import pytest
from keyfold.actors import ApplyError, ProjectionError, ProjectionSystem
from keyfold.store import Position, SnapshotStore
from support.counting import Added, RecordingBroadcaster, Total, Totals, poison
from support.damage import Replica, copy_row, damage, restore
from support.parking import DEADLINE, wait_until

NAME = "test.totals"


class Halting(Totals):
    """The same, but an event that can't be folded halts its key."""

    name = "test.halting"
    on_error = "halt"


def position_of(system: ProjectionSystem, name: str = NAME) -> Position:
    row = system.read_row(name, "a")
    assert row is not None
    return row.position


def set_back(system: ProjectionSystem, lost: int = 2) -> Position:
    """Commit an event, then some more, set the row back to the first, and return the lost position."""
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    copy = copy_row(system.store, "a")
    for _ in range(lost):
        system.bus.dispatch(Added("a", 10)).result(DEADLINE)
    before = position_of(system)
    restore(system.store, copy)
    return before


def test_the_next_commit_is_in_an_epoch_of_its_own(
    system: ProjectionSystem, broadcaster: RecordingBroadcaster
) -> None:
    """And pages read the row again: the deltas that they were shown do not lead to it."""
    totals = system.register(Totals())
    lost = set_back(system)
    [applied] = system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    assert applied.version == 2
    assert applied.epoch != lost.epoch
    assert totals.read("a") == Total(6, [1, 5])
    assert broadcaster.invalidated == ["a"]
    assert system.stats()["projections"][NAME]["gone_back"] == 1
    [applied] = system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    assert applied.version == 3
    assert system.stats()["projections"][NAME]["gone_back"] == 1


def test_an_epoch_that_was_left_does_not_come_back(system: ProjectionSystem) -> None:
    """The same backup is restored once more: its epoch is known to be one of two histories."""
    totals = system.register(Totals())
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    copy = copy_row(system.store, "a")
    system.bus.dispatch(Added("a", 10)).result(DEADLINE)
    epochs = {copy.values["epoch"]}
    for restores in range(1, 5):
        restore(system.store, copy)
        [applied] = system.bus.dispatch(Added("a", restores)).result(DEADLINE)
        assert applied.version == 2
        epochs.add(applied.epoch)
        assert len(epochs) == restores + 1
        assert totals.read("a") == Total(1 + restores, [1, restores])
        assert system.stats()["projections"][NAME]["gone_back"] == restores


def test_also_where_nothing_can_be_committed_on_it(system: ProjectionSystem) -> None:
    """The only event is poison, or the row does not load.

    The epoch is left all the same, and the rest stays.
    """
    system.register(Totals())
    lost = set_back(system)
    with pytest.raises(ApplyError):
        system.bus.dispatch(Added("a", 5, poison)).result(DEADLINE)
    assert system.settle(DEADLINE)
    left = position_of(system)
    assert left.version == 1
    assert left.epoch != lost.epoch
    copy = copy_row(system.store, "a")
    system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    restore(system.store, copy)
    damage(system, "a")
    with pytest.raises(ProjectionError):
        system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    assert system.settle(DEADLINE)
    assert position_of(system).version == 1
    assert position_of(system).epoch != left.epoch
    assert b"many" in copy_row(system.store, "a").values["state"].encode()


def test_a_halted_key_stays_halted(system: ProjectionSystem) -> None:
    """Parked events stay parked, whichever state the row has by then."""
    halting = system.register(Halting())
    halting.apply_event(Added("a", 1), DEADLINE)
    with pytest.raises(ApplyError):
        halting.apply_event(Added("a", 5, poison), DEADLINE)
    copy = copy_row(system.store, "a", name="test.halting")
    lost = position_of(system, "test.halting")
    [letter] = halting.dead_letters.find("a")
    halting.dead_letters.skip(letter.id)
    halting.apply_event(Added("a", 1), DEADLINE)
    with pytest.raises(ApplyError):
        halting.apply_event(Added("a", 5, poison), DEADLINE)
    restore(system.store, copy)
    with pytest.raises(ProjectionError):
        halting.apply_event(Added("a", 7), DEADLINE)
    row = system.read_row("test.halting", "a")
    assert row is not None
    assert (row.version, row.halted) == (1, True)
    assert row.epoch != lost.epoch


def test_another_commit_of_the_same_version_is_not_written_over(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 2: epoch and version are those that the state was folded from, and the commit is another."""
    ours, theirs = make_system(), make_system()
    mine = ours.register(Totals())
    theirs.register(Totals())
    lost = set_back(ours, lost=1)
    theirs.bus.dispatch(Added("a", 100)).result(DEADLINE)
    assert position_of(ours) == lost
    [applied] = ours.bus.dispatch(Added("a", 5)).result(DEADLINE)
    assert mine.read("a") == Total(106, [1, 100, 5])
    assert applied.version == 3
    assert applied.epoch != lost.epoch


def test_actors_of_two_processes_while_the_row_is_set_back_again_and_again(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Each commit is over a row that was there.

    The count of events is the version, however often it goes back.
    """
    systems = [make_system(), make_system()]
    totals, _ = [system.register(Totals()) for system in systems]
    set_back(systems[0])
    copy, done = copy_row(systems[0].store, "a"), threading.Event()

    def write(system: ProjectionSystem) -> None:
        while not done.is_set():
            system.bus.dispatch(Added("a", 1)).result(DEADLINE)

    threads = [threading.Thread(target=write, args=(system,)) for system in systems]
    for thread in threads:
        thread.start()
    for _ in range(10):
        version = position_of(systems[0]).version
        while position_of(systems[0]).version < version + 5:
            pass
        restore(systems[0].store, copy)
    done.set()
    for thread in threads:
        thread.join(DEADLINE)
    for system in systems:
        system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    snapshot = totals.snapshot("a")
    assert snapshot is not None
    assert snapshot.version == snapshot.state.total == len(snapshot.state.amounts)
    assert snapshot.epoch != copy.values["epoch"]


def test_a_row_that_is_gone_is_made_anew(system: ProjectionSystem) -> None:
    """The backup is older than the key: an insert draws an epoch anyhow."""
    totals = system.register(Totals())
    copy = copy_row(system.store, "a")
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    lost = position_of(system)
    restore(system.store, copy)
    [applied] = system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    assert (applied.version, totals.read("a")) == (1, Total(5, [5]))
    assert applied.epoch != lost.epoch
    assert system.stats()["projections"][NAME]["gone_back"] == 0


def test_a_row_that_another_release_wrote_fits_any_commit(system: ProjectionSystem) -> None:
    """It says no id: epoch and version decide, as they did."""
    totals = system.register(Totals())
    store: SnapshotStore = system.store
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    store.run(lambda: store.database.execute_sql("UPDATE projection_snapshots SET commit_id = NULL"))
    for amount in (2, 3):
        system.bus.dispatch(Added("a", amount)).result(DEADLINE)
    assert totals.read("a") == Total(6, [1, 2, 3])
    assert system.stats()["projections"][NAME]["gone_back"] == 0


def test_a_load_that_lags_makes_no_epoch(system: ProjectionSystem) -> None:
    """A balancer sends it to a replica: the row that is written over has all that the actor knows."""
    totals = system.register(Totals())
    system.bus.dispatch(Added("a", 1)).result(DEADLINE)
    first = position_of(system)
    replica = Replica(system.store, NAME, "a")
    system.bus.dispatch(Added("a", 10)).result(DEADLINE)
    looks = system.stats()["projections"][NAME]["gone_back"]
    with pytest.raises(ApplyError):
        system.bus.dispatch(Added("a", 5, poison)).result(DEADLINE)
    wait_until(lambda: system.stats()["projections"][NAME]["gone_back"] > looks)
    replica.catch_up()
    assert system.settle(DEADLINE)
    [applied] = system.bus.dispatch(Added("a", 100)).result(DEADLINE)
    assert (applied.epoch, applied.version) == (first.epoch, 3)
    assert totals.read("a") == Total(111, [1, 10, 100])


def test_a_row_that_moves_on_before_its_actor_can_leave_the_epoch_leaves_it_all_the_same(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Another process, which does not know the lost commit, commits past it before the new epoch."""
    ours, theirs = make_system(), make_system()
    totals = ours.register(Totals())
    theirs.register(Totals())
    lost = set_back(ours, lost=1)
    replica = Replica(ours.store, NAME, "a")
    for _ in range(2):
        theirs.bus.dispatch(Added("a", 100)).result(DEADLINE)
    receipt = ours.bus.dispatch(Added("a", 5))
    wait_until(lambda: ours.stats()["projections"][NAME]["gone_back"] > 0)
    replica.catch_up()
    [applied] = receipt.result(DEADLINE)
    assert totals.read("a") == Total(206, [1, 100, 100, 5])
    assert applied.version == 4
    assert applied.epoch != lost.epoch


def test_what_is_published_says_which_commit_follows_which(
    make_system: Callable[..., ProjectionSystem], system: ProjectionSystem, broadcaster: RecordingBroadcaster
) -> None:
    """A dead letter that is retried too: its delta is told from that of a lost history."""
    totals, other = system.register(Totals()), make_system()
    other.register(Totals())
    other.bus.dispatch(Added("a", 1)).result(DEADLINE)
    copy = copy_row(system.store, "a")
    damage(system, "a")
    with pytest.raises(ProjectionError):
        totals.apply_event(Added("a", 5), DEADLINE)
    restore(system.store, copy)
    [letter] = totals.dead_letters.find("a")
    totals.dead_letters.retry(letter.id)
    system.bus.dispatch(Added("a", 7)).result(DEADLINE)
    row = system.read_row(NAME, "a")
    assert row is not None
    assert totals.read("a") == Total(13, [1, 5, 7])
    ids = [copy.values["commit_id"], *(turn.commit_id for turn in broadcaster.published)]
    assert [turn.base_commit_id for turn in broadcaster.published] == ids[:-1]
    assert len({*ids, None}) == 4
    assert ids[-1] == row.commit_id
