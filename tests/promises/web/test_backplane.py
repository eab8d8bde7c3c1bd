"""Hubs of several processes over one database and a real Redis: here in one process, each with a port."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from functools import partial
from time import monotonic
from typing import Any, NamedTuple

import msgspec
import pytest
from flask import Flask
from keyfold.actors import ProjectionError, ProjectionSystem
from keyfold.store.processes import Processes
from keyfold.web import Keyfold
from keyfold.web.live.backplane.backplane import Backplane
from keyfold.web.live.backplane.cross_process_sync import notice_of
from keyfold.web.live.channels.deltas import Deltas
from keyfold.web.live.protocol.messages import delta_messages
from keyfold.web.live.protocol.websocket_frames import text_frame
from msgspec import msgpack
from prometheus_client.parser import text_string_to_metric_families
from redis import Redis
from support.counting import Added, Totals
from support.parking import DEADLINE
from support.redis_server import RedisServer
from support.serving import Site, Watcher, serve

TUNING = {"heartbeat_seconds": 3600.0}  # nothing heals by waiting, unless a test says so


class Node(NamedTuple):
    """Stands for one process of a site."""

    app: Flask
    site: Site
    system: ProjectionSystem
    stack: ExitStack

    def watch(self, key: str) -> Watcher:
        """Open a socket here."""
        watcher = self.site.watch("test.totals", key)
        self.stack.callback(watcher.close)
        return watcher

    def add(self, key: str) -> int:
        """Commit an event here, and return the version that it made."""
        [applied] = self.system.bus.dispatch(Added(key)).result(DEADLINE)
        return applied.version

    def backplane(self) -> dict[str, Any]:
        facts: dict[str, Any] = self.system.stats()["sockets"]["backplane"]
        return facts


@pytest.fixture
def make_node(database_url: str, redis_server: RedisServer) -> Iterator[Callable[..., Node]]:
    with ExitStack() as stack:

        def make(**config: Any) -> Node:
            keyfold = Keyfold()
            keyfold.register(Totals())
            app = Flask("node")
            app.config.update({"KEYFOLD_DATABASE": database_url, "KEYFOLD_REDIS": redis_server.url, **config})
            app.config["KEYFOLD_TUNING"] = TUNING | config.get("KEYFOLD_TUNING", {})
            keyfold.init_app(app)
            system = app.extensions["keyfold"].system
            site = stack.enter_context(serve(app))
            stack.callback(system.close)
            return Node(app, site, system, stack)

        yield make


def until(what: Callable[[], bool]) -> None:
    """Wait for something that only another thread's numbers tell."""
    deadline, tick = monotonic() + DEADLINE, threading.Event()
    while not what():
        assert monotonic() < deadline
        tick.wait(0.005)


def versions(watcher: Watcher, last: int) -> list[tuple[str, int]]:
    """Read until a version is reached, and return the type of the message that brought each."""
    seen: list[tuple[str, int]] = []
    while not seen or seen[-1][1] < last:
        frame = watcher.next()
        seen.append((frame["type"], frame["version"]))
    return seen


def test_a_socket_sees_what_another_process_commits(make_node: Callable[..., Node]) -> None:
    """In order, and without a gap: a snapshot, then a delta for each version."""
    here, there = make_node(), make_node()
    watcher = here.watch("a")
    assert watcher.next()["version"] == 0
    for version in range(1, 51):
        assert there.add("a") == version
    assert versions(watcher, 50) == [("delta", version) for version in range(1, 51)]
    assert there.backplane()["published"] >= 50
    assert here.backplane()["received"] >= 1
    assert there.backplane()["received"] == 0  # its own come back to nobody


def test_two_processes_write_one_key(make_node: Callable[..., Node]) -> None:
    """Turns cross on their way; each socket has every version once, in order, and no snapshot in between."""
    nodes = [make_node(KEYFOLD_TUNING={"redis_patience_seconds": DEADLINE}) for _ in range(2)]
    watchers = [node.watch("a") for node in nodes]
    for watcher in watchers:
        assert watcher.next()["version"] == 0

    def write(node: Node) -> None:
        for _ in range(100):
            node.add("a")

    threads = [threading.Thread(target=write, args=(node,)) for node in nodes]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    for watcher in watchers:
        assert versions(watcher, 200) == [("delta", version) for version in range(1, 201)]


