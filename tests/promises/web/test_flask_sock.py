"""Flask-Sock: an app's own handler gives its socket to the hub; the app's options hold for all sockets."""

from __future__ import annotations

import contextlib
import json
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from enum import Enum
from functools import partial
from typing import Any

import pytest
import websocket
from flask import Flask, copy_current_request_context, request
from flask_sock import Sock
from keyfold import Keyfold, Projection
from keyfold.web import ConfigError, socket_takeover
from simple_websocket import ConnectionClosed, Server
from support.counting import Added, Totals
from support.fixtures_of_web import Private
from support.parking import DEADLINE, wait_until
from support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, client_frame, handshake, head_of
from support.serving import Site, Watcher, serve
from websockets.sync.client import connect

NAME = "test.totals"


def route_of(sock: Any, path: str) -> Callable[[Callable[..., None]], None]:
    """Return Flask-Sock's decorator, which has no types."""
    decorator: Callable[[Callable[..., None]], None] = sock.route(path)
    return decorator


class Place(str, Enum):  # noqa: UP042  # a StrEnum is formatted as its text
    """Names and keys that an app may have as an enumeration."""

    TOTALS = NAME
    HERE = "a"


class Shop:
    """An app with handlers of its own."""

    def __init__(self, database: str, **config: Any) -> None:
        self.sock = Sock()
        self.keyfold = Keyfold(
            sock=self.sock,
            authorize=lambda request, _name, _key: request.cookies.get("user") == "kim",
            identify=lambda request: request.cookies.get("user"),
        )
        projections: list[Projection[Any, Any]] = [Totals(), Private()]
        for projection in projections:
            self.keyfold.register(projection)
        self.app = Flask("shop")
        self.app.secret_key = "s" * 30
        self.app.config.update({"KEYFOLD_DATABASE": database, **config})
        self.caught: list[BaseException] = []
        self.received: list[str | bytes] = []
        self.served, self.gate = threading.Event(), threading.Event()
        self.elsewhere: list[Any] = []
        self.add_routes()
        self.sock.init_app(self.app)
        self.keyfold.init_app(self.app)

    def add_routes(self) -> None:
        keyfold = self.keyfold
        route = partial(route_of, self.sock)

        @route("/own/<name>/<path:key>")
        def own(ws: Any, name: str, key: str) -> None:
            keyfold.serve(ws, name, key)

        @route("/enumerated")
        def enumerated(ws: Any) -> None:
            if "many" in request.args:
                keyfold.serve(ws, (Place.TOTALS, Place.HERE))
            else:
                keyfold.serve(ws, Place.TOTALS, Place.HERE)

        @route("/several")
        def several(ws: Any) -> None:
            keyfold.serve(ws, *[(NAME, key) for key in request.args.getlist("key")])

        @route("/hello")
        def hello(ws: Any) -> None:
            ws.send(f"hello {ws.receive()}")
            try:
                keyfold.serve(ws, NAME, "a")
                ws.send("never")
            except ConnectionClosed as error:
                self.caught.append(error)

        @route("/echo")
        def echo(ws: Any) -> None:
            while True:
                ws.send(ws.receive())

        @route("/fails")
        def fails(ws: Any) -> None:
            keyfold.serve(ws, NAME, "a")
            raise LookupError

        @route("/late")
        def late(ws: Any) -> None:
            wait_until(lambda: bool(ws.input_buffer))
            keyfold.serve(ws, (NAME, "a"))
            self.served.set()
            self.gate.wait(DEADLINE)

        @route("/two-threads")
        def two_threads(ws: Any) -> None:
            def receive() -> None:
                try:
                    while True:
                        self.received.append(ws.receive())
                except ConnectionClosed as error:
                    self.caught.append(error)

            thread = threading.Thread(target=receive)
            thread.start()
            wait_until(lambda: bool(self.received))
            keyfold.serve(ws, NAME, "a")
            thread.join(DEADLINE)

        @route("/elsewhere")
        def elsewhere(ws: Any) -> None:
            @copy_current_request_context
            def with_context() -> None:
                serve_and_note()

            def serve_and_note() -> None:
                with pytest.raises(RuntimeError, match="of the current request, on the thread"):
                    keyfold.serve(ws, NAME, "a")
                self.served.set()

            for target in (serve_and_note, with_context):
                self.served.clear()
                thread = threading.Thread(target=target)
                thread.start()
                thread.join(DEADLINE)
                ws.send(str(self.served.is_set()))
            self.elsewhere.append(ws)
            self.gate.wait(DEADLINE)
            keyfold.serve(ws, NAME, "a")

        @self.app.post("/promote")
        def promote() -> str:
            with pytest.raises(RuntimeError, match="of the current request, on the thread"):
                keyfold.serve(self.elsewhere[0], NAME, "a")
            return "refused"

        @route("/wrong")
        def wrong(ws: Any) -> None:
            wrong: list[tuple[Any, ...]] = [(NAME,), (NAME, 1), ((NAME, "a"), NAME), ((NAME, "a", "b"),)]
            for arguments in [*wrong, ([NAME, "a"],)]:
                try:
                    keyfold.serve(ws, *arguments)
                except TypeError as error:
                    self.caught.append(error)
            ws.send("still open")

    @property
    def hub(self) -> Any:
        return self.app.extensions["keyfold"].hub

    @property
    def open_slots(self) -> int:
        count: int = self.hub.connection_limits._open
        return count

    def add(self, key: str, by: int = 1) -> int:
        with self.app.app_context():
            return self.keyfold.bus.dispatch(Added(key, by)).result(DEADLINE)[0].version


