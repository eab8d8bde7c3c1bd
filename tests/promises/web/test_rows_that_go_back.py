"""Promise 8 after a restored backup or the promotion of a replica that lagged: every page ends at the row.

Several processes are several systems here, over one database. Deltas add up, so that a page which is led on
from a history that was lost is wrong for good, whatever comes later.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any, NamedTuple

import pytest
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem
from keyfold.store.rows import Head
from keyfold.web import Keyfold
from support.counting import Added, Total
from support.damage import Replica, copy_row, restore
from support.parking import DEADLINE, wait_until
from support.serving import Site, Watcher, serve

NAME = "test.sums"
QUICK = {"KEYFOLD_TUNING": {"heartbeat_seconds": 0.05}}
NEVER = {"KEYFOLD_TUNING": {"heartbeat_seconds": 3600.0}}


class Sums(Projection[Added, Total]):
    """Its deltas give the amount that was added, not the sum."""

    name = NAME
    public = True

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Total, event: Added) -> int:
        state.total += event.amount
        return event.amount


class Page:
    """A browser's page: it folds the messages, and keeps its position when it reconnects."""

    def __init__(self, watcher: Watcher, key: str) -> None:
        self.watcher, self.key = watcher, key
        self.total = 0
        self.frames: list[dict[str, Any]] = []

    @property
    def since(self) -> str:
        assert self.watcher.position is not None
        epoch, version = self.watcher.position
        return f"{epoch}:{version}"

    def next(self) -> dict[str, Any]:
        frame = self.watcher.next()
        if frame["type"] == "snapshot":
            self.total = (frame["state"] or {"total": 0})["total"]
        elif frame["type"] == "delta":
            self.total += frame["data"]
        self.frames.append(frame)
        return frame

    def read_to(self, total: int) -> None:
        """Read on until the page shows this."""
        while self.total != total or not self.frames:
            self.next()

    @property
    def epoch(self) -> str:
        assert self.watcher.position is not None
        return self.watcher.position[0]


class Node(NamedTuple):
    """Stands for one process of a site."""

    site: Site
    system: ProjectionSystem
    stack: ExitStack

    def watch(self, key: str = "a", since: str | None = None) -> Page:
        watcher = self.site.watch(NAME, key, since=since)
        self.stack.callback(watcher.close)
        return Page(watcher, key)

    def add(self, *amounts: int, key: str = "a") -> None:
        """Commit events here, each by itself."""
        for amount in amounts:
            self.system.bus.dispatch(Added(key, amount)).result(DEADLINE)

    def forget_actors(self) -> None:
        """Let all actors retire."""
        engine = self.system._engine
        if engine is not None:
            supervisor = self.system.runtime(NAME).supervisor
            assert supervisor is not None
            wait_until(lambda: engine.sweep(1e12) >= 0 and not supervisor.actors)

    def row(self, key: str = "a") -> tuple[str, int, int]:
        snapshot = self.system.runtime(NAME).snapshot(key)
        assert snapshot is not None
        return snapshot.epoch, snapshot.version, snapshot.state.total

    def agrees_with(self, page: Page) -> None:
        """The page shows the row, and stands where it does."""
        epoch, version, total = self.row(page.key)
        assert (page.watcher.position, page.total) == ((epoch, version), total)


@pytest.fixture
def make_node(database_url: str) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def make(**config: Any) -> Node:
            keyfold = Keyfold()
            keyfold.register(Sums())
            app = Flask("node")
            app.config.update({"KEYFOLD_DATABASE": database_url, **config})
            keyfold.init_app(app)
            system = app.extensions["keyfold"].system
            site = stack.enter_context(serve(app))
            stack.callback(system.close)
            return Node(site, system, stack)

        yield make


def lose(node: Node, *lost: int, key: str = "a") -> None:
    """Commit these, and set the row back to where it was before."""
    copy = copy_row(node.system.store, key, name=NAME)
    node.add(*lost, key=key)
    restore(node.system.store, copy)


def test_the_heartbeat_finds_a_row_behind_what_was_shown(make_node: Callable[..., Node]) -> None:
    """The watchers of the lost history get the row, in a new epoch, of each key that went back."""
    node = make_node(**QUICK)
    node.add(1)
    node.add(5, key="b")
    first, second, other = node.watch(), node.watch("b"), node.watch("c")
    first.read_to(1)
    second.read_to(5)
    before = {page.epoch for page in (first, second)}
    lose(node, 10, 10)
    lose(node, 10, key="b")
    first.read_to(21)
    first.read_to(1)
    second.read_to(15)
    second.read_to(5)
    for page in (first, second):
        assert page.frames[-1]["type"] == "snapshot"
        node.agrees_with(page)
    assert not before & {first.epoch, second.epoch}
    node.add(3)
    first.read_to(4)
    assert first.frames[-1]["type"] == "delta"
    node.agrees_with(first)
    assert {other.next()["version"] for _ in range(3)} == {0}