def test_a_key_that_nobody_watches_here_is_not_listened_to(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    here, there = make_node(), make_node()
    watcher = here.watch("a")
    assert watcher.next()["version"] == 0
    there.add("b")
    there.add("a")
    assert versions(watcher, 1) == [("delta", 1)]
    assert "test.totals.b" not in redis_server.ask("PUBSUB", "CHANNELS")
    assert "keyfold:projection.test.totals.a" in redis_server.ask("PUBSUB", "CHANNELS")
    assert here.backplane()["received"] == 1


def test_a_rebuild_elsewhere_is_a_snapshot_here(make_node: Callable[..., Node]) -> None:
    here, there = make_node(), make_node()
    there.add("a")
    watcher = here.watch("a")
    first = watcher.next()
    there.system.runtime("test.totals").rebuild("a", [Added("a"), Added("a")])
    second = watcher.next()
    assert (second["type"], second["reason"], second["state"]["total"]) == ("snapshot", "rebuild", 2)
    assert second["epoch"] != first["epoch"]


def test_what_was_committed_while_redis_was_away_arrives_when_it_is_back(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    """Stopped, and started again empty: all watched rows are compared, and the stale one gets a snapshot."""
    here, there = make_node(), make_node()
    stale, fresh = here.watch("a"), here.watch("b")
    assert stale.next()["version"] == fresh.next()["version"] == 0
    redis_server.stop()
    until(lambda: here.backplane()["trouble"] is not None)
    assert there.add("a") == 1  # no commit waits for Redis
    here.add("b")
    assert versions(fresh, 1) == [("delta", 1)]  # nor does a local socket
    until(lambda: there.backplane()["waiting"] == 0)
    redis_server.start()
    healed = stale.next()
    assert (healed["type"], healed["reason"], healed["version"]) == ("snapshot", "gap", 1)
    until(lambda: there.backplane()["trouble"] is None)
    there.add("a")
    there.add("b")
    assert versions(stale, 2) == [("delta", 2)]
    assert versions(fresh, 2) == [("delta", 2)]  # it was at its row all the time


def test_a_socket_that_comes_while_redis_is_away(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    """It gets the row, and later commits once Redis is back."""
    here, there = make_node(), make_node()
    redis_server.stop()
    there.add("a")
    watcher = here.watch("a")
    assert watcher.next()["version"] == 1
    there.add("a")
    until(lambda: there.backplane()["waiting"] == 0)
    redis_server.start()
    healed = watcher.next()
    assert (healed["type"], healed["version"]) == ("snapshot", 2)


def test_a_lost_message_heals_by_the_next_one(make_node: Callable[..., Node]) -> None:
    """The version jump says that something is missing, and the row is read."""
    here, there = make_node(KEYFOLD_TUNING={"redis_patience_seconds": 0.01}), make_node()
    watcher = here.watch("a")
    assert watcher.next()["version"] == 0
    there.add("a")
    assert watcher.next()["version"] == 1
    # A process without Redis: no other process learns of its commits.
    silent = make_node(KEYFOLD_REDIS=None)
    silent.add("a")
    there.add("a")
    healed = watcher.next()
    assert (healed["type"], healed["reason"], healed["version"]) == ("snapshot", "gap", 3)
    there.add("a")
    assert versions(watcher, 4) == [("delta", 4)]


def test_a_message_that_is_none_harms_nothing(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    here, there = make_node(), make_node()
    watcher = here.watch("a")
    assert watcher.next()["version"] == 0
    assert redis_server.ask("PUBLISH", "keyfold:projection.test.totals.a", "garbage") == ":1\r\n"
    there.add("a")
    assert versions(watcher, 1) == [("delta", 1)]


TURN = delta_messages("projection.test.totals.a", "delta", "e", 0, [b"1"])[0]


@pytest.mark.parametrize(
    "content",
    [
        [1, ["x"]],
        [1, {"x": 1}],
        [1, "whatever"],
        [1],
        [True, "gap"],
        [2, "gap"],
        ["gap"],
        [0],
        [0, "e", 0, []],
        [0, "e", 0, [TURN.decode()]],
        [0, "e", 0, [None]],
        [0, "e", 0, TURN],
        [0, "e", 1, [TURN]],
        [0, "e", -1, [TURN]],
        [0, "e", 2**63 - 1, [TURN]],
        [0, "e", False, [TURN]],
        [0, "e", "0", [TURN]],
        [0, 7, 0, [TURN]],
        [0, "", 0, [TURN]],
        [0, "e" * 65, 0, [TURN]],
        [0, "f", 0, [TURN]],
        [0, "e", 0, [TURN[:-1]]],
        [0, "e", 0, [TURN.replace(b"1}", b'"\xff"}')]],
        [0, "e", 0, [TURN], 1, None],
        [0, "e", 0, [TURN], None, "x" * 65],
        [0, "e", 0, [TURN], 1],
        None,
    ],
)
def test_nothing_of_a_message_is_taken_on_trust(content: Any) -> None:
    """A message that this library would not send is no notice."""
    assert notice_of("projection.test.totals.a", content) is None
    assert notice_of("projection.test.totals.a", [0, "e", 0, [TURN]]) == Deltas("e", 0, [text_frame(TURN)])


def test_a_release_without_ids_of_commits_understands_what_is_published(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    """And the other way round: during a rollout both run side by side, and neither waits for a heartbeat."""
    node = make_node()
    epoch = node.watch("a").next()["epoch"]
    heard: list[list[Any]] = []
    client = Redis.from_url(redis_server.url)
    pubsub = client.pubsub()  # type: ignore[no-untyped-call]
    try:
        pubsub.subscribe("keyfold:projection.test.totals.a")
        until(lambda: pubsub.get_message(timeout=0.01) is not None)
        node.add("a")
        node.system.runtime("test.totals").wipe("a")
        until(lambda: heard_by_the_release_before(pubsub, heard) == 2)
    finally:
        pubsub.close()
        client.close()
    [(epoch, base_version, payloads), replaced] = heard
    [payload] = payloads
    assert (base_version, msgspec.json.decode(payload)["epoch"]) == (0, epoch)
    assert replaced == ["rebuild"]

    watcher = node.watch("b")
    assert watcher.next()["version"] == 0
    # As it publishes: the origin, and four items.
    frames = delta_messages("projection.test.totals.b", "delta", "old", 0, [b"1"])
    message = msgpack.encode(["somebody", 0, "old", 0, frames])
    until(lambda: publish(redis_server, message, "b") >= 1)
    assert versions(watcher, 1) == [("delta", 1)]
    assert node.backplane()["garbage"] == 0


def heard_by_the_release_before(pubsub: Any, heard: list[list[Any]]) -> int:
    """Take a message as the release without commit ids does. Returns the number taken so far."""
    if (message := pubsub.get_message(timeout=0.01)) is not None:
        origin, *content = msgpack.decode(message["data"])
        assert origin != "its own"
        assert content
        kind, *rest = content
        if kind == 0:
            epoch, base_version, payloads = rest
            heard.append([epoch, base_version, payloads])
        else:
            [reason] = rest
            heard.append([reason])
    return len(heard)


def test_the_ids_of_commits_arrive_beside_the_message(redis_server: RedisServer) -> None:
    """They tell two commits of one version apart, between processes too."""
    heard: list[Any] = []
    subscribed = threading.Event()
    sender = Backplane(redis_server.url, "k:", received=lambda *_: None, confirmed=lambda _: None)
    receiver = Backplane(
        redis_server.url,
        "k:",
        received=lambda *news: heard.append(news),
        confirmed=lambda _: subscribed.set(),
    )
    try:
        receiver.watch("a")
        assert subscribed.wait(DEADLINE)
        sender.publish("a", [1, "gap"])
        sender.publish("a", [0, "e", 0, [TURN]], details=("one", "other"))
        receiver.publish("a", [0, "e", 0, [TURN]], details=("one", "other"))  # its own: it hears none of it
        sender.publish("a", [])
        until(lambda: len(heard) == 3)
    finally:
        sender.close(DEADLINE)
        receiver.close(DEADLINE)
    assert heard == [("a", [1, "gap"]), ("a", [0, "e", 0, [TURN], "one", "other"]), ("a", [])]


def test_garbage_is_counted_logged_once_and_silences_nobody(
    make_node: Callable[..., Node], redis_server: RedisServer, caplog: pytest.LogCaptureFixture
) -> None:
    """The watchers of the key go on, and it is not logged a second time within a minute."""
    here, there = make_node(KEYFOLD_TUNING={"heartbeat_seconds": 0.05}), make_node()
    there.add("a")
    watcher = here.watch("a")
    assert watcher.next()["version"] == 1
    until(lambda: here.backplane()["watched"] == 1)
    for content in ([1, ["x"]], [1, {}], [0], [0, "e", 0, [b"{}"]]):
        message = msgpack.encode(["somebody", *content])
        until(lambda message=message: publish(redis_server, message) == 1)  # type: ignore[misc]
    for data in (b"", b"\x90", b"\x91" * 2000, b"\xc1", b"\x91\x90"):
        publish(redis_server, data)
    until(lambda: here.backplane()["garbage"] == 9)
    there.add("a")
    while watcher.next()["version"] != 2:
        pass
    assert watcher.next()["type"] == "heartbeat"
    assert sum("is ignored" in message for message in caplog.messages) == 1
    assert "Traceback" not in caplog.text


def test_forged_versions_are_healed_by_the_next_heartbeat(
    make_node: Callable[..., Node], redis_server: RedisServer
) -> None:
    """And by a first read: no new watcher gets any of them, and later commits arrive."""
    for config in ({"KEYFOLD_TUNING": {"heartbeat_seconds": 0.05}}, {}):
        here, there = make_node(**config), make_node()
        there.add("a")
        watcher = here.watch("a")
        first = watcher.next()
        epoch, version = first["epoch"], first["version"]
        deltas = [b'{"total":777}'] * 50
        frames = delta_messages(first["channel"], "delta", epoch, version, deltas)
        message = msgpack.encode(["somebody", 0, epoch, version, frames])
        until(lambda message=message: publish(redis_server, message) >= 1)  # type: ignore[misc]
        while watcher.next()["version"] != version + 50:
            pass
        if not config:
            fresh = here.watch("a")
            frame = fresh.next()
            assert (frame["type"], frame["version"]) == ("snapshot", version)
        while (frame := watcher.next())["type"] != "snapshot":
            pass
        assert (frame["version"], frame["state"]["total"]) == (version, version)
        there.add("a")
        while (frame := watcher.next())["version"] != version + 1:
            pass
        assert frame["type"] in ("delta", "snapshot")
        here.system.close()


def publish(server: RedisServer, data: bytes, key: str = "a") -> int:
    """Publish this to the listeners of the key, and return their number."""
    client = Redis.from_url(server.url)
    try:
        return int(client.publish(f"keyfold:projection.test.totals.{key}", data))
    finally:
        client.close()


def test_a_frozen_redis_stops_nobody(make_node: Callable[..., Node], redis_server: RedisServer) -> None:
    """It accepts connections and answers nothing: commits and local sockets go on, with a bounded queue."""
    here = make_node()
    watcher = here.watch("a")
    assert watcher.next()["version"] == 0
    redis_server.freeze()
    try:
        for _ in range(100):
            here.add("a")
        assert versions(watcher, 100) == [("delta", version) for version in range(1, 101)]
    finally:
        redis_server.thaw()


def test_what_a_stopping_process_still_commits_is_told(make_node: Callable[..., Node]) -> None:
    """gunicorn's hook says 1001 to its sockets first, and closes the system behind that."""
    here, there = make_node(), make_node()
    own, other = there.watch("a"), here.watch("a")
    assert own.next()["version"] == other.next()["version"] == 0
    assert there.system.broadcaster is not None
    there.system.broadcaster.close(DEADLINE)
    assert own.close_code() == 1001
    there.add("a")
    there.system.close()
    assert versions(other, 1) == [("delta", 1)]


def test_a_frozen_redis_holds_no_close_up(make_node: Callable[..., Node], redis_server: RedisServer) -> None:
    """Messages that it does not take within three seconds are given up."""
    here = make_node()
    here.add("a")
    redis_server.freeze()
    try:
        for _ in range(300):
            here.add("a")
        started = monotonic()
        here.system.close()
        assert monotonic() - started < DEADLINE
    finally:
        redis_server.thaw()


def test_processes_that_do_not_hear_each_other_say_so_once(
    make_node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """With Redis there is nothing to say."""

    def warnings() -> list[str]:
        return [message for message in caplog.messages if "KEYFOLD_REDIS is not set" in message]

    for redis, expected in ((True, 0), (False, 2)):
        config = {} if redis else {"KEYFOLD_REDIS": None}
        nodes = [make_node(KEYFOLD_TUNING={"report_seconds": 0.01}, **config) for _ in range(2)]
        for node in nodes:
            node.watch("a").next()
        report_in_turn([node.system for node in nodes])
        assert len(warnings()) == expected


def test_a_killed_process_that_this_one_replaces_is_not_another(
    make_node: Callable[..., Node], caplog: pytest.LogCaptureFixture
) -> None:
    """Its report is still there, and recent."""
    silent = make_node(KEYFOLD_REDIS=None, KEYFOLD_TUNING={"report_seconds": 0.0})
    Processes(silent.system.store).report("killed", {"process": "killed"})
    node = make_node(KEYFOLD_REDIS=None, KEYFOLD_TUNING={"report_seconds": 0.01})
    until(lambda: node.system.reporter.others()[0]["reported_ago"] > 0.0)
    node.watch("a").next()
    report_in_turn([node.system])
    assert "KEYFOLD_REDIS is not set" not in caplog.text


def report_in_turn(systems: list[ProjectionSystem]) -> None:
    """Let each report more often than it looks for others."""
    reports: Counter[ProjectionSystem] = Counter()

    def note(system: ProjectionSystem, _stats: object) -> None:
        reports[system] += 1

    def reported() -> bool:
        for system in systems:
            system.reporter.report()
        return all(reports[system] > 15 for system in systems)

    for system in systems:
        system.reporter.on_report(partial(note, system))
    until(reported)


def test_a_url_that_is_none_is_refused_at_the_start() -> None:
    app = Flask("wrong")
    app.config.update(KEYFOLD_DATABASE="sqlite://", KEYFOLD_REDIS="localhost:6379")
    with pytest.raises(ProjectionError, match="KEYFOLD_REDIS is not a URL"):
        Keyfold().init_app(app)


def test_operators_see_how_redis_fares(make_node: Callable[..., Node], redis_server: RedisServer) -> None:
    """In the metrics of this process, and in ``flask keyfold status`` of another."""
    here, there = make_node(KEYFOLD_ADMIN_TOKEN="t", KEYFOLD_TUNING={"report_seconds": 0.01}), make_node()

    def found() -> dict[str, float]:
        status, _, text = here.site.request("/keyfold/metrics", Authorization="Bearer t")
        assert status == 200
        families = text_string_to_metric_families(text)
        return {
            sample.name.removeprefix("keyfold_backplane_"): sample.value
            for family in families
            for sample in family.samples
            if sample.name.startswith("keyfold_backplane_") and not sample.name.endswith("_created")
        }

    watcher = here.watch("a")
    watcher.next()
    there.add("a")
    watcher.next()
    here.add("a")
    expected = {"connected": 1, "waiting": 0, "received_total": 1, "dropped_total": 0, "reconnects_total": 0}

    def fares_well() -> bool:
        facts = found()
        return facts.pop("published_total") >= 1 and facts == expected

    until(fares_well)
    redis_server.stop()
    here.add("a")
    until(lambda: found()["connected"] == 0)
    here.system.reporter.report()
    result = None

    def named() -> bool:
        nonlocal result
        result = there.app.test_cli_runner().invoke(args=["keyfold", "status"])
        return "Redis: Error" in result.output

    until(named)
    assert result is not None
    assert result.exit_code == 0


def test_what_waits_for_redis_is_bounded(redis_server: RedisServer) -> None:
    """In messages and in bytes: the oldest goes, and is counted."""
    redis_server.freeze()
    backplane = Backplane(redis_server.url, "p:", received=lambda *_: None, confirmed=lambda _: None)
    try:
        for number in range(10_500):
            backplane.publish(f"c{number}", [0])
        assert backplane.stats()["waiting"] <= 10_000
        assert backplane.stats()["dropped"] > 0
        for number in range(40):
            backplane.publish(f"c{number}", ["x" * 1024 * 1024])
        assert backplane.stats()["waiting"] <= 33
    finally:
        redis_server.thaw()
        backplane.close(DEADLINE)


def test_what_nobody_watches_any_more_is_not_listened_to(redis_server: RedisServer) -> None:
    """Redis itself reports the listeners."""
    confirmed = threading.Event()
    backplane = Backplane(
        redis_server.url, "p:", received=lambda *_: None, confirmed=lambda _: confirmed.set()
    )
    try:
        backplane.watch("a")
        assert confirmed.wait(DEADLINE)
        assert ":1" in redis_server.ask("PUBSUB", "NUMSUB", "p:a")
        backplane.unwatch("a")
        until(lambda: ":0" in redis_server.ask("PUBSUB", "NUMSUB", "p:a"))
    finally:
        backplane.close(DEADLINE)
