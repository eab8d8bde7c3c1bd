"""Resume, many channels, streams, tickets and the limits, over real sockets."""

from __future__ import annotations

import http.client
import json
import socket
import struct
import threading
import time as clock
from collections.abc import Callable, Iterator
from contextlib import closing
from functools import partial
from typing import Any

import pytest
import websocket
from flask import Flask, session
from keyfold.actors import ProjectionSystem
from keyfold.store import Position
from keyfold.web import Keyfold
from keyfold.web import client as client_module
from keyfold.web.access.read import Access
from keyfold.web.client import Refused, Watch
from keyfold.web.live.hub import Hub
from support.counting import Added, Totals
from support.parking import DEADLINE, Parking
from support.raw_client import PING, TEXT, client_frame
from support.serving import Site, Watcher, serve
from websockets.sync.client import ClientConnection, connect
from websockets.utils import accept_key


def dispatch(system: ProjectionSystem, key: str, *amounts: int) -> None:
    """Dispatch and wait for the commit of each."""
    for amount in amounts:
        system.bus.dispatch(Added(key, amount)).result(DEADLINE)


def hub_of(app: Flask) -> Hub:
    """Return the hub of an app."""
    hub: Hub = app.extensions["keyfold"].hub
    return hub


def wait_for(what: Callable[[], bool]) -> None:
    """Return when it is so."""
    until = clock.monotonic() + DEADLINE
    while not what():
        assert clock.monotonic() < until


# -- resume


def test_a_client_that_comes_back_gets_what_it_missed_and_no_snapshot(
    site: Site, system: ProjectionSystem
) -> None:
    """since= the last position: resumed, then each version after it."""
    watcher = site.watch("test.totals", "a")
    watcher.next()
    dispatch(system, "a", 1)
    watcher.next()
    watcher.close()
    dispatch(system, "a", 2, 3)
    assert watcher.position is not None
    epoch, version = watcher.position
    again = site.watch("test.totals", "a", since=f"{epoch}:{version}")
    again.position = watcher.position
    first = again.next()
    assert first == {
        "type": "resumed", "channel": "projection.test.totals.a", "epoch": epoch, "version": 3, "from": 1,
    }  # fmt: skip
    assert [again.next()["version"] for _ in range(2)] == [2, 3]
    again.close()


def test_a_position_of_another_epoch_gets_a_snapshot_that_says_expired(
    site: Site, system: ProjectionSystem
) -> None:
    """As after a rebuild."""
    dispatch(system, "a", 1)
    watcher = site.watch("test.totals", "a", since="another:1")
    frame = watcher.next()
    assert (frame["type"], frame["reason"], frame["version"]) == ("snapshot", "expired", 1)
    watcher.close()


@pytest.mark.parametrize("since", ["x", "1", "a:b", "a:1:2", "a:-1", "a b:1", "a:" + "9" * 30])
def test_a_malformed_position_is_a_400(site: Site, since: str) -> None:
    """Before the upgrade, and for a stream as well."""
    with pytest.raises(websocket.WebSocketBadStatusException, match="400"):
        site.watch("test.totals", "a", since=since)
    status, _, text = site.request("/sse/projection/test.totals/a", **{"Last-Event-ID": since})
    assert status == 400
    assert "a position is" in text


# -- many channels on one socket


def subscribe(watcher: Watcher, channel: str, **more: Any) -> dict[str, Any]:
    """Ask for a channel and return the answer."""
    watcher.send(type="subscribe", channel=channel, **more)
    return watcher.next_of_many()