def test_the_actor_finds_its_row_behind_what_it_committed(make_node: Callable[..., Node]) -> None:
    """At its next event, by itself, without any watcher: its commit is in a new epoch."""
    node = make_node(**NEVER)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    lose(node, 10, 10, 10)
    page.read_to(31)
    lost = page.since
    node.add(2)
    page.read_to(3)
    node.add(3, 4)
    page.read_to(10)
    node.agrees_with(page)
    assert node.row()[1] == 4
    assert node.row()[0] not in lost
    # The history that was lost had a version 4 as well.
    late = node.watch(since=lost)
    late.read_to(10)
    assert late.frames[0]["reason"] == "expired"


def test_a_first_read_finds_it_as_well(make_node: Callable[..., Node]) -> None:
    """A fresh client is sent no delta of the lost history, and those that watch already are brought along."""
    node = make_node(**NEVER)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    lose(node, 10, 10)
    page.read_to(21)
    fresh = node.watch()
    fresh.read_to(1)
    assert [frame["type"] for frame in fresh.frames] == ["snapshot"]
    page.read_to(1)
    node.add(2)
    for each in (fresh, page):
        each.read_to(3)
        node.agrees_with(each)


def test_who_comes_back_from_the_lost_history_is_neither_resumed_nor_told_304(
    make_node: Callable[..., Node],
) -> None:
    """The row comes to the version that was lost once more, by other events."""
    node = make_node(**NEVER)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    lose(node, 10, 10)
    page.read_to(21)
    path = f"/projection/{NAME}/a"
    node.add(3, 4)
    page.read_to(8)
    lost = page.frames[2]
    position = f"{lost['epoch']}:{lost['version']}"
    assert node.row()[1] == lost["version"] == 3
    status, headers, _ = node.site.request(path, **{"If-None-Match": f'"{position}"'})
    assert (status, headers["ETag"]) == (200, f'"{page.since}"')
    back = node.watch(since=position)
    back.read_to(8)
    assert [frame.get("reason") for frame in back.frames] == ["expired"]


def test_it_leaves_its_epoch_also_while_nobody_watches(make_node: Callable[..., Node]) -> None:
    """The tab sleeps, and the actor that knew has retired: the channel alone remembers the shown state."""
    node = make_node(**NEVER)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    copy = copy_row(node.system.store, "a", name=NAME)
    node.add(10, 20)
    page.read_to(31)
    lost = page.since
    page.watcher.close()
    wait_until(lambda: node.system.stats()["sockets"]["subscriptions"] == 0)
    node.forget_actors()
    restore(node.system.store, copy)
    node.add(100, 200)
    wait_until(lambda: node.row()[0] not in lost)
    back = node.watch(since=lost)
    back.read_to(301)
    assert [frame.get("reason") for frame in back.frames] == ["expired"]
    node.agrees_with(back)


def test_a_read_that_lags_costs_snapshots_and_no_epoch(make_node: Callable[..., Node]) -> None:
    """A balancer sends it to a replica that has not come so far: nothing was lost, and the row says so."""
    node = make_node(**NEVER)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    epoch = page.epoch
    replica = Replica(node.system.store, NAME, "a")
    node.add(10)
    page.read_to(11)
    fresh = node.watch()
    fresh.read_to(1)
    page.read_to(1)
    replica.catch_up()
    node.add(100)
    for each in (page, fresh):
        each.read_to(111)
        node.agrees_with(each)
    assert node.row()[0] == epoch


def test_a_hot_key_gets_its_new_epoch(make_node: Callable[..., Node]) -> None:
    """Another process, which does not know the lost commits, commits all the time while this one reads."""
    here, there = make_node(**QUICK), make_node(**NEVER)
    here.add(1)
    page = here.watch()
    page.read_to(1)
    copy = copy_row(here.system.store, "a", name=NAME)
    for receipt in [here.system.bus.dispatch(Added("a", 1)) for _ in range(1000)]:
        receipt.result(DEADLINE)
    page.read_to(1001)
    lost = page.epoch
    here.forget_actors()
    restore(here.system.store, copy)
    done = threading.Event()

    def write() -> None:
        while not done.is_set():
            there.add(1)

    writer = threading.Thread(target=write)
    writer.start()
    try:
        wait_until(lambda: here.row()[0] != lost)
    finally:
        done.set()
        writer.join(DEADLINE)
    total = here.row()[2]
    assert total < 1000
    page.read_to(total)
    here.agrees_with(page)


