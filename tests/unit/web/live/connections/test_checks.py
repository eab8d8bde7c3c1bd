"""authorize is asked in fair turns, asked again in time, and fails closed; tickets have users, and a time."""

from __future__ import annotations

import http.client
import socket
import threading
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import msgspec
import pytest
import websocket
from flask import Flask, session
from keyfold.web import Keyfold
from keyfold.web.access.tickets import Tickets
from keyfold.web.live.connections.connections import SignOuts
from keyfold.web.live.hub import Hub
from keyfold.web.signals import subscriber_connected
from support.counting import Added, Totals
from support.parking import DEADLINE, Parking, wait_until
from support.raw_client import CLOSE, PING, TEXT, RawClient, client_frame, handshake, head_of
from support.serving import Site, Watcher, serve

PRIVATE = "projection.test.private."
PUBLIC = "projection.test.totals."


def hub_of(app: Flask) -> Hub:
    hub: Hub = app.extensions["keyfold"].hub
    return hub


class Turnstile:
    """Is ``authorize``: lets calls about keys with a slash through one by one, and all others at once."""

    def __init__(self) -> None:
        self.asked: list[str] = []
        self._permits = threading.Semaphore(0)
        self.open = False

    def __call__(self, _request: Any, _name: str, key: str) -> bool:
        self.asked.append(key)
        if "/" in key and not self.open:
            # For longer than any client waits: an answer that does not come has to be missed by somebody.
            assert self._permits.acquire(timeout=3 * DEADLINE), "nobody let this call through"
        return True

    def let(self, count: int = 1) -> None:
        """Let so many calls through."""
        self._permits.release(count)

    def let_all(self) -> None:
        """Let these and all others through."""
        self.open = True
        self._permits.release(10_000)


@pytest.fixture
def turnstile() -> Iterator[Turnstile]:
    turnstile = Turnstile()
    yield turnstile
    turnstile.let_all()


def flood(stack: ExitStack, site: Site, sockets: int, channels: int) -> list[Watcher]:
    """Open so many sockets, each of which subscribes to so many keys of which authorize takes its time."""
    opened = []
    for number in range(sockets):
        many = site.watch_many()
        stack.callback(many.close)
        for channel in range(channels):
            many.send(type="subscribe", channel=f"{PRIVATE}{number}/{channel}")
        many.send(type="ping")
        assert many.next_of_many() == {"type": "pong"}
        opened.append(many)
    return opened


def test_a_public_key_needs_no_check(make_app: Callable[..., Flask], turnstile: Turnstile) -> None:
    """It is live at once, while all threads that ask authorize are held up."""
    app = make_app(authorize=turnstile)
    with serve(app) as site, ExitStack() as stack:
        flood(stack, site, 4, 3)
        wait_until(lambda: len(turnstile.asked) == 4)
        many = site.watch_many()
        stack.callback(many.close)
        many.send(type="subscribe", channel=PUBLIC + "a")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        assert len(turnstile.asked) == 4
        turnstile.let_all()


def test_sockets_are_asked_about_in_turns(make_app: Callable[..., Flask], turnstile: Turnstile) -> None:
    """One wish comes behind one of each of the four others, not behind their eighty."""
    app = make_app(authorize=turnstile)
    with serve(app) as site, ExitStack() as stack:
        flood(stack, site, 4, 20)
        wait_until(lambda: len(turnstile.asked) == 4)
        many = site.watch_many()
        stack.callback(many.close)
        many.send(type="subscribe", channel=PRIVATE + "modest")
        many.send(type="ping")
        assert many.next_of_many() == {"type": "pong"}
        turnstile.let(9)
        assert many.next_of_many() == {"type": "subscribed", "channel": PRIVATE + "modest"}
        assert turnstile.asked.index("modest") < 4 + 9
        turnstile.let_all()