@pytest.fixture
def make_shop(sqlite_url: str) -> Iterator[Callable[..., tuple[Shop, Site]]]:
    """Serve a shop until the end of the test."""
    with contextlib.ExitStack() as stack:

        def make(**config: Any) -> tuple[Shop, Site]:
            shop = Shop(sqlite_url, **config)
            site = stack.enter_context(serve(shop.app))
            stack.callback(shop.keyfold.system.close)
            return shop, site

        yield make


@pytest.fixture(params=[True, False], ids=["taken over", "carried"])
def served(
    request: pytest.FixtureRequest,
    monkeypatch: pytest.MonkeyPatch,
    make_shop: Callable[..., tuple[Shop, Site]],
) -> tuple[Shop, Site]:
    """A shop with default settings, in both ways of serving a socket."""
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: request.param)
    return make_shop()


def watch(site: Site, path: str, **options: Any) -> Watcher:
    return site._open(path, options)


# -- handing over


def test_a_handler_gives_its_socket_to_the_hub(served: tuple[Shop, Site]) -> None:
    """It is a socket of one key from then on: snapshot, deltas, resync, resume; it counts as any other."""
    shop, site = served
    assert shop.add("a/b", 3) == 1
    watcher = watch(site, f"/own/{NAME}/a/b")
    assert watcher.next()["state"]["total"] == 3
    assert shop.add("a/b") == watcher.next()["version"] == 2
    watcher.send(type="resync")
    assert watcher.next()["reason"] == "resync"
    watcher.send(type="subscribe", channel=f"projection.{NAME}.b")
    assert watcher.next()["code"] == "unknown_type"
    assert watcher.position is not None
    since = "{}:{}".format(*watcher.position)
    assert (shop.open_slots, shop.hub.stats()["open"]) == (1, 1)
    watcher.close()
    wait_until(lambda: shop.open_slots == 0)
    assert shop.add("a/b") == 3
    again = watch(site, f"/own/{NAME}/a/b?since={since}")
    again.position = watcher.position
    assert [again.next()["type"], again.next()["version"]] == ["resumed", 3]
    again.close()


def threads_of_sockets(others: set[threading.Thread]) -> list[str]:
    """Return the names of the threads of requests, and of sockets' readers: all but Keyfold's and others."""
    names = [thread.name for thread in threading.enumerate() if thread not in others]
    return [name for name in names if not name.startswith(("keyfold", "Snapshot", "serve"))]


def test_no_thread_stays_with_a_socket_that_is_taken_over(
    make_shop: Callable[..., tuple[Shop, Site]],
) -> None:
    """Neither the request's nor the one that read for the handler."""
    others = set(threading.enumerate())
    shop, site = make_shop()
    first = watch(site, f"/own/{NAME}/a")
    first.next()
    wait_until(lambda: threads_of_sockets(others) == [])
    watchers = [watch(site, f"/own/{NAME}/a") for _ in range(10)]
    for watcher in watchers:
        watcher.next()
    wait_until(lambda: threads_of_sockets(others) == [])
    assert shop.add("a") == 1
    for watcher in (first, *watchers):
        assert watcher.next()["version"] == 1
        watcher.close()


