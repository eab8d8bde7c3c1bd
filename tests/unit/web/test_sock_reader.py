"""The reading of an app's own Flask-Sock socket ends between two reads, without the loss of a byte."""

from __future__ import annotations

import errno
import io
import os
import socket
import threading
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from keyfold.web import sock_reader
from keyfold.web.live.protocol.websocket_frames import Incoming, ProtocolViolation
from keyfold.web.sock_reader import ReaderFactory, SocketReader, UnreadSocket, install_reader
from simple_websocket import ConnectionClosed, Server
from support.parking import DEADLINE, wait_until
from support.raw_client import BINARY, CLOSE, PING, PONG, TEXT, RawClient, client_frame, head_of
from wsproto import ConnectionType, WSConnection
from wsproto.events import BytesMessage, Event, TextMessage
from wsproto.events import Ping as PingEvent
from wsproto.events import Request as RequestEvent
from wsproto.extensions import PerMessageDeflate

BOUND = 32 * 1024


class Pair:
    """Both ends of an open WebSocket: a client by wsproto, and a Server of simple-websocket."""

    def __init__(self, *, deflate: bool = False, early: bytes = b"", **options: Any) -> None:
        self.client, server = socket.socketpair()
        self.client.settimeout(DEADLINE)
        self.protocol = WSConnection(ConnectionType.CLIENT)
        extensions = [PerMessageDeflate()] if deflate else []
        request = self.protocol.send(RequestEvent(host="test", target="/", extensions=extensions)).decode()
        lines = [line.split(": ", 1) for line in request.split("\r\n")[1:] if line]
        environ: dict[str, Any] = {f"HTTP_{name.upper().replace('-', '_')}": value for name, value in lines}
        environ["wsgi.input"] = io.BufferedReader(io.BytesIO(early))
        environ["werkzeug.socket"] = server
        arguments: dict[str, Any] = {"thread_class": ReaderFactory(), **options}
        self.ws: Any = Server(environ, **arguments)
        self.protocol.receive_data(head_of(self.client).encode())
        list(self.protocol.events())

    def stop(self, max_bytes: int = BOUND) -> tuple[sock_reader.ResumedReader, bytes]:
        reader: SocketReader = self.ws.thread
        return reader.stop(self.ws, max_bytes)

    def close(self) -> None:
        self.client.close()
        wait_until(self.ws.thread._ended.is_set)
        self.ws.sock.close()


def open_descriptors() -> int:
    return sum(1 for _ in Path("/proc/self/fd").iterdir())


@pytest.fixture(autouse=True)
def _nothing_stays() -> Iterator[None]:
    """Each test leaves as many threads and descriptors as there were."""
    before, descriptors = threading.active_count(), open_descriptors()
    yield
    wait_until(lambda: threading.active_count() == before)
    wait_until(lambda: open_descriptors() == descriptors)


def rest_of(pair: Pair, reader: sock_reader.ResumedReader, ahead: bytes) -> list[Incoming]:
    """Read the socket to its end, as the hub would, through the reader."""
    found = list(reader.feed(ahead))
    while data := pair.ws.sock.recv(7):
        found += reader.feed(data)
    return found


def stream_of(protocol: WSConnection, *, deflate: bool) -> tuple[bytes, list[int]]:
    """Return the bytes of some messages, and where each ends: whole, in fragments, with pings between."""
    events: list[Event] = [
        TextMessage(data="first"),
        TextMessage(data="se", message_finished=False),
        PingEvent(payload=b"between"),
        TextMessage(data="cönd", message_finished=True),
        BytesMessage(data=b"\0\1\2"),
        PingEvent(payload=b"end"),
        TextMessage(data="x" * 140),
    ]
    if deflate:  # wsproto 1.3 takes what follows a ping within a compressed message for uncompressed
        events[1:3] = reversed(events[1:3])
    parts = [protocol.send(event) for event in events]
    return b"".join(parts), [sum(map(len, parts[: number + 1])) for number in range(len(parts))]