def test_many_channels_on_one_socket(site: Site, system: ProjectionSystem) -> None:
    """subscribed, then the channel's own snapshot and deltas; after unsubscribed nothing more of it."""
    dispatch(system, "a", 1)
    many = site.watch_many()
    assert subscribe(many, "projection.test.totals.a") == {
        "type": "subscribed", "channel": "projection.test.totals.a",
    }  # fmt: skip
    assert many.next_of_many()["state"]["total"] == 1
    subscribe(many, "projection.test.totals.b.c d/e")
    assert many.next_of_many()["version"] == 0
    dispatch(system, "b.c d/e", 5)
    frame = many.next_of_many()
    assert (frame["channel"], frame["data"]) == ("projection.test.totals.b.c d/e", {"total": 5})
    many.send(type="unsubscribe", channel="projection.test.totals.a")
    assert many.next_of_many() == {"type": "unsubscribed", "channel": "projection.test.totals.a"}
    dispatch(system, "a", 1)
    dispatch(system, "b.c d/e", 5)
    assert many.next_of_many()["channel"] == "projection.test.totals.b.c d/e"
    many.send(type="resync", channel="projection.test.totals.b.c d/e")
    assert many.next_of_many()["reason"] == "resync"
    many.close()


def test_each_channel_resumes_by_itself(site: Site, system: ProjectionSystem) -> None:
    """since is given with each subscribe."""
    first = site.watch("test.totals", "a")
    first.next()
    dispatch(system, "a", 1, 2)
    epoch = first.next()["epoch"]
    many = site.watch_many()
    subscribe(many, "projection.test.totals.a", since=f"{epoch}:1")
    assert many.next_of_many()["from"] == 1
    assert many.next_of_many()["version"] == 2
    many.close()
    first.close()


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"channel": "projection.test.private.a"}, "forbidden"),
        ({"channel": "projection.test.absent.a"}, "unknown_projection"),
        ({"channel": "nonsense"}, "unknown_projection"),
        ({"channel": "x.projection.test.totals.a"}, "unknown_projection"),
        ({}, "unknown_projection"),
        ({"channel": "projection.test.totals."}, "malformed"),
        ({"channel": "projection.test.totals.a\u2028"}, "malformed"),
        ({"channel": "projection.test.totals.a", "since": "x"}, "malformed"),
        ({"channel": 7}, "malformed"),
        ({"projection": "test.absent", "key": "a"}, "unknown_projection"),
        ({"projection": "test.private", "key": "a"}, "forbidden"),
    ],
)
def test_each_channel_is_refused_by_itself(
    site: Site, system: ProjectionSystem, message: dict[str, Any], code: str
) -> None:
    """An error frame that names the channel; the socket and its other channels stay; no actor is made."""
    many = site.watch_many()
    many.send(type="subscribe", **message)
    answer = many.next_of_many()
    assert (answer["type"], answer["code"]) == ("error", code)
    if isinstance(message.get("channel"), str):
        assert answer["channel"] == message["channel"]
    assert subscribe(many, "projection.test.totals.a")["type"] == "subscribed"
    assert system.stats()["started"] is False
    many.close()


def test_a_channel_twice_and_one_that_is_not_watched(site: Site) -> None:
    """Said, and harmless."""
    many = site.watch_many()
    subscribe(many, "projection.test.totals.a")
    many.next_of_many()
    assert subscribe(many, "projection.test.totals.a")["code"] == "subscribed_already"
    many.send(type="unsubscribe", channel="projection.test.totals.z")
    assert many.next_of_many()["code"] == "not_subscribed"
    many.close()


def test_channels_of_one_socket_are_capped(make_app: Callable[..., Flask]) -> None:
    """Promise 9; the refused ones are counted."""
    app = make_app(KEYFOLD_MAX_CHANNELS_PER_SOCKET=3)
    with serve(app) as site:
        many = site.watch_many()
        for key in "abc":
            subscribe(many, f"projection.test.totals.{key}")
            many.next_of_many()
        assert subscribe(many, "projection.test.totals.d")["code"] == "limit"
        many.send(type="unsubscribe", channel="projection.test.totals.a")
        many.next_of_many()
        assert subscribe(many, "projection.test.totals.d")["type"] == "subscribed"
        many.close()
        assert hub_of(app).stats()["refused_channels"] == 1


