"""The takeover of a connection from its server."""

from __future__ import annotations

import contextlib
import json
import os
import resource
import socket
import ssl
import threading
from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web import socket_takeover
from keyfold.web.live.hub import Hub
from support.counting import Added
from support.parking import DEADLINE, wait_until
from support.raw_client import PING, PONG, RawClient, client_frame, handshake, head_of
from support.serving import Site, serve
from werkzeug.debug import DebuggedApplication
from werkzeug.serving import WSGIRequestHandler, make_server

BLOB = "x" * 50_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    client.settimeout(DEADLINE)
    yield client, server
    client.close()
    server.close()


def test_the_server_s_shutdown_and_close_have_no_effect_afterwards(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """It shuts down, writes and closes; the connection goes on."""
    client, server = pair
    with socket_takeover.take_over(server) as ours:
        with pytest.raises(OSError, match="Broken pipe"):
            server.sendall(b"HTTP/1.1 200 OK")
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        ours.sendall(b"frame")
        assert client.recv(100) == b"frame"
    assert client.recv(100) == b""


def test_without_descriptors_nothing_changes_hands(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still has its socket, to say that it failed."""
    client, server = pair

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    for name, module in (("socketpair", socket), ("dup", os)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(OSError, match="Too many"):
                socket_takeover.take_over(server)
        server.sendall(name.encode())
        assert client.recv(100) == name.encode()


def test_only_a_plain_socket_is_taken_over(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of TLS is more than its descriptor; one that does not survive its server is carried."""
    _, server = pair
    assert socket_takeover.raw_socket({"gunicorn.socket": server}) is server
    assert socket_takeover.raw_socket({}) is None
    context = ssl.create_default_context()
    context.check_hostname = False
    with context.wrap_socket(server.dup(), do_handshake_on_connect=False) as secure:
        assert socket_takeover.raw_socket({"gunicorn.socket": secure}) is None
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: False)
    assert socket_takeover.raw_socket({"gunicorn.socket": server}) is None


def test_a_connection_that_can_t_be_taken_over_is_carried(
    app: Flask, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames, by way of the request's thread; both ends end it."""
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: False)
    hub: Hub = app.extensions["keyfold"].hub
    with serve(app) as site:
        first, second = site.watch("test.totals", "a"), site.watch("test.totals", "a")
        for watcher in (first, second):
            assert watcher.next()["version"] == 0
        for version in range(1, 50):
            system.bus.dispatch(Added("a", 1, lambda _state: {"blob": BLOB})).result(DEADLINE)
            assert first.next()["version"] == second.next()["version"] == version
        assert hub.stats()["carried"] == 2
        first.close()
        status, _, text = site.request("/projection/test.totals/a")
        assert (status, json.loads(text)["version"]) == (200, 49)
        hub.close()
        assert second.close_code() == 1001
        second.close()


# -- the handshake


@pytest.mark.parametrize(
    "key",
    [
        "",
        "c2hvcnQ=",
        "dGhlIHNhbXBsZSBub25jZQ",
        "dGhlIHNhbXBsZSBub25jZSBpcyB0b28gbG9uZw==",
        "dGhlIHNhbXBsZSBub25jZQ==\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==",
        "!!!!IHNhbXBsZSBub25jZQ==",
    ],
)
def test_a_handshake_has_one_key_of_16_bytes(app: Flask, key: str) -> None:
    """RFC 6455, 4.2.1: anything else is no handshake."""
    with serve(app) as site, socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock:
        sock.sendall(handshake(Sec_WebSocket_Key=key))
        assert head_of(sock).split()[1] == "400"


@pytest.mark.parametrize("survives", [True, False], ids=["taken over", "carried"])
def test_frames_in_the_packet_of_the_handshake_are_answered(
    app: Flask, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch, *, survives: bool
) -> None:
    """The server has read them with the request; they are not lost, and come before all later ones."""
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: survives)
    with serve(app) as site, socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock:
        first, second = client_frame(PING, b"first"), client_frame(PING, b"second")
        sock.sendall(handshake() + first + second[:3])
        assert head_of(sock).split()[1] == "101"
        sock.sendall(second[3:])
        client = RawClient(sock)
        frames = [client.frame() for _ in range(3)]
        assert [payload for opcode, payload in frames if opcode == PONG] == [b"first", b"second"]
        system.close()