def test_several_keys_and_none(served: tuple[Shop, Site]) -> None:
    """Subscribed at once, each once; the client may add and remove others."""
    shop, site = served
    watcher = watch(site, "/several?key=a&key=b&key=a")
    assert sorted(watcher.next_of_many()["type"] for _ in range(4)) == ["snapshot"] * 2 + ["subscribed"] * 2
    watcher.send(type="subscribe", channel=f"projection.{NAME}.c")
    assert [watcher.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
    watcher.send(type="unsubscribe", channel=f"projection.{NAME}.a")
    assert watcher.next_of_many()["type"] == "unsubscribed"
    shop.add("a")
    for key in "bc":
        shop.add(key)
        assert watcher.next_of_many()["channel"] == f"projection.{NAME}.{key}"
    watcher.close()
    none = watch(site, "/several")
    none.send(type="ping")
    assert none.next() == {"type": "pong"}
    none.close()


def test_a_member_of_an_enum_of_texts_is_its_text(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """The client reads the channel's own name, not that of the member."""
    _, site = make_shop()
    for path, count in (("/enumerated", 1), ("/enumerated?many", 2)):
        watcher = watch(site, path)
        for _ in range(count):
            assert watcher.next_of_many()["channel"] == f"projection.{NAME}.a"
        watcher.close()


def test_a_handler_may_talk_to_its_client_first(served: tuple[Shop, Site]) -> None:
    """Messages that it has not received are the hub's, however they arrive; its own object is closed then."""
    shop, site = served
    ping = json.dumps({"type": "ping"}).encode()
    data = client_frame(TEXT, b"kim") + client_frame(TEXT, ping) * 3
    for position in range(0, len(data) + 1, 5):
        with socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock:
            sock.sendall(handshake("/hello") + data[:position])  # in one packet, as no client may
            assert head_of(sock).split()[1] == "101"
            sock.sendall(data[position:])
            client = RawClient(sock)
            texts = [client.frame()[1] for _ in range(5)]
            assert texts[0] == b"hello kim"
            assert sorted(json.loads(text)["type"] for text in texts[1:]) == ["pong"] * 3 + ["snapshot"]
            client.send(client_frame(CLOSE))
    wait_until(lambda: shop.open_slots == 0)
    assert {type(error) for error in shop.caught} == {ConnectionClosed}


def test_a_message_is_the_handler_s_or_the_hub_s(served: tuple[Shop, Site]) -> None:
    """Not both: after ``serve`` none can be received. A thread that waits for one is woken up."""
    shop, site = served
    late = watch(site, "/late")
    late.send(type="ping")
    assert shop.served.wait(DEADLINE)
    shop.gate.set()
    assert sorted(late.next_of_many()["type"] for _ in range(3)) == ["pong", "snapshot", "subscribed"]
    late.close()
    two = watch(site, "/two-threads")
    two.socket.send("mine")
    assert two.next()["type"] == "snapshot"
    two.send(type="ping")
    assert two.next() == {"type": "pong"}
    two.close()
    assert shop.received == ["mine"]
    assert [type(error) for error in shop.caught] == [ConnectionClosed]


def test_a_client_that_has_gone_before_the_hub_comes_watches_nothing(
    make_shop: Callable[..., tuple[Shop, Site]],
) -> None:
    """Its last message asked for a subscription, which no connection would ever end."""
    shop, site = make_shop()
    watcher = watch(site, "/late")
    watcher.send(type="subscribe", channel=f"projection.{NAME}.b")
    assert shop.served.wait(DEADLINE)
    watcher.raw.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))  # ends by a reset
    watcher.socket.shutdown()
    shop.gate.set()
    wait_until(lambda: shop.hub.stats()["closed"] == 1)
    assert shop.hub.stats()["projections"][NAME]["subscribers"] == 0