def test_names_and_keys_with_dots_are_told_apart(sqlite_url: str) -> None:
    """The longest registered name is meant; projection and key given apart leave no doubt."""

    class Longer(Totals):
        name = "test.totals.of"

    keyfold = Keyfold()
    keyfold.register(Totals())
    keyfold.register(Longer())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)
    with app.app_context():
        system = keyfold.system
    hub = hub_of(app)
    assert hub.sources.resolve("projection.test.totals.of.a", None, None) == ("test.totals.of", "a")
    assert hub.sources.resolve("projection.test.totals.off.a", None, None) == ("test.totals", "off.a")
    assert hub.sources.resolve(None, "test.totals", "of.a") == ("test.totals", "of.a")
    with serve(app) as site:
        long, short = site.watch("test.totals.of", "a"), site.watch("test.totals", "of.a")
        assert [long.next()["version"], short.next()["version"]] == [0, 0]
        system.runtime("test.totals").apply_event(Added("of.a", 7))
        assert short.next()["data"] == {"total": 7}
        system.runtime("test.totals.of").apply_event(Added("a", 5))
        assert long.next()["data"] == {"total": 5}
        long.close()
        short.close()
    system.close()


# -- streams


class Events:
    """Reads a text/event-stream."""

    def __init__(self, site: Site, path: str, **headers: str) -> None:
        self.connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        self.connection.request("GET", path, headers=headers)
        self.answer = self.connection.getresponse()
        self.headers = dict(self.answer.headers)

    def next(self) -> tuple[str, str, dict[str, Any]]:
        """Return id, event and data of the next event; comments are passed over."""
        fields: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if not line and "data" in fields:
                return fields["id"], fields["event"], json.loads(fields["data"])
            assert not self.answer.isclosed(), "the stream has ended"
            name, _, value = line.partition(": ")
            if name in ("id", "event", "data"):
                fields[name] = value

    def close(self) -> None:
        """Hang up."""
        self.answer.close()
        self.connection.close()


def test_a_stream_tells_the_same_as_a_socket(site: Site, system: ProjectionSystem) -> None:
    """Snapshot, deltas; ids are positions; Last-Event-ID resumes."""
    with closing(Events(site, "/sse/projection/test.totals/a")) as events:
        assert events.headers["Content-Type"].startswith("text/event-stream")
        assert events.headers["Cache-Control"] == "no-store"
        assert events.next()[:2] == (":0", "snapshot")
        dispatch(system, "a", 1)
        identity, event, frame = events.next()
        assert (event, frame["data"], identity) == ("delta", {"total": 1}, f"{frame['epoch']}:1")
    dispatch(system, "a", 2, 3)
    with closing(Events(site, "/sse/projection/test.totals/a", **{"Last-Event-ID": identity})) as events:
        resumed, *deltas = [events.next() for _ in range(3)]
        assert (resumed[0], resumed[1], resumed[2]["from"]) == (identity, "resumed", 1)
        assert [delta[2]["version"] for delta in deltas] == [2, 3]
        assert deltas[-1][0] == f"{frame['epoch']}:3"


def test_a_state_with_line_breaks_is_still_one_event(site: Site, system: ProjectionSystem) -> None:
    """Somebody else may have written the row, prettily."""
    dispatch(system, "a", 1)
    with system.store.database.connection_context():
        system.store.database.execute_sql("update projection_snapshots set state = '{\n \"total\":\r\n 5}'")
    with closing(Events(site, "/sse/projection/test.totals/a")) as events:
        assert events.next()[2]["state"] == {"total": 5}


def test_a_stream_is_refused_as_a_socket_is_and_takes_a_place(make_app: Callable[..., Flask]) -> None:
    """403, 404, 400, 429; the place is free again when the client has gone. HEAD opens none."""
    app = make_app(KEYFOLD_MAX_SOCKETS=1)
    with serve(app) as site:
        assert site.request("/sse/projection/test.private/a")[0] == 403
        assert site.request("/sse/projection/test.absent/a")[0] == 404
        assert site.request("/sse/projection/test.totals/a", Origin="http://evil.example")[0] == 403
        head = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        head.request("HEAD", "/sse/projection/test.totals/a")
        assert head.getresponse().status == 200
        head.close()
        with closing(Events(site, "/sse/projection/test.totals/a")) as events:
            events.next()
            assert site.request("/sse/projection/test.totals/a")[0] == 429
        wait_for(lambda: hub_of(app).stats()["closed"] == 1)
        with closing(Events(site, "/sse/projection/test.totals/a")) as events:
            assert events.next()[1] == "snapshot"