@pytest.mark.parametrize("path", ["/ws/projection/test.totals/a", "/sse/projection/test.totals/a"])
@pytest.mark.parametrize("missing", ["socketpair", "dup"])
def test_without_descriptors_a_client_gets_an_answer_over_http(
    app: Flask, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, path: str, missing: str
) -> None:
    """503 before a byte of the handshake; the place is free again, and nothing else is lost."""
    hub: Hub = app.extensions["keyfold"].hub

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    socket_takeover._survives_its_server()
    with serve(app) as site:
        before = site.watch("test.totals", "a")
        assert before.next()["type"] == "snapshot"
        real = getattr({"socketpair": socket, "dup": os}[missing], missing)
        monkeypatch.setattr({"socketpair": socket, "dup": os}[missing], missing, none_left)
        with socket.create_connection(("127.0.0.1", site.port), DEADLINE) as sock:
            stream = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()
            sock.sendall(stream if path.startswith("/sse") else handshake(path))
            head = head_of(sock)
        monkeypatch.setattr({"socketpair": socket, "dup": os}[missing], missing, real)
        assert (head.split()[1], "Retry-After" in head) == ("503", True)
        assert hub.connection_limits._open == 1
        assert [record.name for record in caplog.records] == ["keyfold.routes"]
        before.send(type="ping")
        assert before.next() == {"type": "pong"}
        before.close()


class _Logged(WSGIRequestHandler):
    """Collects the lines of the log."""

    lines: ClassVar[list[tuple[str, str]]] = []

    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        self.lines.append((self.path.split("/")[1], str(int(code))))

    def log(self, type: str, message: str, *args: Any) -> None:  # noqa: A002
        self.lines.append((type, message % args))


@pytest.mark.parametrize("debug", [True, False], ids=["debugger", "plain"])
@pytest.mark.parametrize("survives", [True, False], ids=["taken over", "carried"])
def test_the_log_of_the_development_server_shows_no_error(
    app: Flask, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch, *, debug: bool, survives: bool
) -> None:
    """A socket that works is a 101 there, and a stream a 200; the debugger has nothing to show either."""
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: survives)
    _Logged.lines.clear()
    served = DebuggedApplication(app) if debug else app
    server = make_server("127.0.0.1", 0, served, threaded=True, request_handler=_Logged)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
    thread.start()
    try:
        watcher = Site(server.port).watch("test.totals", "a")
        assert watcher.next()["type"] == "snapshot"
        with socket.create_connection(("127.0.0.1", server.port), DEADLINE) as stream:
            stream.sendall(b"GET /sse/projection/test.totals/a HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n")
            assert head_of(stream).split()[1] == "200"
        watcher.close()
        system.close()
        wait_until(lambda: len(_Logged.lines) >= 2)
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()
    assert sorted(_Logged.lines) == [("sse", "200"), ("ws", "101")]


# -- carried connections that end


class _Leaves:
    """A place that counts how often it is given back."""

    left = 0

    def leave(self) -> None:
        self.left += 1