WHOLE = [(TEXT, b"first"), (TEXT, "secönd".encode()), (BINARY, b"\0\1\2"), (TEXT, b"x" * 140)]


@pytest.mark.parametrize("deflate", [False, True], ids=["plain", "deflate"])
@pytest.mark.parametrize("received", [0, 1], ids=["nothing received", "one received"])
def test_no_byte_is_lost_wherever_the_reading_stops(*, deflate: bool, received: int) -> None:
    """The bytes up to any position came before the stop, the others after it; pings are answered once."""
    position = size = 0
    while position <= size:
        pair = Pair(deflate=deflate)
        data, ends = stream_of(pair.protocol, deflate=deflate)
        size = len(data)
        pair.client.sendall(data[:position])
        taken = list[str | bytes]()
        if received and position >= ends[0]:
            taken.append(pair.ws.receive(DEADLINE))
        reader, ahead = pair.stop()
        pair.client.sendall(data[position:])
        pair.client.shutdown(socket.SHUT_WR)
        found = rest_of(pair, reader, ahead)
        messages = [(TEXT, message.encode()) for message in taken if isinstance(message, str)]
        messages += [(int(one.opcode), one.payload) for one in found if one.opcode in (TEXT, BINARY)]
        assert messages == WHOLE, position
        pair.ws.sock.close()
        pongs = [payload for opcode, payload in frames_of(pair.client) if opcode == PONG]
        pongs += [one.payload for one in found if one.opcode == PING]
        assert pongs == [b"between", b"end"], position
        pair.close()
        position += 1


def frames_of(sock: socket.socket) -> list[tuple[int, bytes]]:
    """Read a server's frames to the end."""
    client, frames = RawClient(sock), []
    while True:
        try:
            frames.append(client.frame())
        except EOFError:
            return frames


def test_bytes_that_the_server_has_read_with_the_handshake_come_first() -> None:
    """At any position: Flask-Sock itself reads the socket alone, and would lose them."""
    data = client_frame(TEXT, b"early") + client_frame(TEXT, b"late")
    for position in range(len(data) + 1):
        pair = Pair(early=data[:position])
        pair.client.sendall(data[position:])
        pair.client.shutdown(socket.SHUT_WR)
        assert [pair.ws.receive(DEADLINE), pair.ws.receive(DEADLINE)] == ["early", "late"]
        pair.close()
        handed = Pair(early=data[:position])
        reader, ahead = handed.stop()
        handed.client.sendall(data[position:])
        handed.client.shutdown(socket.SHUT_WR)
        assert [one.payload for one in rest_of(handed, reader, ahead)] == [b"early", b"late"]
        handed.close()


def test_a_handler_that_keeps_its_socket_notices_nothing() -> None:
    """It receives, sends, is answered a ping, and learns of the client's close."""
    pair = Pair()
    client = RawClient(pair.client)
    client.send(client_frame(TEXT, b"a"), client_frame(PING, b"p"), client_frame(BINARY, b"b"))
    assert [pair.ws.receive(DEADLINE), pair.ws.receive(DEADLINE)] == ["a", b"b"]
    pair.ws.send("answer")
    assert [client.frame(), client.frame()] == [(PONG, b"p"), (TEXT, b"answer")]
    assert pair.ws.receive(0) is None
    client.send(client_frame(CLOSE, b"\x0f\xa0bye"))
    with pytest.raises(ConnectionClosed) as caught:
        pair.ws.receive(DEADLINE)
    assert (caught.value.reason, caught.value.message) == (4000, "bye")
    assert client.close_code() == 4000
    pair.close()


def test_a_handler_s_ping_interval_still_holds() -> None:
    """A client that answers is kept, one that does not is closed; a stop ends the wait for the next ping."""
    pair = Pair(ping_interval=0.5)
    client = RawClient(pair.client)
    assert client.frame()[0] == PING
    client.send(client_frame(PONG))
    assert client.frame()[0] == PING
    assert client.close_code() == 1008
    with pytest.raises(ConnectionClosed):
        pair.ws.receive(DEADLINE)
    pair.close()
    other = Pair(ping_interval=3600)
    other.stop()
    other.close()