def test_a_stream_carries_the_headers_that_the_app_adds(app: Flask, system: ProjectionSystem) -> None:
    """after_request runs before the connection changes hands."""

    @app.after_request
    def mark(response: Any) -> Any:
        response.headers["X-Mark"] = "1"
        return response

    with serve(app) as site, closing(Events(site, "/sse/projection/test.totals/a")) as events:
        assert events.headers["X-Mark"] == "1"
    system.close()


@pytest.mark.parametrize("path", ["/sse/projection/test.totals/a", "/projection/test.totals/a"])
def test_pages_of_allowed_origins_may_read(make_app: Callable[..., Flask], path: str) -> None:
    """A browser hands them nothing without these headers; others get none."""
    app = make_app(KEYFOLD_ALLOWED_ORIGINS=["https://friend.example"])
    with serve(app) as site:
        dispatch(app.extensions["keyfold"].system, "a", 1)
        for origin, allowed in (("https://friend.example", True), ("https://evil.example", False)):
            connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
            connection.request("GET", path, headers={"Origin": origin})
            headers = connection.getresponse().headers
            assert headers["Access-Control-Allow-Origin"] == (origin if allowed else None)
            assert headers["Access-Control-Allow-Credentials"] == ("true" if allowed else None)
            assert "Origin" in headers["Vary"]
            connection.close()


# -- tickets, users, asking again


@pytest.fixture
def guarded(sqlite_url: str) -> Iterator[tuple[Flask, Keyfold, dict[str, bool]]]:
    """An app with a projection that asks for the signed-in user; ``allowed`` lists the keys of users."""
    allowed = {"kim": True}
    keyfold = Keyfold(
        authorize=lambda _request, _name, _key: allowed.get(session.get("user", ""), False),
        identify=lambda _request: session.get("user"),
    )

    class Guarded(Totals):
        public = False

    keyfold.register(Guarded())
    app = Flask("test")
    app.secret_key = "test"
    app.config.update(
        KEYFOLD_DATABASE=sqlite_url, KEYFOLD_REAUTHORIZE_SECONDS=0.05, KEYFOLD_MAX_SOCKETS_PER_USER=2
    )

    @app.get("/in/<user>")
    def sign_in(user: str) -> str:
        session["user"] = user
        return user

    keyfold.init_app(app)
    yield app, keyfold, allowed
    with app.app_context():
        keyfold.system.close()


def cookie_of(site: Site, user: str) -> str:
    """Sign in and return the cookie."""
    _, headers, _ = site.request(f"/in/{user}")
    return headers["Set-Cookie"].split(";")[0]


def test_a_ticket_opens_one_key_once(guarded: Any) -> None:
    """Signed for a key and a user; a second use, another key, a forged one and none are 401 or 403."""
    app, keyfold, _ = guarded
    with serve(app) as site, app.app_context():
        ticket = keyfold.ticket("test.totals", "a", "kim")
        for key, given, status in (("a", "forged", 401), ("a", None, 403), ("b", ticket, 401)):
            with pytest.raises(websocket.WebSocketBadStatusException, match=str(status)):
                site.watch("test.totals", key, ticket=given)
        watcher = site.watch("test.totals", "a", ticket=ticket)
        assert watcher.next()["type"] == "snapshot"
        with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
            site.watch("test.totals", "a", ticket=ticket)
        assert watcher.close_code() == 4401  # it can't be asked for again
        watcher.close()
        many = site.watch_many()
        ticket = keyfold.ticket("test.totals", "a", "kim")
        assert subscribe(many, "projection.test.totals.a", ticket=ticket)["type"] == "subscribed"
        many.next_of_many()
        assert subscribe(many, "projection.test.totals.b", ticket=ticket)["code"] == "forbidden"
        many.close()


