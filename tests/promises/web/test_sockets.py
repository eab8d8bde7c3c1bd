"""The wire: a snapshot first, every version after it, and no client without the right to read."""

from __future__ import annotations

import json
import socket
import struct
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from time import monotonic
from typing import Any

import pytest
import websocket
from flask import Flask
from keyfold.actors import BroadcastError, ProjectionSystem
from keyfold.actors.broadcaster import Committed
from keyfold.web.live.connections.connection_limits import TooManyConnections
from keyfold.web.live.hub import Hub
from support.counting import Added, Totals
from support.parking import DEADLINE, Parking
from support.serving import Site, Watcher, serve


def dispatch(system: ProjectionSystem, key: str, *amounts: int) -> None:
    """Dispatch and wait for the commit of each."""
    for amount in amounts:
        system.bus.dispatch(Added(key, amount)).result(DEADLINE)


def hub_of(app: Flask) -> Hub:
    """Return the hub of an app."""
    hub: Hub = app.extensions["keyfold"].hub
    return hub


def test_five_dispatches_five_frames(site: Site, system: ProjectionSystem) -> None:
    """The seed's own test, on projection.{name}.{key}: snapshot, then five contiguous deltas."""
    watcher = site.watch("test.totals", "a/b c")
    first = watcher.next()
    assert first == {
        "type": "snapshot", "channel": "projection.test.totals.a/b c", "epoch": "", "version": 0,
        "state": None, "reason": "initial",
    }  # fmt: skip
    dispatch(system, "a/b c", 1, 2, 3, 4, 5)
    frames = [watcher.next() for _ in range(5)]
    assert [frame["data"] for frame in frames] == [{"total": total} for total in (1, 3, 6, 10, 15)]
    assert {(frame["type"], frame["channel"], frame["event"]) for frame in frames} == {
        ("delta", first["channel"], "delta")
    }
    watcher.close()


