"""A client that takes slowly: it leaves nothing behind, and causes no more work than it takes."""

from __future__ import annotations

import json
import selectors
import socket
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web.live.connections import connection
from keyfold.web.live.connections.client_identity import ClientIdentity
from keyfold.web.live.connections.connection_limits import ConnectionLimits
from keyfold.web.live.connections.websocket import WebSocketConnection
from keyfold.web.live.hub import Hub
from keyfold.web.live.protocol.messages import PONG
from keyfold.web.live.protocol.websocket_frames import text_frame
from keyfold.web.settings import WebSettings
from keyfold.web.socket_takeover import tune
from support.counting import Added, Total
from support.parking import DEADLINE, Parking, wait_until
from support.raw_client import TEXT, RawClient, client_frame, handshake, head_of
from support.serving import serve

CHANNEL = "projection.test.totals."
AT_ONCE = 16
"""Rows that are read for one socket at once, before any of its snapshots has come."""


class Large:
    """An app with states of 30 kB, and a send buffer of 20 kB."""

    def __init__(self, app: Flask, port: int, stack: ExitStack) -> None:
        self.hub: Hub = app.extensions["keyfold"].hub
        self.system: ProjectionSystem = app.extensions["keyfold"].system
        self.reads: Counter[str] = Counter()
        self._port, self._stack = port, stack
        read = self.hub.row_reader.read

        def counted(channel: Any, lost: Any) -> None:
            self.reads[channel.key] += 1
            read(channel, lost)

        self.hub.row_reader.read = counted

    def grow(self, *keys: str, size: int = 30_000) -> None:
        """Give each key a state of so many bytes, and a delta of as many."""

        def swell(state: Total) -> Any:
            state.amounts = [10**9] * (size // 11)
            return {"blob": "x" * size}

        for receipt in [self.system.bus.dispatch(Added(key, 1, swell)) for key in keys]:
            receipt.result(DEADLINE)

    def client(self, path: str = "/ws/projection") -> RawClient:
        """Connect, with a window of four kilobytes."""
        sock = socket.socket()
        self._stack.callback(sock.close)
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.connect(("127.0.0.1", self._port))
        sock.settimeout(DEADLINE)
        sock.sendall(handshake(path))
        assert " 101 " in head_of(sock)
        wait_until(lambda: len(self.hub.connections) > 0)
        [theirs] = self.hub.connections
        theirs._sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        return RawClient(sock)

    def fill(self, *keys: str) -> None:
        """Send deltas until nothing more fits."""
        for _ in range(200):
            if self.hub.stats()["slow"]:
                return
            self.grow(*keys)
        pytest.fail("the client takes it all")


@pytest.fixture
def large(make_app: Callable[..., Flask]) -> Iterator[Large]:
    app = make_app(KEYFOLD_TUNING={"outbox_bytes": 20_000})
    with serve(app) as site, ExitStack() as stack:
        yield Large(app, site.port, stack)


def say(**message: Any) -> bytes:
    return client_frame(TEXT, json.dumps(message).encode())


def messages(client: RawClient) -> Iterator[dict[str, Any]]:
    while True:
        opcode, payload = client.frame()
        if opcode == TEXT:
            yield json.loads(payload)


def test_a_slow_client_that_is_closed_leaves_no_subscription(large: Large) -> None:
    """The rows of its lost frames are not requested when it takes the close."""
    large.grow("a")
    client = large.client("/ws/projection/test.totals/a")
    large.fill("a")
    [theirs] = large.hub.connections
    assert large.hub.drop(theirs.number)
    assert client.close_code() == 1001
    client.close()
    wait_until(lambda: large.hub.stats()["open"] == 0)
    assert large.hub.stats()["subscriptions"] == 0
    channel = large.hub.channels.find("test.totals", "a")
    assert channel is None or not channel.is_watched


def test_a_row_is_read_once_for_each_snapshot_that_is_taken(large: Large) -> None:
    """A hundred large states over a slow socket: about a hundred reads. All at once were five thousand."""
    keys = [f"k{number}" for number in range(100)]
    large.grow(*keys)
    client = large.client()
    client.send(*[say(type="subscribe", channel=CHANNEL + key) for key in keys])
    seen: Counter[str] = Counter()
    for message in messages(client):
        if message["type"] == "snapshot":
            seen[message["channel"]] += 1
            if len(seen) == len(keys):
                break
    assert large.reads.total() <= 100 + AT_ONCE
    assert seen.total() == 100


def test_asking_again_and_again_reads_nothing_more(large: Large) -> None:
    """A resync of all keys with a snapshot that waits already is one of each."""
    keys = [f"k{number}" for number in range(10)]
    large.grow(*keys)
    client = large.client()
    client.send(*[say(type="subscribe", channel=CHANNEL + key) for key in keys])
    wait_until(lambda: any(one.waiting_bytes for one in large.hub.connections))
    for _ in range(8):
        client.send(say(type="resync"))
    client.send(say(type="ping"))
    seen: Counter[str] = Counter()
    for message in messages(client):
        if message["type"] == "snapshot":
            seen[message["channel"]] += 1
            if len(seen) == len(keys):
                break
    assert large.reads.total() <= 2 * seen.total() + AT_ONCE


def test_the_one_who_waits_longest_is_served_first(large: Large) -> None:
    """Channels that go on changing do not push out those that lost something before."""
    keys = [f"k{number}" for number in range(5)]
    large.grow(*keys)
    client = large.client()
    client.send(*[say(type="subscribe", channel=CHANNEL + key) for key in keys])
    seen: Counter[str] = Counter()
    for message in messages(client):
        if message["type"] == "snapshot":
            seen[message["channel"]] += 1
            large.grow(*keys)
            if seen.total() == 40:
                break
    assert min(seen[CHANNEL + key] for key in keys) >= 4


def test_a_row_that_does_not_come_holds_up_no_other(large: Large, monkeypatch: pytest.MonkeyPatch) -> None:
    """One row is locked: the others of the same socket are read after a while."""
    monkeypatch.setattr(connection, "_READ_SECONDS", 0.05, raising=False)
    monkeypatch.setattr(connection, "_MOST_READS", 1, raising=False)
    large.grow("locked", "free")
    parking, read = Parking(), large.system.store.row

    def row(name: str, key: str) -> Any:
        if key == "locked":
            parking.park()
        return read(name, key)

    monkeypatch.setattr(large.system.store, "row", row)
    client = large.client()
    client.send(*[say(type="subscribe", channel=CHANNEL + key) for key in ("locked", "free")])
    coming = (message for message in messages(client) if message["type"] == "snapshot")
    assert next(coming)["channel"] == CHANNEL + "free"
    parking.release()
    assert next(coming)["channel"] == CHANNEL + "locked"


def test_a_channel_that_was_forgotten_meanwhile_is_found_again(large: Large) -> None:
    """While all its subscriptions wait for their rows it is empty, and a sweep may remove it."""
    large.grow("a")
    client = large.client("/ws/projection/test.totals/a")
    large.fill("a")

    def sweep() -> None:
        channel = large.hub.channels.find("test.totals", "a")
        if channel is not None and channel.recent_deltas is not None:
            channel.recent_deltas.clear()  # as after ring_seconds
        large.hub.channels.sweep()

    large.hub.reactor.call(sweep)
    wait_until(lambda: large.hub.channels.find("test.totals", "a") is None)
    coming = messages(client)
    assert next(message for message in coming if message.get("reason") == "slow")
    large.system.bus.dispatch(Added("a", 7)).result(DEADLINE)
    assert next(coming)["type"] == "delta"


def test_answers_do_not_wait_behind_what_channels_sent(large: Large) -> None:
    """Nor do they take the place of a channel's frames."""
    large.grow("big", size=15_000)
    client = large.client()
    client.send(say(type="subscribe", channel=CHANNEL + "small"))
    coming = messages(client)
    assert [next(coming)["type"] for _ in range(2)] == ["subscribed", "snapshot"]
    client.send(say(type="subscribe", channel=CHANNEL + "big"))
    wait_until(lambda: any(one.waiting_bytes for one in large.hub.connections))
    large.grow("small", size=100)
    client.send(*[say(type="ping")] * 100)
    [theirs] = large.hub.connections
    answers = 100 * len(text_frame(PONG))
    wait_until(lambda: theirs._send_buffer is not None and theirs._send_buffer._answer_bytes == answers)
    large.grow("small", size=100)
    kinds = [next(coming)["type"] for _ in range(104)]
    assert kinds == ["subscribed", "snapshot", *["pong"] * 100, "delta", "delta"]
    assert large.hub.stats()["slow"] == 0


# -- slow, and steady


@pytest.fixture
def lane() -> Iterator[tuple[Hub, WebSocketConnection, RawClient]]:
    """A connection without HTTP, over a pipe that becomes writable only after most of it is taken."""
    hub = Hub(WebSettings(), ProjectionSystem("sqlite://", tuning={"report_seconds": 0}))
    ours, theirs = socket.socketpair()
    theirs.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 100_000)
    identity = ClientIdentity("test", None, lambda _name, _key, _ticket: None)
    slot = ConnectionLimits(hub.settings).enter("test", None)
    slow = WebSocketConnection(theirs, hub, identity, slot, many=True)
    yield hub, slow, RawClient(ours)
    ours.close()
    hub.close()