def test_a_ticket_is_for_thirty_seconds_and_needs_a_secret(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Too old is too old by the signature's own time."""
    app = make_app()
    access: Access = app.extensions["keyfold"].access
    with pytest.raises(RuntimeError, match="secret_key"):
        access.ticket(app, "test.totals", "a", None)
    app.secret_key = "test"
    ticket = access.ticket(app, "test.totals", "a", None)
    with serve(app) as site:
        now = clock.time()
        monkeypatch.setattr(clock, "time", lambda: now + 32)
        with pytest.raises(websocket.WebSocketBadStatusException, match="401"):
            site.watch("test.totals", "a", ticket=ticket)


def test_who_may_no_longer_is_closed(guarded: Any) -> None:
    """Asked again while the socket is open: 4403; of many channels, the channel ends and the socket stays."""
    app, _, allowed = guarded
    with serve(app) as site:
        cookie = cookie_of(site, "kim")
        watcher = site.watch("test.totals", "a", cookie=cookie)
        watcher.next()
        many = site.watch_many(cookie=cookie)
        assert subscribe(many, "projection.test.totals.a")["type"] == "subscribed"
        many.next_of_many()
        allowed["kim"] = False
        assert watcher.close_code() == 4403
        assert many.next_of_many()["code"] == "forbidden"
        many.send(type="ping")
        assert many.next_of_many() == {"type": "pong"}
        watcher.close()
        many.close()


def test_a_stream_of_one_who_may_no_longer_ends(guarded: Any) -> None:
    """And coming back is refused."""
    app, _, allowed = guarded
    with serve(app) as site:
        cookie = cookie_of(site, "kim")
        with closing(Events(site, "/sse/projection/test.totals/a", Cookie=cookie)) as events:
            events.next()
            allowed["kim"] = False
            while events.answer.readline():
                pass
        assert site.request("/sse/projection/test.totals/a", Cookie=cookie)[0] == 403


def test_a_user_s_connections_are_capped_and_can_be_ended(guarded: Any) -> None:
    """429 for the third; disconnect closes all of this user and nobody else's."""
    app, keyfold, allowed = guarded
    allowed["lee"] = True
    with serve(app) as site, app.app_context():
        kim, lee = cookie_of(site, "kim"), cookie_of(site, "lee")
        watchers = [site.watch("test.totals", "a", cookie=kim) for _ in range(2)]
        other = site.watch("test.totals", "a", cookie=lee)
        for watcher in (*watchers, other):
            watcher.next()
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            site.watch("test.totals", "a", cookie=kim)
        assert keyfold.disconnect(user="kim") == 2
        assert [watcher.close_code() for watcher in watchers] == [4401, 4401]
        other.send(type="ping")
        assert other.next() == {"type": "pong"}
        for watcher in (*watchers, other):
            watcher.close()


def test_a_slow_authorize_holds_up_no_socket(make_app: Callable[..., Flask]) -> None:
    """It runs on threads of its own, never on the reactor's."""
    parking = Parking()

    def authorize(_request: Any, _name: str, key: str) -> bool:
        if key == "slow":
            parking.park()
        return True

    app = make_app(authorize=authorize)
    with serve(app) as site:
        many = site.watch_many()
        many.send(type="subscribe", channel="projection.test.private.slow")
        parking.wait_for_arrival()
        assert subscribe(many, "projection.test.private.quick")["channel"] == "projection.test.private.quick"
        parking.release()
        many.close()


# -- clients that misbehave


def test_too_many_frames_a_second_close_4429(site: Site, app: Flask, system: ProjectionSystem) -> None:
    """A thousand at once; a neighbour notices nothing."""
    neighbour = site.watch("test.totals", "a")
    neighbour.next()
    flood = site.watch("test.totals", "a")
    flood.next()
    flood.raw.sendall(client_frame(PING, b"x") * 1000)
    assert flood.close_code() == 4429
    dispatch(system, "a", 1)
    assert neighbour.next()["version"] == 1
    assert hub_of(app).stats()["flooding"] == 1
    flood.close()
    neighbour.close()


def test_a_frame_of_a_megabyte_and_empty_fragments_without_end_close_1009(site: Site, app: Flask) -> None:
    """By the length that came so far, long before it is all there."""
    big = site.watch("test.totals", "a")
    big.next()
    big.raw.sendall(client_frame(TEXT, b"x" * 40_000, length=1_000_000))
    assert big.close_code() == 1009
    endless = site.watch("test.totals", "a")
    endless.next()
    endless.raw.sendall(client_frame(TEXT, b"", final=False) + client_frame(0, b"", final=False) * 4096)
    assert endless.close_code() == 1009
    assert hub_of(app).stats()["garbage"] == 2
    big.close()
    endless.close()


def test_a_connection_that_breaks_off_leaves_nothing_behind(site: Site, app: Flask) -> None:
    """No goodbye, a reset: its place, its subscription and its descriptor are free again."""
    hub = hub_of(app)
    watcher = site.watch("test.totals", "a")
    watcher.next()
    assert hub.stats()["subscriptions"] == 1
    watcher.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
    watcher.raw.close()
    wait_for(lambda: hub.stats()["closed"] == 1)
    facts = hub.stats()
    assert (facts["open"], facts["subscriptions"], facts["buffering"]) == (0, 0, 0)
    wait_for(lambda: hub.connection_limits._open == 0)


def test_a_client_that_answers_no_ping_is_closed_4102(make_app: Callable[..., Flask]) -> None:
    """It takes frames, and says nothing for silence_seconds."""
    app = make_app(KEYFOLD_TUNING={"ping_seconds": 0.05, "silence_seconds": 0.2})
    with serve(app) as site:
        mute = site.watch("test.totals", "a")
        mute.next()
        while True:
            head = mute.raw.recv(2)
            payload = mute.raw.recv(head[1])
            if head[0] & 0x0F == 8:
                break
        assert int.from_bytes(payload[:2], "big") == 4102
        assert hub_of(app).stats()["silent"] == 1
        mute.close()


@pytest.mark.parametrize(
    "headers",
    [
        {"Sec-WebSocket-Version": "12", "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
        {"Sec-WebSocket-Version": "13"},
        {"Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ=="},
    ],
)
def test_a_bad_handshake_is_a_400_and_keeps_no_place(app: Flask, site: Site, headers: dict[str, str]) -> None:
    """Not an error of the server."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
    upgrade = {"Connection": "Upgrade", "Upgrade": "websocket"}
    connection.request("GET", "/ws/projection/test.totals/a", headers=upgrade | headers)
    answer = connection.getresponse()
    assert (answer.status, json.loads(answer.read())["error"]["code"]) == (400, "bad_request")
    connection.close()
    assert hub_of(app).connection_limits._open == 0


def test_compression_is_offered_and_not_taken(site: Site) -> None:
    """One frame is built for everyone; a client that was promised deflate would send it."""
    connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
    headers = {
        "Connection": "Upgrade", "Upgrade": "websocket", "Sec-WebSocket-Version": "13",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Extensions": "permessage-deflate; client_max_window_bits",
    }  # fmt: skip
    connection.request("GET", "/ws/projection/test.totals/a", headers=headers)
    answer = connection.getresponse()
    assert answer.status == 101
    assert answer.headers["Sec-WebSocket-Accept"] == "s3pPLMBiTxaQ9kYGzzhZRbK+xOo="
    assert answer.headers["Sec-WebSocket-Extensions"] is None
    connection.close()


def test_a_slow_handshake_and_a_half_open_one_hold_up_nobody(site: Site, system: ProjectionSystem) -> None:
    """Byte by byte, or never finished: others come and go beside them."""
    request = (
        b"GET /ws/projection/test.totals/a HTTP/1.1\r\nHost: x\r\nUpgrade: websocket\r\n"
        b"Connection: Upgrade\r\n"
        b"Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
    )
    slow = [socket.create_connection(("127.0.0.1", site.port), DEADLINE) for _ in range(5)]
    dispatch(system, "a", 1)
    for slot in range(len(request)):
        for connection in slow[:4]:
            connection.sendall(request[slot : slot + 1])
        if slot % 40 == 0:
            watcher = site.watch("test.totals", "a")
            assert watcher.next()["version"] == 1
            watcher.close()
    for connection in slow[:4]:
        assert connection.recv(12) == b"HTTP/1.1 101"
    for connection in slow:
        connection.close()


# -- the Python client


@pytest.fixture
def hurried(monkeypatch: pytest.MonkeyPatch) -> None:
    """Short pauses between the client's connections."""
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_SECONDS", 0.001)


@pytest.mark.usefixtures("hurried")
def test_the_client_watches_and_resumes(site: Site, app: Flask, system: ProjectionSystem) -> None:
    """A snapshot, each delta; after the server has hung up it goes on without a snapshot."""
    with Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a") as watch:
        change = watch.next(DEADLINE)
        assert change is not None
        assert (change.is_snapshot, change.value, change.position) == (True, None, Position("", 0))
        dispatch(system, "a", 1)
        change = watch.next(DEADLINE)
        assert change is not None
        assert (change.is_snapshot, change.value) == (False, {"total": 1})
        hub = hub_of(app)
        [connection] = hub.connections
        hub.reactor.call(connection.end)
        dispatch(system, "a", 2)
        change = watch.next(DEADLINE)
        assert change is not None
        assert (change.is_snapshot, change.value) == (False, {"total": 3})
        assert watch.next(0.01) is None
    assert watch.next() is None


def test_the_client_pauses_before_each_connection_but_the_first(
    site: Site, app: Flask, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A frame is no proof that a connection is good: while none of them lasts, the pauses grow."""
    monkeypatch.setattr("keyfold.web.client.random.random", lambda: 0.001)
    hub = hub_of(app)
    with Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a") as watch:
        for _ in range(3):
            assert watch.next(DEADLINE) is not None
            [connection] = hub.connections
            hub.reactor.call(connection.end)
            dispatch(system, "a", 1)
        assert watch.next(DEADLINE) is not None
        assert watch._attempt == 3
        monkeypatch.setattr(client_module, "monotonic", lambda: clock.monotonic() + 60)
        [connection] = hub.connections
        hub.reactor.call(connection.end)
        dispatch(system, "a", 1)
        assert watch.next(DEADLINE) is not None
        assert watch._attempt == 1
        watch._attempt = 5_000  # as after a day without a server
        watch._pause()


def test_the_client_asks_once_for_the_snapshot_that_it_needs(
    site: Site, app: Flask, system: ProjectionSystem
) -> None:
    """A gap in front of many deltas makes no flood of questions."""
    dispatch(system, "a", 1)
    hub = hub_of(app)
    with Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a") as watch:
        assert watch.next(DEADLINE) is not None
        [connection] = hub.connections
        epoch = watch.position.epoch if watch.position else ""
        frames = [
            json.dumps({"type": "delta", "epoch": epoch, "prev": number, "version": number + 1, "data": 0})
            for number in range(7, 207)
        ]
        for frame in frames:
            hub.reactor.call(connection.send_message, frame.encode())  # type: ignore[attr-defined]
        change = watch.next(DEADLINE)
        assert change is not None
        assert (change.is_snapshot, change.position.version) == (True, 1)
        dispatch(system, "a", 1)
        change = watch.next(DEADLINE)
        assert change is not None
        assert (change.is_snapshot, change.position.version) == (False, 2)
        stats = hub.stats()
        assert (stats["flooding"], stats["projections"]["test.totals"]["resyncs"]) == (0, 1)


@pytest.mark.usefixtures("hurried")
def test_the_client_comes_through_a_ticket_office_that_is_away(site: Site, app: Flask) -> None:
    """An OSError is a connection that failed; another error is the caller's own, and it may go on."""
    app.secret_key = "test"
    errors: list[Exception] = [ConnectionRefusedError("away"), KeyError("token")]

    def ticket() -> str:
        if errors:
            raise errors.pop(0)
        return "no ticket"

    with Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a", ticket=ticket) as watch:
        with pytest.raises(KeyError):
            watch.next(DEADLINE)
        with pytest.raises(Refused):
            watch.next(DEADLINE)


def test_a_client_that_is_closed_while_it_connects_stays_closed(site: Site, app: Flask) -> None:
    """No change, and no connection."""
    watch: Watch

    def ticket() -> str:
        watch.close()
        access: Access = app.extensions["keyfold"].access
        return access.ticket(app, "test.totals", "a", "kim")

    app.secret_key = "test"
    watch = Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a", ticket=ticket)
    assert watch.next(DEADLINE) is None
    hub = hub_of(app)
    wait_for(lambda: hub.counts["closed"] == hub.counts["opened"] == 1)


def test_the_client_comes_back_soon_with_the_next_ticket_when_a_right_has_ended(
    site: Site, app: Flask, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A right that ends in its time is no failure, so the pauses don't grow. One that ends at once is."""
    hub, later, tickets = hub_of(app), 0.0, list[str]()
    access: Access = app.extensions["keyfold"].access
    app.secret_key = "test"
    monkeypatch.setattr("keyfold.web.client.random.random", lambda: 0.001)
    monkeypatch.setattr(client_module, "monotonic", lambda: clock.monotonic() + later)

    def ticket() -> str:
        tickets.append(access.ticket(app, "test.private", "a", "kim"))
        return tickets[-1]

    with Watch(f"http://127.0.0.1:{site.port}", "test.private", "a", ticket=ticket) as watch:
        assert watch.next(DEADLINE) is not None
        for attempt, lives in enumerate([10.0, 10.0, 10.0, 0.0, 0.0], start=-2):
            later += lives
            assert hub.disconnect("kim") == 1
            while len(tickets) < attempt + 4 or watch._client is None:
                assert watch.next(0.5) is None  # time enough for a handshake
            assert watch._attempt == max(0, attempt)
    assert len(tickets) == 6


def test_the_client_waits_for_as_long_as_the_server_answers_its_pings(
    site: Site, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """However rare the heartbeats are: the wait for a frame has no end of its own."""
    waits: list[float | None] = []
    recv = ClientConnection.recv

    def recording(connection: ClientConnection, timeout: float | None = None) -> str | bytes:
        waits.append(timeout)
        return recv(connection, timeout)

    monkeypatch.setattr(ClientConnection, "recv", recording)
    with Watch(f"http://127.0.0.1:{site.port}", "test.totals", "a") as watch:
        assert watch.next() is not None
        dispatch(system, "a", 1)
        assert watch.next() is not None
    assert waits == [None, None]


@pytest.mark.usefixtures("hurried")
def test_the_client_leaves_a_server_that_answers_no_pings(monkeypatch: pytest.MonkeyPatch) -> None:
    """It takes the connection, and nothing more."""
    brief = partial(connect, ping_interval=0.01, ping_timeout=0.01, close_timeout=0.01)
    monkeypatch.setattr(client_module, "connect", brief)
    with socket.create_server(("127.0.0.1", 0)) as server:
        server.settimeout(DEADLINE)
        watch = Watch(f"http://127.0.0.1:{server.getsockname()[1]}", "test.totals", "a")
        waiting = threading.Thread(target=watch.next)
        waiting.start()
        for _ in range(2):
            mute, _ = server.accept()
            with mute, mute.makefile("rb") as request:
                head = dict(
                    line.strip().split(b": ", 1) for line in iter(request.readline, b"\r\n") if b": " in line
                )
                accept = accept_key(head[b"Sec-WebSocket-Key"].decode())
                mute.sendall(
                    b"HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
                    b"Sec-WebSocket-Accept: " + accept.encode() + b"\r\n\r\n"
                )
                while request.read(1):  # until it hangs up
                    pass
        watch.close()
    waiting.join(DEADLINE)
    assert not waiting.is_alive()


def test_the_client_says_when_it_is_refused(site: Site) -> None:
    """It would be in vain to try again."""
    with (
        Watch(f"http://127.0.0.1:{site.port}", "test.private", "a") as watch,
        pytest.raises(Refused, match="may not read") as caught,
    ):
        next(iter(watch))
    assert caught.value.status == 403