def test_initial_u1_u2_in_order_though_they_commit_during_the_initial_read(
    site: Site, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 8: commits between registering and reading are neither lost nor doubled."""
    dispatch(system, "a", 1)
    parking = Parking()
    read = system.store.row

    def read_slowly(name: str, key: str) -> Any:
        row = read(name, key)
        parking.park()
        return row

    monkeypatch.setattr(system.store, "row", read_slowly)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(site.watch, "test.totals", "a")
        parking.wait_for_arrival()
        dispatch(system, "a", 10, 100)
        parking.release()
        watcher = opening.result(DEADLINE)
    frames = [watcher.next() for _ in range(3)]
    assert [(frame["type"], frame["version"]) for frame in frames] == [
        ("snapshot", 1), ("delta", 2), ("delta", 3),
    ]  # fmt: skip
    watcher.close()


def test_what_the_snapshot_has_already_is_not_sent_again(
    site: Site, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 8, the other order: committed before the read, but published into the buffer."""
    dispatch(system, "a", 1)
    parking = Parking()
    read = system.store.row

    def read_late(name: str, key: str) -> Any:
        parking.park()
        return read(name, key)

    monkeypatch.setattr(system.store, "row", read_late)
    with ThreadPoolExecutor(1) as pool:
        opening = pool.submit(site.watch, "test.totals", "a")
        parking.wait_for_arrival()
        dispatch(system, "a", 10, 100)
        parking.release()
        watcher = opening.result(DEADLINE)
    frames = [watcher.next()]
    dispatch(system, "a", 1000)
    frames.append(watcher.next())
    assert [(frame["type"], frame["version"]) for frame in frames] == [("snapshot", 3), ("delta", 4)]
    assert frames[0]["state"]["amounts"] == [1, 10, 100]
    watcher.close()


def test_rebuild_and_wipe_are_one_snapshot_each(site: Site, system: ProjectionSystem) -> None:
    """A new epoch comes as a whole; deltas go on from there."""
    watcher = site.watch("test.totals", "a")
    watcher.next()
    dispatch(system, "a", 1)
    before = watcher.next()
    totals = system.runtime("test.totals")
    totals.rebuild("a", [Added("a", 5), Added("a", 6)])
    rebuilt = watcher.next()
    assert (rebuilt["type"], rebuilt["reason"], rebuilt["version"]) == ("snapshot", "rebuild", 2)
    assert rebuilt["epoch"] != before["epoch"]
    totals.wipe("a")
    wiped = watcher.next()
    assert (wiped["version"], wiped["state"]) == (0, None)
    dispatch(system, "a", 7)
    assert (watcher.next()["prev"], watcher.position) == (0, (wiped["epoch"], 1))
    watcher.close()


def test_a_gap_is_healed_by_a_snapshot(site: Site, system: ProjectionSystem, app: Flask) -> None:
    """Promise 8: another process was ahead, so a version is missing here; the row brings it back."""
    watcher = site.watch("test.totals", "a")
    watcher.next()
    dispatch(system, "a", 1)
    epoch = watcher.next()["epoch"]
    hub_of(app).publish(Committed("test.totals", "a", epoch, 5, [b"{}"]))
    healed = watcher.next()
    assert (healed["type"], healed["reason"], healed["version"]) == ("snapshot", "gap", 1)
    dispatch(system, "a", 2)
    assert watcher.next()["version"] == 2
    assert hub_of(app).stats()["gap"] == 1
    watcher.close()


def test_a_failed_broadcast_brings_the_subscriber_back(
    site: Site, system: ProjectionSystem, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Promise 5: the Receipt raises, the row stays, the socket gets a snapshot at once."""
    watcher = site.watch("test.totals", "a")
    watcher.next()

    def fail(_committed: Committed) -> None:
        raise OSError

    monkeypatch.setattr(hub_of(app), "publish", fail)
    with pytest.raises(BroadcastError):
        dispatch(system, "a", 3)
    assert watcher.next()["state"]["total"] == 3
    watcher.close()


def test_a_client_may_ping_resync_and_talk_nonsense(site: Site, system: ProjectionSystem) -> None:
    """pong, a snapshot with reason resync, and a clear error that ends nothing."""
    dispatch(system, "a", 1)
    watcher = site.watch("test.totals", "a")
    watcher.next()
    watcher.send(type="ping")
    assert watcher.next() == {"type": "pong"}
    watcher.send(type="resync")
    again = watcher.next()
    assert (again["type"], again["reason"], again["version"]) == ("snapshot", "resync", 1)
    watcher.send(type="dance")
    assert watcher.next()["code"] == "unknown_type"
    watcher.socket.send("{")
    assert watcher.next()["code"] == "malformed"
    watcher.send(type="ping")
    assert watcher.next() == {"type": "pong"}
    watcher.close()


def test_binary_closes_1003_and_too_much_1009(site: Site) -> None:
    """Inbound frames are text, and at most 32 KiB."""
    binary = site.watch("test.totals", "a")
    binary.next()
    binary.socket.send_binary(b"x")
    assert binary.close_code() == 1003
    binary.close()
    big = site.watch("test.totals", "a")
    big.next()
    big.socket.send("x" * 32_769)
    assert big.close_code() == 1009
    big.close()


def test_pings_in_the_middle_of_a_flood_corrupt_no_frame(site: Site, system: ProjectionSystem) -> None:
    """The library's pongs and our deltas come from two threads; every frame stays whole."""
    watcher = site.watch("test.totals", "a", enable_multithread=True)
    watcher.next()

    def flood() -> None:
        for _ in range(300):
            dispatch(system, "a", 1)

    pongs = 0
    with ThreadPoolExecutor(1) as pool:
        flooding = pool.submit(flood)
        version = 0
        while version < 300:
            if version % 10 == 0:
                watcher.socket.ping("x" * 100)
            frame = watcher.next()
            version = frame["version"]
            pongs += 1
        flooding.result(DEADLINE)
    assert pongs
    watcher.close()


def test_a_heartbeat_reads_no_state_where_nothing_has_changed(
    make_app: Callable[..., Flask], sqlite_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It asks for positions, of all quiet keys at once; a row that another process has changed is read."""
    app = make_app(KEYFOLD_TUNING={"heartbeat_seconds": 0.1})
    system = app.extensions["keyfold"].system
    with serve(app) as site:
        watchers = {key: site.watch("test.totals", key) for key in "abc"}
        for watcher in watchers.values():
            watcher.next()
        read: list[str] = []
        rows = system.store.rows

        def noted(addresses: list[Any]) -> Any:
            read.extend(key for _, key in addresses)
            return rows(addresses)

        monkeypatch.setattr(system.store, "rows", noted)
        for watcher in watchers.values():
            assert [watcher.next()["type"] for _ in range(3)] == ["heartbeat"] * 3
        assert read == []
        with ProjectionSystem(sqlite_url) as another:
            another.register(Totals()).apply_event(Added("b"), DEADLINE)
        while (frame := watchers["b"].next())["type"] == "heartbeat":
            continue
        assert (frame["reason"], frame["state"]["total"]) == ("gap", 1)
        assert set(read) == {"b"}
        for watcher in watchers.values():
            watcher.close()
        system.close()


def test_silence_brings_a_heartbeat_with_the_position(make_app: Callable[..., Flask]) -> None:
    """A client that lost a frame can tell."""
    app = make_app(KEYFOLD_TUNING={"heartbeat_seconds": 0.05})
    system = app.extensions["keyfold"].system
    with serve(app) as site:
        dispatch(system, "a", 1)
        watcher = site.watch("test.totals", "a")
        epoch = watcher.next()["epoch"]
        assert watcher.next() == {
            "type": "heartbeat", "channel": "projection.test.totals.a", "epoch": epoch, "version": 1,
        }  # fmt: skip
        watcher.close()
        system.close()


BIG = "x" * 100_000
SMALL_WINDOW = ((socket.SOL_SOCKET, socket.SO_RCVBUF, 4096),)


def dispatch_big(system: ProjectionSystem, key: str, count: int, reader: Watcher) -> None:
    """Commit so many deltas of 100 kB, each read by somebody before the next."""
    for _ in range(count):
        applied = system.bus.dispatch(Added(key, 1, lambda _state: {"blob": BIG})).result(DEADLINE)
        assert reader.next()["version"] == applied[0].version


def test_a_slow_subscriber_gets_the_newest_snapshot_not_a_longer_queue(
    site: Site, system: ProjectionSystem, app: Flask
) -> None:
    """Promise 9: over 256 KiB the unsent deltas are dropped for one snapshot; the actor never waits."""
    slow = site.watch("test.totals", "a", sockopt=SMALL_WINDOW)
    lively = site.watch("test.totals", "a")
    for watcher in (slow, lively):
        watcher.next()
    dispatch_big(system, "a", 30, lively)
    [waiting] = [c for c in hub_of(app).connections if c.waiting_bytes]
    assert waiting.waiting_bytes <= 256 * 1024 + 64 * 1024
    frames: list[dict[str, Any]] = []
    while not frames or frames[-1]["version"] < 30:
        frames.append(slow.next())
    assert len(frames) < 20
    assert [frame.get("reason") for frame in frames].count("slow") == 1
    assert frames[-1]["state"]["total"] == 30
    dispatch(system, "a", 5)
    assert slow.next()["prev"] == 30
    slow.close()
    lively.close()


def test_a_frozen_client_is_dropped_and_slows_nobody(make_app: Callable[..., Flask]) -> None:
    """Promise 9: it takes nothing for stall_seconds, so it ends; another socket gets everything."""
    app = make_app(KEYFOLD_TUNING={"stall_seconds": 0.2})
    system, hub = app.extensions["keyfold"].system, hub_of(app)
    with serve(app) as site:
        frozen = site.watch("test.totals", "a", sockopt=SMALL_WINDOW)
        lively = site.watch("test.totals", "a")
        frozen.next()
        lively.next()
        dispatch_big(system, "a", 20, lively)
        _wait_until_closed(hub, 1)
        assert hub.stats()["stalled"] == 1
        frozen.close()
        lively.close()
        system.close()


def _wait_until_closed(hub: Hub, count: int) -> None:
    until = monotonic() + DEADLINE
    while hub.stats()["closed"] < count:
        assert monotonic() < until


def test_at_the_end_every_socket_is_told_1001(site: Site, system: ProjectionSystem) -> None:
    """Promise 11, for sockets."""
    watchers = [site.watch("test.totals", f"key {number}") for number in range(3)]
    for watcher in watchers:
        watcher.next()
    system.close()
    assert [watcher.close_code() for watcher in watchers] == [1001] * 3
    for watcher in watchers:
        watcher.close()


# -- rights


def refused(site: Site, name: str, key: str = "a", **options: Any) -> int:
    """Return the HTTP status with which the handshake is refused."""
    with pytest.raises(websocket.WebSocketBadStatusException) as caught:
        site.watch(name, key, **options)
    return int(caught.value.status_code)


def test_closed_by_default_and_unknown_names_make_no_actor(site: Site, system: ProjectionSystem) -> None:
    """403 without public or authorize, 404 for a name, 400 for a key: before the upgrade."""
    assert refused(site, "test.private") == 403
    assert refused(site, "test.absent") == 404
    assert refused(site, "test.totals", "k" * 513) == 400
    assert refused(site, "test.totals", "a\u2028b") == 400
    assert system.stats()["started"] is False


@pytest.mark.parametrize("answer", [True, False, None, "yes", ValueError("broken")])
def test_authorize_decides_and_only_true_is_yes(make_app: Callable[..., Flask], answer: Any) -> None:
    """It gets the request, the name and the key; an error in it opens nothing."""
    asked = []

    def authorize(request: Any, name: str, key: str) -> Any:
        asked.append((request.headers["X-User"], name, key))
        if isinstance(answer, Exception):
            raise answer
        return answer

    app = make_app(authorize=authorize)
    with serve(app) as site:
        if answer is True:
            watcher = site.watch("test.private", "a", header={"X-User": "kim"})
            assert watcher.next()["type"] == "snapshot"
            watcher.close()
            app.extensions["keyfold"].system.close()
        else:
            assert refused(site, "test.private", header={"X-User": "kim"}) == 403
    assert asked == [("kim", "test.private", "a")]


@pytest.mark.parametrize(
    ("origin", "allowed"),
    [
        ("http://127.0.0.1:{port}", True),
        ("https://127.0.0.1:{port}", True),
        ("http://127.0.0.1", False),
        ("http://127.0.0.1:1", False),
        ("http://evil.example", False),
        ("http://127.0.0.1.evil.example:{port}", False),
        ("null", False),
        ("garbage", False),
        ("https://friend.example", True),
        ("HTTPS://Friend.Example", True),
        ("https://friend.example:8443", False),
        ("http://friend.example", False),
    ],
)
def test_origins(make_app: Callable[..., Flask], origin: str, *, allowed: bool) -> None:
    """The app's own host, those that are named, and a client without one."""
    app = make_app(KEYFOLD_ALLOWED_ORIGINS=["https://friend.example"])
    with serve(app) as site:
        given = origin.format(port=site.port)
        if allowed:
            watcher = site.watch("test.totals", "a", origin=given, suppress_origin=False)
            watcher.next()
            watcher.close()
            app.extensions["keyfold"].system.close()
        else:
            assert refused(site, "test.totals", origin=given, suppress_origin=False) == 403


@pytest.mark.parametrize("limit", ["KEYFOLD_MAX_SOCKETS", "KEYFOLD_MAX_SOCKETS_PER_ADDRESS"])
def test_sockets_are_capped(make_app: Callable[..., Flask], limit: str) -> None:
    """Promise 9: 429 before the upgrade, counted; a place becomes free when a socket ends."""
    app = make_app(**{limit: 2})
    inner = app.wsgi_app

    def from_afar(environ: Any, start: Any) -> Any:
        return inner({**environ, "REMOTE_ADDR": "192.0.2.7"}, start)

    app.wsgi_app = from_afar  # type: ignore[method-assign, assignment]
    with serve(app) as site:
        watchers = [site.watch("test.totals", "a") for _ in range(2)]
        for watcher in watchers:
            watcher.next()
        assert refused(site, "test.totals") == 429
        assert hub_of(app).stats()["refused"] == 1
        watchers[0].close()
        _wait_until_closed(hub_of(app), 1)
        again = site.watch("test.totals", "a")
        assert again.next()["type"] == "snapshot"
        again.close()
        watchers[1].close()
        app.extensions["keyfold"].system.close()


@pytest.mark.parametrize("address", ["127.0.0.1", "::1", "::ffff:127.0.0.1", ""])
def test_a_proxy_on_this_machine_is_not_one_client(make_app: Callable[..., Flask], address: str) -> None:
    """Everybody comes from its address: only the total counts."""
    connection_limits = hub_of(
        make_app(KEYFOLD_MAX_SOCKETS_PER_ADDRESS=1, KEYFOLD_MAX_SOCKETS=3)
    ).connection_limits
    for _ in range(3):
        connection_limits.enter(address, None)
    with pytest.raises(TooManyConnections, match="this server"):
        connection_limits.enter(address, None)


@pytest.mark.parametrize(
    "key",
    ["a//b", "a/", "a//", "ä/ö ü", "100%", "a?b#c", "日本", "+", "a;b", "😀", ".hidden", "a/./b"],
)
def test_any_key_travels_in_a_url(site: Site, system: ProjectionSystem, key: str) -> None:
    """Percent-encoded, over the socket and over HTTP."""
    dispatch(system, key, 7)
    watcher = site.watch("test.totals", key)
    frame = watcher.next()
    assert (frame["channel"], frame["state"]["total"]) == (f"projection.test.totals.{key}", 7)
    watcher.close()


def test_a_half_open_handshake_and_raw_garbage_harm_nobody(site: Site, system: ProjectionSystem) -> None:
    """Connections that never become WebSockets."""
    for data in (b"GET /ws/projection/test.totals/a HTTP/1.1\r\nUpgrade: web", b"\x00\xff" * 100):
        with socket.create_connection(("127.0.0.1", site.port)) as connection:
            connection.sendall(data)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    dispatch(system, "a", 1)
    watcher = site.watch("test.totals", "a")
    assert watcher.next()["version"] == 1
    watcher.raw.sendall(b"\xff" * 200)  # reserved bits
    json.dumps(system.stats())
    other = site.watch("test.totals", "a")
    assert other.next()["version"] == 1
    watcher.close()
    other.close()