def test_one_who_takes_anything_is_not_stalled(
    lane: tuple[Hub, WebSocketConnection, RawClient], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whether the socket has become writable by it or not."""
    hub, slow, client = lane
    checks: list[Callable[[], None]] = []

    def note(_seconds: float, function: Callable[..., None], *given: Any) -> None:
        if function == slow._check_progress:
            checks.append(lambda: function(*given))

    monkeypatch.setattr(hub.reactor, "call_later", note)
    hub.adopt(slow)
    for _ in range(100):
        hub.reactor.call(slow.push, b"x" * 2000)
    wait_until(lambda: bool(checks))
    client.sock.settimeout(DEADLINE)
    for slot in range(5):
        client.sock.recv(2000)
        hub.reactor.call(checks[slot])
        wait_until(lambda slot=slot: len(checks) == slot + 2 or not slow.is_open)  # type: ignore[misc]
        assert slow.is_open
    hub.reactor.call(checks[-1])
    wait_until(lambda: not slow.is_open)
    assert hub.counts["stalled"] == 1


def test_the_kernel_asks_for_more_after_a_little() -> None:
    """A slow client need not take a third of 256 KiB first; and an empty buffer takes 64 KiB in one send."""
    with socket.create_server(("127.0.0.1", 0)) as server, socket.socket() as client, ExitStack() as stack:
        client.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        client.connect(server.getsockname())
        client.settimeout(DEADLINE)
        ours = stack.enter_context(server.accept()[0])
        tune(ours)
        ours.setblocking(False)
        for _ in range(10):
            assert ours.send(b"x" * 65_536) == 65_536
            left = 65_536
            while left:
                left -= len(client.recv(left))
        with suppress(BlockingIOError):
            while True:
                ours.send(b"x" * 65_536)
        writable = stack.enter_context(selectors.DefaultSelector())
        writable.register(ours, selectors.EVENT_WRITE)
        taken = 0
        while not writable.select(0):
            taken += len(client.recv(1000))
            assert taken <= 50_000