def test_one_socket_has_two_checks_at_most_under_way(
    make_app: Callable[..., Flask], turnstile: Turnstile
) -> None:
    """So it can't take all the threads; the others of its keys wait in a set of their own."""
    app = make_app(authorize=turnstile)
    hub = hub_of(app)
    with serve(app) as site, ExitStack() as stack:
        [greedy] = flood(stack, site, 1, 30)
        wait_until(lambda: hub.stats()["checks_waiting"] == 28)
        greedy.send(type="subscribe", channel=PRIVATE + "quick")
        other = site.watch_many()
        stack.callback(other.close)
        other.send(type="subscribe", channel=PRIVATE + "quick")
        assert other.next_of_many()["type"] == "subscribed"
        assert hub.stats()["checks_running"] == 2
        assert hub.stats()["checks_waiting"] == 29
        turnstile.let_all()


def test_what_has_ended_is_not_asked(make_app: Callable[..., Flask], turnstile: Turnstile) -> None:
    """A socket that has gone, a subscription that has ended: nothing of them waits any longer."""
    app = make_app(authorize=turnstile)
    hub = hub_of(app)
    with serve(app) as site, ExitStack() as stack:
        *gone, fickle = flood(stack, site, 4, 20)
        wait_until(lambda: len(turnstile.asked) == 4)
        asked = set(turnstile.asked)
        for many in gone:
            many.raw.close()
        wait_until(lambda: hub.stats()["closed"] == 3)
        for channel in range(20):
            fickle.send(type="unsubscribe", channel=f"{PRIVATE}3/{channel}")
            assert fickle.next_of_many()["type"] == "unsubscribed"
        turnstile.let_all()
        fickle.send(type="subscribe", channel=PRIVATE + "a")
        assert fickle.next_of_many()["type"] == "subscribed"
        assert set(turnstile.asked) == asked | {"a"}
        assert hub.stats()["checks_waiting"] == 0


def test_calls_that_hang_take_nobody_s_place(make_app: Callable[..., Flask], turnstile: Turnstile) -> None:
    """After five seconds of the hub's clock another thread goes on with the queue."""
    app = make_app(authorize=turnstile)
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site, ExitStack() as stack:
        flood(stack, site, 2, 2)
        wait_until(lambda: len(turnstile.asked) == 4)
        waiting = site.watch_many()
        stack.callback(waiting.close)
        waiting.send(type="subscribe", channel=PRIVATE + "first")
        waiting.send(type="ping")
        assert waiting.next_of_many() == {"type": "pong"}
        now[0] = 5.0
        waiting.send(type="subscribe", channel=PRIVATE + "second")
        assert {waiting.next_of_many()["channel"] for _ in range(4)} == {
            PRIVATE + "first",
            PRIVATE + "second",
        }
        turnstile.let_all()


def test_receivers_of_signals_hold_up_no_check(make_app: Callable[..., Flask]) -> None:
    """They have a thread of their own; over a thousand that wait, the next is dropped and counted."""
    parking = Parking()

    def receive(_app: Flask, **_facts: Any) -> None:
        parking.park()

    app = make_app(authorize=lambda _request, _name, _key: True)
    hub = hub_of(app)
    with subscriber_connected.connected_to(receive, app), serve(app) as site, ExitStack() as stack:
        many, *others = [site.watch_many() for _ in range(5)]
        for watcher in (many, *others):
            stack.callback(watcher.close)
        parking.wait_for_arrival()
        many.send(type="subscribe", channel=PRIVATE + "a")
        assert many.next_of_many()["type"] == "subscribed"
        told: list[int] = []
        wait_until(lambda: hub.stats()["open"] == 5)
        for number in range(1000):
            hub.run_in_background(lambda number=number: told.append(number))  # type: ignore[misc]
        assert hub.stats()["signals_dropped"] == 4
        parking.release()
        wait_until(lambda: len(told) == 996)