@pytest.mark.parametrize("kind", ["ws", "sse"])
def test_a_client_that_takes_nothing_does_not_keep_the_thread_that_carries(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch, kind: str
) -> None:
    """The hub closes it, and the thread that waits in a write for it is free again, and then the place."""
    monkeypatch.setattr(socket_takeover, "_survives_its_server", lambda: False)
    app = make_app(KEYFOLD_TUNING={"stall_seconds": 0.1})
    state, at_first = app.extensions["keyfold"], set(threading.enumerate())
    path = f"/{kind}/projection/test.totals/a"
    request = handshake(path) if kind == "ws" else f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\n\r\n".encode()

    def carrying() -> int:
        threads = set(threading.enumerate()) - at_first
        return sum("process_request_thread" in thread.name for thread in threads)

    with serve(app) as site, socket.socket() as sock:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        sock.settimeout(DEADLINE)
        sock.connect(("127.0.0.1", site.port))
        sock.sendall(request)
        assert head_of(sock).split()[1] in ("101", "200")
        wait_until(lambda: len(state.hub.connections) == 1)
        assert (carrying(), state.hub.connection_limits._open) == (1, 1)
        while len(state.hub.connections):
            state.system.bus.dispatch(Added("a", 1, lambda _state: {"blob": BLOB * 4})).result(DEADLINE)
        wait_until(lambda: (carrying(), state.hub.connection_limits._open) == (0, 0))
        assert state.hub.counts["stalled"] == 1
        state.system.close()


def test_a_carried_connection_s_place_is_free_when_both_have_left(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """In either order; the hub cuts the connection, but not one that has gone back to the server."""
    client, server = pair
    slot = _Leaves()
    carriage = socket_takeover.Carriage(slot)
    carriage.begin(server)
    carriage.leave()
    assert (client.recv(1), slot.left) == (b"", 0)
    carriage.end()
    assert slot.left == 1
    ours, theirs = socket.socketpair()
    with ours, theirs:
        other = socket_takeover.Carriage(slot)
        other.begin(theirs)
        other.end()
        assert slot.left == 1
        other.leave()
        assert slot.left == 2
        theirs.sendall(b"the next answer")
        assert ours.recv(100) == b"the next answer"
        # Left by the hub before the thread came to carry: the system has closed meanwhile.
        third = socket_takeover.Carriage(_Leaves())
        third.leave()
        third.begin(theirs)
        assert ours.recv(1) == b""


class _Decrypted:
    """A socket that has taken more from its descriptor than it was asked for, as one of TLS does."""

    def __init__(self, sock: socket.socket, decrypted: bytes) -> None:
        self._sock, self._decrypted = sock, decrypted

    def pending(self) -> int:
        return len(self._decrypted)

    def recv(self, most: int) -> bytes:
        if not self._decrypted:
            return self._sock.recv(most)
        data, self._decrypted = self._decrypted[:1000], self._decrypted[1000:]
        return data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._sock, name)


def test_what_tls_has_decrypted_is_carried_before_anything_is_waited_for(
    pair: tuple[socket.socket, socket.socket],
) -> None:
    """And the hub's bytes go out meanwhile."""
    client, server = pair
    ours, hub = socket.socketpair()
    with ours, hub:
        hub.settimeout(DEADLINE)
        hub.sendall(b"from the hub")
        carried: Any = _Decrypted(server, b"a" * 5000)
        thread = threading.Thread(target=socket_takeover.carry, args=(carried, ours), daemon=True)
        thread.start()
        assert client.recv(100) == b"from the hub"
        carried_over = b""
        while len(carried_over) < 5000:
            carried_over += hub.recv(5000)
        assert carried_over == b"a" * 5000
        hub.shutdown(socket.SHUT_RDWR)
        thread.join(DEADLINE)
        assert not thread.is_alive()


def test_carrying_takes_no_descriptor(pair: tuple[socket.socket, socket.socket]) -> None:
    """The handshake has been answered by then."""
    client, server = pair
    ours, hub = socket.socketpair()
    before = resource.getrlimit(resource.RLIMIT_NOFILE)
    with ours, hub:
        hub.sendall(b"frame")
        hub.shutdown(socket.SHUT_WR)
        with contextlib.ExitStack() as taken:
            lowest = taken.enter_context(socket.socket()).fileno()
            taken.callback(resource.setrlimit, resource.RLIMIT_NOFILE, before)
            resource.setrlimit(resource.RLIMIT_NOFILE, (lowest, before[1]))
            socket_takeover.carry(server, ours)
        assert client.recv(100) == b"frame"