def test_the_app_s_own_thread_class_runs_the_reading() -> None:
    """And nothing else changes in the options, nor in a dictionary that other apps may share."""

    class Named(threading.Thread):
        made = 0

        def __init__(self, target: Any) -> None:
            super().__init__(target=target, name="of the app")
            Named.made += 1

    given = {"thread_class": Named, "receive_bytes": 3}
    config: dict[str, Any] = {"SOCK_SERVER_OPTIONS": given}
    options = install_reader(config)
    assert install_reader(config) == options == config["SOCK_SERVER_OPTIONS"]
    assert given["thread_class"] is Named
    pair = Pair(**options)
    pair.client.sendall(client_frame(TEXT, b"longer than three bytes"))
    assert pair.ws.receive(DEADLINE) == "longer than three bytes"
    assert Named.made == 1
    pair.stop()
    pair.close()


def test_a_socket_that_has_ended_is_not_handed_on() -> None:
    """The client has closed it, vanished, or sent a message that is too big for the app's own bound."""
    cases: list[tuple[bytes | None, dict[str, Any]]] = [
        (client_frame(CLOSE), {}),
        (None, {}),
        (client_frame(TEXT, b"xxx"), {"max_message_size": 2}),
    ]
    for sent, options in cases:
        pair = Pair(**options)
        if sent is None:
            pair.client.shutdown(socket.SHUT_WR)
        else:
            pair.client.sendall(sent)
        wait_until(lambda ws=pair.ws: not ws.connected)  # type: ignore[misc]
        with pytest.raises(ConnectionClosed):
            pair.stop()
        wait_until(lambda ws=pair.ws: ws.sock.fileno() == -1)  # type: ignore[misc]
        pair.close()


def test_a_socket_that_the_server_closes_is_read_no_more() -> None:
    """Its number may be another connection's then: the thread waits for its own, and ends with the client."""
    pair = Pair()
    number = pair.ws.sock.fileno()
    handle_events, others = pair.ws._handle_events, list[socket.socket]()

    def close_after_it() -> bool:
        goes_on: bool = handle_events()
        pair.ws.sock.close()
        others.extend(socket.socketpair())
        return goes_on

    pair.ws._handle_events = close_after_it
    pair.client.sendall(client_frame(TEXT, b"x"))
    wait_until(lambda: bool(others))
    assert number in [other.fileno() for other in others]
    pair.close()
    for other in others:
        other.close()