def test_a_receiver_that_raises_is_logged_and_the_next_is_told(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """As the signals promise."""
    told = threading.Event()

    def receive(_app: Flask, *, key: str | None, **_facts: Any) -> None:
        if key == "a":
            raise ValueError
        told.set()

    app = make_app()
    with subscriber_connected.connected_to(receive, app), serve(app) as site, ExitStack() as stack:
        for key in "ab":
            stack.callback(site.watch("test.totals", key).close)
        assert told.wait(DEADLINE)
    assert [record.exc_info[0] for record in caplog.records if record.exc_info] == [ValueError]


# -- asking again


class Rights:
    """Is ``authorize``: users may read, except those in ``revoked``; for those in ``hanging`` it hangs."""

    def __init__(self) -> None:
        self.revoked: set[str] = set()
        self.hanging: dict[str, Parking] = {}
        self.asked: list[str] = []

    def __call__(self, request: Any, _name: str, key: str) -> bool:
        user = request.headers.get("X-User", "")
        self.asked.append(user or key)
        if "/" in key:
            self.hanging["/"].park()
        if user in self.hanging:
            self.hanging[user].park()
        return user not in self.revoked


def test_a_revoked_user_is_out_whatever_floods(make_app: Callable[..., Flask]) -> None:
    """Ten sockets have all threads of first checks, and 290 more waiting: asking again has its own."""
    rights = Rights()
    parking = rights.hanging["/"] = Parking()
    app = make_app(authorize=rights, KEYFOLD_REAUTHORIZE_SECONDS=0.3)
    system = app.extensions["keyfold"].system
    with serve(app) as site, ExitStack() as stack:
        stack.callback(parking.release)
        kim = site.watch("test.private", "a", header={"X-User": "kim"})
        many = site.watch_many(header={"X-User": "kim"})
        lee = site.watch("test.private", "a", header={"X-User": "lee"})
        for watcher in (kim, many, lee):
            stack.callback(watcher.close)
        many.send(type="subscribe", channel=PRIVATE + "a")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        flood(stack, site, 10, 30)
        wait_until(lambda: len([key for key in rights.asked if "/" in key]) == 4)
        rights.revoked.add("kim")
        assert kim.close_code() == 4403
        assert many.next_of_many()["code"] == "forbidden"
        assert hub_of(app).stats()["checks_waiting"] == 296
        assert hub_of(app).stats()["late"] == 0
        assert lee.next()["type"] == "snapshot"
        system.runtime("test.private").apply_event(Added("a"), DEADLINE)
        assert lee.next()["type"] == "delta"


@pytest.mark.parametrize("kind", ["one key", "many keys", "stream"])
def test_an_answer_that_is_late_ends_the_connection(make_app: Callable[..., Flask], kind: str) -> None:
    """1013, on time, and no other; the client comes back and is asked anew."""
    rights = Rights()
    app = make_app(authorize=rights, KEYFOLD_REAUTHORIZE_SECONDS=1, KEYFOLD_TUNING={"ping_seconds": 0.02})
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site, ExitStack() as stack:
        lee = site.watch("test.private", "a", header={"X-User": "lee"})
        stack.callback(lee.close)
        assert lee.next()["type"] == "snapshot"
        kim = open_as_kim(stack, site, kind)
        parking = rights.hanging["kim"] = Parking()
        stack.callback(parking.release)
        now[0] = 0.81  # the latest time at which it is asked
        parking.wait_for_arrival()
        wait_until(lambda: hub.stats()["rechecks_running"] == 1 and rights.asked.count("lee") == 2)
        now[0] = 2.49
        wait_until(lambda: rights.asked.count("lee") == 3)
        assert hub.stats()["open"] == 2
        now[0] = 2.51
        assert kim() == (None if kind == "stream" else 1013)
        assert hub.stats()["late"] == 1
        lee.send(type="ping")
        assert lee.next() == {"type": "pong"}
        del rights.hanging["kim"]
        assert site.request("/projection/test.private/a", **{"X-User": "kim"})[0] == 404


def open_as_kim(stack: ExitStack, site: Site, kind: str) -> Callable[[], int | None]:
    """Watch a key, and return a function that waits for the end and returns the close code."""
    if kind == "stream":
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        stack.callback(connection.close)
        connection.request("GET", "/sse/projection/test.private/a", headers={"X-User": "kim"})
        answer = connection.getresponse()
        stack.callback(answer.close)
        while not answer.readline().startswith(b"data"):
            continue

        def read() -> None:
            while answer.readline():
                continue

        return read
    if kind == "one key":
        watcher = site.watch("test.private", "a", header={"X-User": "kim"})
        watcher.next()
    else:
        watcher = site.watch_many(header={"X-User": "kim"})
        watcher.send(type="subscribe", channel=PRIVATE + "a")
        assert [watcher.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
    stack.callback(watcher.close)
    return watcher.close_code


def test_a_process_that_stood_still_waits_for_its_answers(make_app: Callable[..., Flask]) -> None:
    """It asks after the time is over, and gives authorize the same time to answer, not more."""
    rights = Rights()
    app = make_app(authorize=rights, KEYFOLD_REAUTHORIZE_SECONDS=1, KEYFOLD_TUNING={"ping_seconds": 0.02})
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site, ExitStack() as stack:
        kim = open_as_kim(stack, site, "one key")
        parking = rights.hanging["kim"] = Parking()
        stack.callback(parking.release)
        now[0] = 10.0
        parking.wait_for_arrival()
        now[0] = 11.49
        ticked = threading.Event()
        hub.reactor.call(hub.reactor.call_later, 0.1, ticked.set)
        assert ticked.wait(DEADLINE)
        assert hub.stats()["late"] == 0
        [connection] = hub.connections
        assert connection.is_open
        now[0] = 11.51
        assert kim() == 1013
        assert hub.stats()["late"] == 1


def test_an_answer_counts_from_when_it_was_asked(make_app: Callable[..., Flask]) -> None:
    """A first check that took nearly the whole time makes the next one due at once."""
    rights = Rights()
    app = make_app(authorize=rights, KEYFOLD_REAUTHORIZE_SECONDS=50, KEYFOLD_TUNING={"ping_seconds": 0.02})
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site, ExitStack() as stack:
        parking = rights.hanging["/"] = Parking()
        stack.callback(parking.release)
        many = site.watch_many()
        stack.callback(many.close)
        many.send(type="subscribe", channel=PRIVATE + "a/b")
        parking.wait_for_arrival()
        now[0] = 45.0
        [connection] = hub.connections
        wait_until(lambda: connection._allowed_at == 45.0)
        parking.release()
        wait_until(lambda: rights.asked == ["a/b", "a/b"])
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]


def test_a_public_key_is_not_asked_about_again(make_app: Callable[..., Flask]) -> None:
    """Nor is it ever late."""
    rights = Rights()
    app = make_app(authorize=rights, KEYFOLD_REAUTHORIZE_SECONDS=1, KEYFOLD_TUNING={"ping_seconds": 0.02})
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site, ExitStack() as stack:
        watcher = site.watch("test.totals", "a")
        stack.callback(watcher.close)
        assert watcher.next()["type"] == "snapshot"
        [connection] = hub.connections
        for moment in (1.0, 5.0, 20.0):
            now[0] = moment
            wait_until(lambda: connection._allowed_at == now[0])
        assert rights.asked == []
        assert connection.is_open


# -- tickets that are shown over a socket


@pytest.fixture
def ticketed(sqlite_url: str) -> Iterator[tuple[Flask, Keyfold]]:
    """An app with a projection for tickets alone; each user may have two sockets."""
    keyfold = Keyfold(identify=lambda _request: session.get("user"))

    class Closed(Totals):
        public = False

    keyfold.register(Closed())
    app = Flask("test")
    app.secret_key = "test"
    app.config.update(KEYFOLD_DATABASE=sqlite_url, KEYFOLD_MAX_SOCKETS_PER_USER=2)

    @app.get("/in/<user>")
    def sign_in(user: str) -> str:
        session["user"] = user
        return user

    keyfold.init_app(app)
    yield app, keyfold
    with app.app_context():
        keyfold.system.close()


def show(many: Watcher, keyfold: Keyfold, key: str, user: str | None) -> dict[str, Any]:
    """Subscribe with a ticket, and return the answer."""
    many.send(type="subscribe", channel=PUBLIC + key, ticket=keyfold.ticket("test.totals", key, user))
    answer = many.next_of_many()
    if answer["type"] == "subscribed":
        assert many.next_of_many()["type"] == "snapshot"
    return answer


def test_a_ticket_s_user_can_be_disconnected(ticketed: tuple[Flask, Keyfold]) -> None:
    """The socket over which it was shown is one of the user's, and nobody else's is touched."""
    app, keyfold = ticketed
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        kims, lees, nobodys = (site.watch_many() for _ in range(3))
        for many, user in ((kims, "kim"), (lees, "lee"), (nobodys, None)):
            stack.callback(many.close)
            assert show(many, keyfold, "a", user)["type"] == "subscribed"
        assert keyfold.disconnect(user="kim") == 1
        assert kims.close_code() == 4401
        assert keyfold.disconnect(user="kim") == 0
        for many in (lees, nobodys):
            many.send(type="ping")
            assert many.next_of_many() == {"type": "pong"}


@pytest.mark.parametrize(
    "path", ["/ws/projection/test.totals/a", "/ws/projection", "/sse/projection/test.totals/a"]
)
def test_who_signs_out_while_being_checked_stays_out(sqlite_url: str, path: str) -> None:
    """authorize or identify ran when disconnect was called: the session that they saw has ended."""
    parking, session_is_open = Parking(), [True]

    def identify(request: Any) -> str:
        user: str = request.headers["X-User"]
        if user == "kim" and session_is_open[0]:
            parking.park()
        return user

    keyfold = Keyfold(identify=identify, authorize=lambda _request, _name, _key: session_is_open[0])

    class Closed(Totals):
        public = False

    keyfold.register(Closed())
    app = Flask("test")
    app.config.update(KEYFOLD_DATABASE=sqlite_url)
    keyfold.init_app(app)
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        stack.callback(keyfold.system.close)
        stack.callback(parking.release)
        kim = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), DEADLINE))
        if path.startswith("/ws"):
            kim.sendall(handshake(path, X_User="kim"))
        else:
            kim.sendall(f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nX-User: kim\r\n\r\n".encode())
        parking.wait_for_arrival()
        session_is_open[0] = False
        assert keyfold.disconnect(user="kim") == 0
        parking.release()
        head = head_of(kim)
        if path.startswith("/ws"):
            assert " 101 " in head
            opcode, payload = RawClient(kim).frame()
            assert (opcode, payload[:2]) == (CLOSE, (4401).to_bytes(2, "big"))
        else:
            assert kim.makefile("rb").read() == b"retry: 2000\n\n"
        kim.close()
        wait_until(lambda: hub_of(app).stats()["closed"] == 1)
        session_is_open[0] = True
        other = site.watch_many(header={"X-User": "lee"})
        stack.callback(other.close)
        other.send(type="ping")
        assert other.next_of_many() == {"type": "pong"}
        again = site.watch_many(header={"X-User": "kim"})
        stack.callback(again.close)
        again.send(type="ping")
        assert again.next_of_many() == {"type": "pong"}


def test_a_ticket_whose_user_is_disconnected_while_it_is_checked(
    ticketed: tuple[Flask, Keyfold], monkeypatch: pytest.MonkeyPatch
) -> None:
    """It ends the connection, as a moment later."""
    app, keyfold = ticketed
    parking, redeem = Parking(), Tickets.redeem

    def slowly(self: Tickets, ticket: str, name: str, key: str) -> str | None:
        user = redeem(self, ticket, name, key)
        parking.park()
        return user

    monkeypatch.setattr(Tickets, "redeem", slowly)
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        stack.callback(parking.release)
        many = site.watch_many()
        stack.callback(many.close)
        many.send(type="subscribe", channel=PUBLIC + "a", ticket=keyfold.ticket("test.totals", "a", "kim"))
        parking.wait_for_arrival()
        assert keyfold.disconnect(user="kim") == 0
        parking.release()
        assert many.close_code() == 4401


def test_sign_outs_are_remembered_within_bounds() -> None:
    """Of more users than are remembered, any user that may be one of them is refused."""
    sign_outs = SignOuts()
    for number in range(10_002):
        sign_outs.note(f"user {number}", float(number))
    sign_outs.note("user 5", 20_000.0)
    assert len(sign_outs._times) == 10_000
    assert sign_outs.since("user 10", 10.0)
    assert not sign_outs.since("user 10", 10.5)
    assert sign_outs.since("user 5", 20_000.0)
    assert sign_outs.since("somebody", 1.0)
    assert not sign_outs.since("somebody", 2.5)
    assert not sign_outs.since(None, -1.0)


def test_the_end_of_a_ticket_is_no_reason_to_ping(sqlite_url: str) -> None:
    """Each has a wake-up of its own, and pings have theirs: a pong is a frame that the page has to send."""
    keyfold = Keyfold()

    class Closed(Totals):
        public = False

    keyfold.register(Closed())
    app = Flask("test")
    app.secret_key = "test"
    app.config.update(KEYFOLD_DATABASE=sqlite_url, KEYFOLD_REAUTHORIZE_SECONDS=0.3)
    keyfold.init_app(app)
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        stack.callback(keyfold.system.close)
        page = stack.enter_context(socket.create_connection(("127.0.0.1", site.port), DEADLINE))
        page.sendall(handshake("/ws/projection"))
        head_of(page)
        client = RawClient(page)
        for number in range(20):
            ticket = keyfold.ticket("test.totals", str(number), "kim")
            text = msgspec.json.encode(
                {"type": "subscribe", "channel": f"{PUBLIC}{number}", "ticket": ticket}
            )
            client.send(client_frame(TEXT, text))
        ended, pings = 0, 0
        while ended < 20:
            opcode, payload = client.frame()
            pings += opcode == PING
            ended += b'"forbidden"' in payload
        assert pings == 0


def test_a_ticket_s_user_has_a_limit(ticketed: tuple[Flask, Keyfold]) -> None:
    """A socket counts once for any number of tickets, and no more once the last channel has ended."""
    app, keyfold = ticketed
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        first, second, third = (site.watch_many() for _ in range(3))
        for many in (first, second, third):
            stack.callback(many.close)
        for key in "ab":
            assert show(first, keyfold, key, "kim")["type"] == "subscribed"
        assert show(second, keyfold, "a", "kim")["type"] == "subscribed"
        refused = show(third, keyfold, "a", "kim")
        assert (refused["code"], refused["channel"]) == ("limit", PUBLIC + "a")
        assert show(third, keyfold, "a", "lee")["type"] == "subscribed"
        _, headers, _ = site.request("/in/kim")
        cookie = headers["Set-Cookie"].split(";")[0]
        with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
            site.watch_many(cookie=cookie)
        for key in "ab":
            assert show(third, keyfold, key + "b", "kim")["code"] == "limit"
            first.send(type="unsubscribe", channel=PUBLIC + key)
            assert first.next_of_many()["type"] == "unsubscribed"
        assert show(third, keyfold, "c", "kim")["type"] == "subscribed"
        third.close()
        wait_until(lambda: hub_of(app).stats()["closed"] == 1)
        own = site.watch_many(cookie=cookie)
        stack.callback(own.close)
        assert show(own, keyfold, "a", "kim")["type"] == "subscribed"
        assert hub_of(app).connection_limits._open == 3


def test_a_ticket_s_channel_ends_at_its_time(ticketed: tuple[Flask, Keyfold]) -> None:
    """And its user's place is free then; the socket stays, and takes another ticket."""
    app, keyfold = ticketed
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    hub.settings = app.extensions["keyfold"].settings.__class__(reauthorize_seconds=100, ping_seconds=0.02)
    with serve(app) as site, app.app_context(), ExitStack() as stack:
        many = site.watch_many()
        stack.callback(many.close)
        now[0] = 10.0
        assert show(many, keyfold, "a", "kim")["type"] == "subscribed"
        now[0] = 60.0
        assert show(many, keyfold, "b", "kim")["type"] == "subscribed"
        now[0] = 110.0
        ended = many.next_of_many()
        assert (ended["code"], ended["channel"]) == ("forbidden", PUBLIC + "a")
        assert list(next(iter(hub.connections)).users) == ["kim"]
        now[0] = 160.0
        assert many.next_of_many()["channel"] == PUBLIC + "b"
        assert list(next(iter(hub.connections)).users) == []
        assert show(many, keyfold, "a", "kim")["type"] == "subscribed"