@pytest.mark.parametrize("retired", [False, True])
def test_the_same_version_by_other_events_is_another_commit(
    make_node: Callable[..., Node], *, retired: bool
) -> None:
    """One commit was lost, and another process made one in its place: neither is overwritten or hidden."""
    here, there = make_node(**QUICK), make_node(**NEVER)
    here.add(1)
    page = here.watch()
    page.read_to(1)
    copy = copy_row(here.system.store, "a", name=NAME)
    here.add(10)
    page.read_to(11)
    if retired:
        here.forget_actors()
    restore(here.system.store, copy)
    there.add(3)
    page.read_to(4)  # without an event here: by the heartbeat
    here.agrees_with(page)
    here.add(5)
    page.read_to(9)
    here.agrees_with(page)
    assert here.row()[1:] == (3, 9)


def test_an_actor_does_not_write_over_the_commit_that_took_the_place_of_its_own(
    make_node: Callable[..., Node],
) -> None:
    """Epoch and version are as expected, and the statement still refuses."""
    here, there = make_node(**NEVER), make_node(**NEVER)
    here.add(1)
    lose(here, 10)
    there.add(3)
    epoch, version, total = there.row()
    assert (version, total) == (2, 4)
    here.add(5)
    after = here.row()
    assert after[1:] == (3, 9)
    assert after[0] != epoch


def test_a_row_that_goes_back_twice(make_node: Callable[..., Node]) -> None:
    """The second copy is of the epoch that the key has left: it does not come back by that."""
    node = make_node(**QUICK)
    node.add(1)
    page = node.watch()
    page.read_to(1)
    epochs = [page.epoch]
    copy = copy_row(node.system.store, "a", name=NAME)
    for amount in (10, 100, 1000):
        node.add(amount)
        page.read_to(1 + amount)
        restore(node.system.store, copy)
        page.read_to(1)
        node.agrees_with(page)
        epochs.append(page.epoch)
    assert len(set(epochs)) == 4


@pytest.mark.parametrize("look", [NEVER, QUICK])
def test_a_row_that_is_not_there_any_more(make_node: Callable[..., Node], look: dict[str, Any]) -> None:
    """The backup is older than the key. No row is made for it, and the next one begins in a new epoch."""
    node = make_node(**look)
    page = node.watch()
    page.next()
    copy = copy_row(node.system.store, "a", name=NAME)
    node.add(10, 10)
    page.read_to(20)
    lost = page.epoch
    restore(node.system.store, copy)
    if look is NEVER:
        fresh = node.watch()
        assert (fresh.next()["version"], fresh.total) == (0, 0)
    page.read_to(0)
    assert page.frames[-1]["type"] == "snapshot"
    assert copy_row(node.system.store, "a", name=NAME).values == {}
    node.add(7)
    page.read_to(7)
    node.agrees_with(page)
    assert page.epoch != lost


def test_two_processes_that_notice_at_once_draw_one_epoch(make_node: Callable[..., Node]) -> None:
    """The row alone decides: the second process finds it in another epoch already."""
    nodes = [make_node(**QUICK), make_node(**QUICK)]
    nodes[0].add(1)
    copy = copy_row(nodes[0].system.store, "a", name=NAME)
    nodes[0].add(10, 10)
    pages = [node.watch() for node in nodes]
    for page in pages:
        page.read_to(21)
    restore(nodes[0].system.store, copy)
    for page in pages:
        page.read_to(1)
    wait_until(lambda: all(page.next()["epoch"] == nodes[0].row()[0] for page in pages))
    epoch = nodes[0].row()[0]
    assert epoch != copy.values["epoch"]
    for page in pages:
        for _ in range(4):
            assert page.next()["type"] == "heartbeat"
        assert page.epoch == epoch
    assert nodes[0].system.store.renew([(NAME, "a", Head.end_of(copy.values["epoch"]))]) == []


@pytest.mark.parametrize("version", [2, 10**17])
def test_a_client_draws_no_epoch(make_node: Callable[..., Node], version: int) -> None:
    """For any made-up position it gets the row as it stands."""
    node = make_node(**QUICK)
    node.add(1)
    before = copy_row(node.system.store, "a", name=NAME)
    for _ in range(3):
        page = node.watch(since=f"{before.values['epoch']}:{version}")
        assert page.next()["reason"] == "expired"
        assert page.next()["type"] == "heartbeat"
    assert copy_row(node.system.store, "a", name=NAME) == before