def test_only_the_handler_itself_gives_its_socket_away(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """Another thread or request has no response to pass it on by: an error, and the socket stays."""
    shop, site = make_shop()
    watcher = watch(site, "/elsewhere")
    assert [watcher.socket.recv(), watcher.socket.recv()] == ["True", "True"]
    wait_until(lambda: bool(shop.elsewhere))
    assert site.post("/promote") == "refused"
    shop.gate.set()
    assert watcher.next()["type"] == "snapshot"
    watcher.close()


def test_a_socket_of_many_keys_may_subscribe_to_those_that_its_cookie_opens(
    served: tuple[Shop, Site],
) -> None:
    """Or a ticket, though the one key that it began with is public, and needs neither."""
    shop, site = served
    with shop.app.app_context():
        ticket = shop.keyfold.ticket("test.private", "b", "kim")
    for cookie, extra in (("user=kim", {}), (None, {"ticket": ticket})):
        watcher = watch(site, "/several?key=a", cookie=cookie)
        assert [watcher.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        watcher.send(type="subscribe", channel="projection.test.private.b", **extra)
        assert [watcher.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        watcher.close()


def test_a_compressed_socket_stays_one(served: tuple[Shop, Site]) -> None:
    """Flask-Sock has agreed on permessage-deflate with a browser: its messages are still understood."""
    _, site = served
    with connect(f"ws://127.0.0.1:{site.port}/hello", compression="deflate") as client:
        assert client.protocol.extensions
        client.send("kim")
        assert client.recv(DEADLINE) == "hello kim"
        assert json.loads(client.recv(DEADLINE))["type"] == "snapshot"
        for _ in range(3):
            client.send(json.dumps({"type": "ping"}))
            assert json.loads(client.recv(DEADLINE)) == {"type": "pong"}


def test_a_handler_that_keeps_its_socket_works_as_without_keyfold(served: tuple[Shop, Site]) -> None:
    """An echo, beside the hub's sockets."""
    shop, site = served
    client = websocket.create_connection(f"ws://127.0.0.1:{site.port}/echo", timeout=DEADLINE)
    for text in ("a", "b" * 100_000):
        client.send(text)
        assert client.recv() == text
    assert shop.open_slots == 0
    client.close()


def test_an_error_of_the_handler_does_not_end_the_hub_s_socket(served: tuple[Shop, Site]) -> None:
    """``serve`` is not undone by it."""
    shop, site = served
    watcher = watch(site, "/fails")
    assert watcher.next()["version"] == 0
    assert shop.add("a") == watcher.next()["version"] == 1
    watcher.close()


def test_a_handler_that_is_cut_off_gives_everything_back(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """An app that passes errors on to the server makes no response: the slot is free, the connection ends."""
    shop, site = make_shop(PROPAGATE_EXCEPTIONS=True)
    with (
        contextlib.redirect_stderr(None),
        socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock,
    ):
        sock.sendall(handshake("/fails"))
        assert head_of(sock).split()[1] == "101"
        while sock.recv(4096):
            pass
    wait_until(lambda: shop.open_slots == 0)
    assert shop.hub.stats()["open"] == 0


def test_wrong_arguments_are_the_app_s_error(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """TypeError, and the socket is untouched."""
    shop, site = make_shop()
    client = websocket.create_connection(f"ws://127.0.0.1:{site.port}/wrong", timeout=DEADLINE)
    assert client.recv() == "still open"
    client.close()
    assert [type(error) for error in shop.caught] == [TypeError] * 5


def test_a_socket_that_serve_cannot_take_is_the_handler_s(
    make_shop: Callable[..., tuple[Shop, Site]],
) -> None:
    """One that Flask-Sock has not made, and one of another request: an error of the app's, which names it."""
    shop, site = make_shop()

    @shop.app.route("/bare", websocket=True)
    def bare() -> str:
        ws = Server.accept(request.environ)
        with pytest.raises(RuntimeError, match=r"flask_sock\.Sock route"):
            shop.keyfold.serve(ws, NAME, "a")
        ws.send(ws.receive())
        ws.close()
        return ""

    @route_of(shop.sock, "/other")
    def other(ws: Any) -> None:
        with shop.app.test_request_context(), pytest.raises(RuntimeError, match="current request"):
            shop.keyfold.serve(ws, NAME, "a")
        ws.send("still open")

    client = websocket.create_connection(f"ws://127.0.0.1:{site.port}/other", timeout=DEADLINE)
    assert client.recv() == "still open"
    client.close()
    client = websocket.create_connection(f"ws://127.0.0.1:{site.port}/bare", timeout=DEADLINE)
    client.send("mine")
    assert client.recv() == "mine"
    client.close()


# -- access


@pytest.mark.parametrize(
    ("path", "options", "code"),
    [
        ("/own/test.absent/a", {}, 4404),
        (f"/own/{NAME}/a%07", {}, 4404),
        (f"/own/{NAME}/a?since=nonsense", {}, 4404),
        ("/own/test.private/a", {}, 4403),
        ("/own/test.private/a?ticket=nonsense", {}, 4401),
        (f"/own/{NAME}/a", {"origin": "https://evil.example", "suppress_origin": False}, 4403),
        ("/several?key=a&key=b&key=c&key=d", {}, 4429),
    ],
)
def test_a_refusal_is_a_close_code(
    served: tuple[Shop, Site], path: str, options: dict[str, Any], code: int
) -> None:
    """The rules are those of the library's own routes, but the handshake has been answered already."""
    shop, site = served
    object.__setattr__(shop.hub.settings, "max_channels_per_socket", 3)
    watcher = watch(site, path, **options)
    assert watcher.close_code() == code
    watcher.close()
    assert shop.open_slots == 0
    assert shop.hub.stats()["open"] == 0


def test_authorize_and_tickets_open_a_handler_s_socket(served: tuple[Shop, Site]) -> None:
    """As on the library's own routes; and the user is the one that ``disconnect`` knows."""
    shop, site = served
    watcher = watch(site, "/own/test.private/a", cookie="user=kim")
    assert watcher.next()["version"] == 0
    with shop.app.app_context():
        ticket = shop.keyfold.ticket("test.private", "a", "kim")
    by_ticket = watch(site, f"/own/test.private/a?ticket={ticket}")
    assert by_ticket.next()["version"] == 0
    again = watch(site, f"/own/test.private/a?ticket={ticket}")
    assert again.close_code() == 4401
    again.close()
    with shop.app.app_context():
        assert shop.keyfold.disconnect(user="kim") == 2
    for closed in (watcher, by_ticket):
        assert closed.close_code() == 4401
        closed.close()


def test_the_limits_on_connections_hold(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """One more than ``KEYFOLD_MAX_SOCKETS_PER_USER`` is closed with 4429, and the next is welcome again."""
    shop, site = make_shop(KEYFOLD_MAX_SOCKETS_PER_USER=1)
    first = watch(site, f"/own/{NAME}/a", cookie="user=kim")
    first.next()
    second = watch(site, f"/own/{NAME}/a", cookie="user=kim")
    assert second.close_code() == 4429
    second.close()
    first.close()
    wait_until(lambda: shop.open_slots == 0)
    third = watch(site, f"/own/{NAME}/a", cookie="user=kim")
    assert third.next()["version"] == 0
    third.close()


def test_a_shutdown_closes_with_1001(served: tuple[Shop, Site]) -> None:
    """Those that are open, and one that comes too late."""
    shop, site = served
    watcher = watch(site, f"/own/{NAME}/a")
    watcher.next()
    shop.keyfold.system.close()
    assert watcher.close_code() == 1001
    late = watch(site, f"/own/{NAME}/a")
    assert late.close_code() == 1001
    watcher.close()
    late.close()


# -- the options


@pytest.mark.parametrize("path", [f"/ws/projection/{NAME}/a", f"/own/{NAME}/a"])
def test_subprotocols_are_negotiated(make_shop: Callable[..., tuple[Shop, Site]], path: str) -> None:
    """By Flask-Sock, for the library's own routes as for the app's."""
    _, site = make_shop(SOCK_SERVER_OPTIONS={"subprotocols": ["v2", "v1"]})
    watcher = watch(site, path, subprotocols=["v0", "v1"])
    assert watcher.socket.subprotocol == "v1"
    assert watcher.next()["type"] == "snapshot"
    watcher.close()


@pytest.mark.parametrize("path", [f"/ws/projection/{NAME}/a", f"/own/{NAME}/a"])
@pytest.mark.parametrize(("given", "bound"), [(100, 100), (10_000_000, 32 * 1024)])
def test_the_smaller_bound_of_a_message_holds(
    make_shop: Callable[..., tuple[Shop, Site]], path: str, given: int, bound: int
) -> None:
    """``max_message_size`` is honoured, but is no way around the library's own bound."""
    _, site = make_shop(SOCK_SERVER_OPTIONS={"max_message_size": given})
    watcher = watch(site, path)
    watcher.next()
    watcher.socket.send('{"type":"ping"}'.ljust(bound))
    assert watcher.next() == {"type": "pong"}
    watcher.socket.send('{"type":"ping"}'.ljust(bound + 1))
    assert watcher.close_code() == 1009
    watcher.close()


@pytest.mark.parametrize(("given", "seconds"), [(2, 2.0), (None, 25.0), (3600, 25.0)])
def test_the_shorter_ping_interval_holds(
    make_shop: Callable[..., tuple[Shop, Site]], given: float | None, seconds: float
) -> None:
    """``ping_interval`` is honoured; without one, dead clients are still found."""
    shop, _ = make_shop(SOCK_SERVER_OPTIONS={"ping_interval": given})
    assert shop.hub.settings.ping_seconds == seconds


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"ping_interval": "5"}, r"SOCK_SERVER_OPTIONS\['ping_interval'\] .*'5'"),
        ({"ping_interval": float("nan")}, r"SOCK_SERVER_OPTIONS\['ping_interval'\] .*nan"),
        ({"ping_interval": -1}, r"SOCK_SERVER_OPTIONS\['ping_interval'\] .*-1"),
        ("ping_interval=5", "SOCK_SERVER_OPTIONS must be a dict"),
    ],
)
def test_wrong_options_are_named(sqlite_url: str, options: Any, message: str) -> None:
    """By ``init_app``, as any other key of the config."""
    app = Flask("shop")
    app.config.update(KEYFOLD_DATABASE=sqlite_url, SOCK_SERVER_OPTIONS=options)
    with pytest.raises(ConfigError, match=message):
        Keyfold().init_app(app)


def test_an_app_s_own_thread_class_runs_its_handlers(make_shop: Callable[..., tuple[Shop, Site]]) -> None:
    """And the library's routes start none; options that are set after ``init_app`` count too."""
    made = list[threading.Thread]()

    class Counted(threading.Thread):
        def __init__(self, target: Any) -> None:
            super().__init__(target=target)
            made.append(self)

    shop, site = make_shop()
    shop.app.config["SOCK_SERVER_OPTIONS"] = {"thread_class": Counted}
    library = site.watch(NAME, "a")
    assert library.next()["version"] == 0
    assert not made
    own = watch(site, f"/own/{NAME}/a")
    assert own.next()["version"] == 0
    assert len(made) == 1
    own.close()
    library.close()


def test_an_app_whose_sock_keyfold_does_not_know_is_served_all_the_same(sqlite_url: str) -> None:
    """Flask-Sock keeps no list of its extensions; the library's own routes have a Sock of their own then."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("shop")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)
    sock = Sock(app)

    @route_of(sock, "/own")
    def own(ws: Any) -> None:
        keyfold.serve(ws, NAME, "a")

    with serve(app) as site:
        for watcher in (site.watch(NAME, "a"), watch(site, "/own")):
            assert watcher.next()["version"] == 0
            watcher.close()
        keyfold.system.close()


def test_the_library_s_routes_are_routes_of_the_app_s_sock(sqlite_url: str) -> None:
    """A subclass that sees every route sees those as well."""
    paths = list[str]()

    class Listed(Sock):  # type: ignore[misc]
        def route(self, path: str, bp: Any = None, **options: Any) -> Any:
            paths.append(path)
            return super().route(path, bp, **options)

    keyfold = Keyfold(sock=Listed())
    app = Flask("shop")
    app.config.update(KEYFOLD_DATABASE=sqlite_url, KEYFOLD_URL_PREFIX="/live")
    keyfold.init_app(app)
    assert paths == ["/ws/projection/<name>/<path:key>", "/ws/projection"]
    assert {"/live/ws/projection"} <= {rule.rule for rule in app.url_map.iter_rules()}
    keyfold.system.close()


def test_the_hub_reads_a_ping_that_was_on_its_way(served: tuple[Shop, Site]) -> None:
    """A pong for each ping, from either of the two readers."""
    _, site = served
    with socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock:
        sock.sendall(handshake(f"/own/{NAME}/a"))
        assert head_of(sock).split()[1] == "101"
        client = RawClient(sock)
        client.send(*[client_frame(PING, b"%d" % number) for number in range(15)])
        frames = [client.frame() for _ in range(16)]
        assert [payload for opcode, payload in frames if opcode == PONG] == [b"%d" % n for n in range(15)]