@pytest.mark.parametrize("call", ["pipe", "dup"])
def test_without_a_descriptor_the_socket_is_closed_with_1013(
    monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    """The handshake has been answered, so the client can't be told by HTTP; the handler finds it closed."""

    def fail(*_: Any) -> None:
        raise OSError(errno.EMFILE, "Too many open files")

    with monkeypatch.context() as patch:
        patch.setattr(os, call, fail)
        pair = Pair()
    assert RawClient(pair.client).close_code() == 1013
    for use in (pair.ws.receive, pair.stop, lambda: pair.ws.send("x")):
        with pytest.raises(ConnectionClosed):
            use()
    pair.close()


def test_afterwards_the_socket_is_open_and_the_handler_s_object_closed() -> None:
    """A ``ws`` that is handed on can do no harm."""
    pair = Pair()
    pair.stop()
    for use in (pair.ws.receive, pair.ws.close, lambda: pair.ws.send("x")):
        with pytest.raises(ConnectionClosed):
            use()
    pair.ws.sock.sendall(b"by the hub")
    assert pair.client.recv(100) == b"by the hub"
    with pytest.raises(ConnectionClosed):
        pair.stop()
    pair.close()


def test_a_thread_that_hangs_in_a_write_is_cut(monkeypatch: pytest.MonkeyPatch) -> None:
    """The client takes no pongs, so the thread waits for it: the connection ends, and the handler goes on."""
    monkeypatch.setattr(sock_reader, "_STOP_SECONDS", 0.01)
    pair = Pair(receive_bytes=64 * 1024)
    pair.ws.sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
    pair.client.sendall(client_frame(PING, b"x" * 125) * 400)
    assert pair.client.recv(1, socket.MSG_PEEK)  # of more pongs than the kernel takes at once
    with pytest.raises(ConnectionClosed):
        pair.stop()
    pair.close()


def test_a_socket_of_the_library_s_own_routes_is_read_by_no_thread() -> None:
    """The hub reads it from the first byte on."""
    early = client_frame(TEXT, b"early")
    server, client = socket.socketpair()
    environ: dict[str, Any] = {
        "HTTP_HOST": "test", "HTTP_UPGRADE": "websocket", "HTTP_CONNECTION": "Upgrade",
        "HTTP_SEC_WEBSOCKET_KEY": "dGhlIHNhbXBsZSBub25jZQ==", "HTTP_SEC_WEBSOCKET_VERSION": "13",
        "werkzeug.socket": server, "wsgi.input": io.BufferedReader(io.BytesIO(early)),
        sock_reader.UNREAD: True,
    }  # fmt: skip
    before = threading.active_count()
    options: dict[str, Any] = {"thread_class": ReaderFactory()}
    ws: Any = Server(environ, **options)
    assert isinstance(ws.thread, UnreadSocket)
    assert (ws.thread.ahead, threading.active_count()) == (early, before)
    server.close()
    client.close()


@pytest.mark.parametrize(
    ("frames", "code"),
    [
        ([client_frame(TEXT, b"x" * 101)], 1009),
        ([client_frame(TEXT, b"x" * 60, final=False), client_frame(0, b"x" * 60)], 1009),
        ([client_frame(TEXT, final=False), *[client_frame(0, final=False)] * 20], 1009),
        ([client_frame(TEXT, b"\xff")], 1007),
        ([client_frame(TEXT, b"x", masked=False)], 1002),
        ([client_frame(TEXT, b"x", reserved=4)], 1002),
    ],
    ids=["long", "long in fragments", "empty fragments", "no UTF-8", "unmasked", "compressed"],
)
def test_the_bounds_of_a_message_hold(frames: list[bytes], code: int) -> None:
    """Of one that came before the hand-over, and of one that comes after it."""
    pair = Pair()
    reader, _ = pair.stop(100)
    with pytest.raises(ProtocolViolation) as caught:
        list(reader.feed(b"".join(frames)))
    assert caught.value.code == code
    pair.close()


def test_a_long_message_that_the_thread_has_read_is_refused_too() -> None:
    """The app's handlers may take longer ones than the hub."""
    pair = Pair()
    pair.client.sendall(client_frame(TEXT, b"x" * 101))
    wait_until(lambda: bool(pair.ws.input_buffer))
    reader, ahead = pair.stop(100)
    with pytest.raises(ProtocolViolation, match="more than 100 bytes"):
        list(reader.feed(ahead))
    pair.close()


def test_a_long_message_that_has_begun_is_refused_too() -> None:
    """Otherwise a client could leave its beginning with the hub, which holds it."""
    pair = Pair()
    pair.client.sendall(client_frame(TEXT, b"x" * 101, final=False))
    wait_until(lambda: pair.ws.incoming_message is not None)
    reader, ahead = pair.stop(100)
    with pytest.raises(ProtocolViolation, match="more than 100 bytes"):
        list(reader.feed(ahead))
    pair.close()


def test_a_compressed_message_is_bounded_by_its_real_size() -> None:
    """A few bytes that stand for many are refused like those."""
    pair = Pair(deflate=True)
    reader, _ = pair.stop()
    data = pair.protocol.send(TextMessage(data="x" * (BOUND + 1)))
    assert len(data) < 200
    with pytest.raises(ProtocolViolation) as caught:
        list(reader.feed(data))
    assert caught.value.code == 1009
    pair.close()
