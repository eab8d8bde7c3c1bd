"""Taking a connection out of the hands of the WSGI server, so that no request thread stays with it.

Where the server gives a plain socket, its descriptor is duplicated and the server keeps the end of a dead
pair: whatever it shuts down or closes afterwards hits nothing. Where it can't be so (TLS inside the server,
gevent, eventlet: the socket is more than its descriptor) the request's thread or greenlet carries bytes between
the client and the reactor until one of them ends. Both are one socket to the reactor.
"""

from __future__ import annotations

import _socket
import contextlib
import os
import selectors
import socket
import threading
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from io import BufferedReader
from typing import Any, Protocol

from flask import Response

from .live.connections.connection_limits import HeldSlot

_MOST = 64 * 1024
_MAX_AHEAD = 8 * 1024
_KERNEL_BUFFER = 256 * 1024
_USER_TIMEOUT_MS = 60_000
_MOST_UNSENT = 64 * 1024
"""As much as is sent in one go: so that one send takes it, where nothing waits."""
_BORROWED = ("werkzeug.socket", "gunicorn.socket")


class Adopt(Protocol):
    """Gives a socket to the hub, which owns it from then on."""

    def __call__(self, sock: socket.socket, ahead: bytes = b"") -> None:
        """``ahead``: bytes of the client that the server has read beyond the request."""


def raw_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the client's socket if it is nothing but a descriptor, which may be taken over."""
    for name in _BORROWED:
        sock = environ.get(name)
        if type(sock) is socket.socket and is_plain() and _survives_its_server():
            return sock
    return None


def has_socket(environ: Mapping[str, Any]) -> bool:
    """Say whether simple-websocket finds a socket in there, of whatever kind."""
    names = (*_BORROWED, "eventlet.input")
    return any(name in environ for name in names) or environ.get("SERVER_SOFTWARE", "").startswith("gevent")


def client_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the client's socket, of whatever kind, where the server lets an app see it."""
    for name in _BORROWED:
        if name in environ:
            found = environ[name]
            break
    else:
        given = environ.get("wsgi.input")
        if "eventlet.input" in environ:
            found = environ["eventlet.input"].get_socket()
        else:  # gevent's own server
            found = getattr(getattr(getattr(given, "rfile", given), "raw", None), "_sock", None)
    return found if hasattr(found, "fileno") and hasattr(found, "setsockopt") else None


def is_plain() -> bool:
    """Say whether sockets of this process are nothing but descriptors, where there is no TLS."""
    # gevent and eventlet put a class of their own into the socket module.
    return socket.socket.__module__ == "socket"


@cache
def _survives_its_server() -> bool:
    """Try on a pair of our own whether a socket that was taken over outlives what the server does to its end."""
    client, server = socket.socketpair()
    with client, server, take_over(server) as ours:
        with contextlib.suppress(OSError):
            server.shutdown(socket.SHUT_RDWR)
        server.close()
        try:
            ours.sendall(b"?")
            client.settimeout(1)
            return client.recv(1) == b"?"
        except OSError:
            return False


class SocketTakeover:
    """A connection on its way from the server to the hub.

    Making one takes every descriptor that the way needs, and changes nothing yet: whoever gets OSError here can
    still answer over HTTP. From then on nothing on the way can fail for want of a descriptor.
    """

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._raw = raw_socket(environ)
        self.carriage: Carriage | None = None
        self.carried = self._raw is None
        """The request's thread stays and carries the bytes."""
        if self._raw is None:
            self._ours, self._kept = socket.socketpair()
        else:
            self._ours, self._kept = _dead_pair(self._raw)

    def take(self) -> socket.socket:
        """Return the socket for the hub. Where the server's was taken, it is left with the end of a dead pair."""
        if self._raw is not None:
            _leave_dead(self._raw, self._kept)
        return self._ours

    def hold(self, slot: HeldSlot) -> HeldSlot:
        """Return what the hub is to leave when the connection has ended, for its place."""
        if not self.carried:
            return slot
        self.carriage = Carriage(slot)
        return self.carriage

    @property
    def end(self) -> socket.socket:
        """The end that the request's thread carries bytes to and from."""
        return self._kept

    def close(self) -> None:
        """Give the descriptors back: the connection stays the server's."""
        self._ours.close()
        self._kept.close()


def take_over(sock: socket.socket) -> socket.socket:
    """Return a socket for the same connection, and leave the end of a dead pair in the descriptor of the given."""
    ours, dead = _dead_pair(sock)
    _leave_dead(sock, dead)
    return ours


def _dead_pair(sock: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return a second socket for the same connection, and the end of a dead pair."""
    dead, other = socket.socketpair()
    other.close()
    try:
        return socket.socket(fileno=os.dup(sock.fileno())), dead
    except BaseException:
        dead.close()
        raise


def _leave_dead(sock: socket.socket, dead: socket.socket) -> None:
    with dead:
        os.dup2(dead.fileno(), sock.fileno(), inheritable=False)


def tune(sock: socket.socket) -> None:
    """Bound what the kernel keeps for a client that takes nothing, and notice one that is gone.

    Of what is not even on its way it takes little, and asks for more as soon as half of that has left. Else answers
    would wait behind a third of the buffer: on a slow link for half a minute.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER)
    with contextlib.suppress(OSError, AttributeError):  # not TCP, or not Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MOST_UNSENT)


class Carriage:
    """The place of a carried connection, which the hub and the request's thread hold: it is free when both have left.

    When the hub leaves first, the thread may be waiting in a write for a client that takes nothing, or in a read of
    half a record of TLS. So the client's socket is shut down then, which ends both.
    """

    def __init__(self, slot: HeldSlot) -> None:
        self._slot = slot
        self._lock = threading.Lock()
        self._client: socket.socket | None = None
        self._is_carried = self._is_left = False

    def begin(self, client: socket.socket | None) -> None:
        """Carry bytes to and from this client from now on. On the request's thread."""
        with self._lock:
            self._is_carried, self._client = True, client
            if self._is_left:
                _cut(client)

    def end(self) -> None:
        """Touch the client's socket no more: it is the server's again. On the request's thread."""
        with self._lock:
            self._is_carried, self._client = False, None
            is_left = self._is_left
        if is_left:
            self._slot.leave()

    def leave(self) -> None:
        """Say that the hub has done with the connection."""
        with self._lock:
            self._is_left = True
            is_carried = self._is_carried
            _cut(self._client)
        if not is_carried:
            self._slot.leave()


def _cut(client: socket.socket | None) -> None:
    """Shut the connection itself down, whatever it is wrapped in: what is wrapped is in use by another thread."""
    if client is not None:
        with contextlib.suppress(OSError, ValueError):  # it has been closed already
            bare = _socket.socket(fileno=client.fileno())
            try:
                bare.shutdown(socket.SHUT_RDWR)
            finally:
                bare.detach()


class Upgraded(Response):
    """What a view returns after a WebSocket handshake: nothing more is to be said over HTTP."""

    def __init__(self, socket_takeover: SocketTakeover, client: socket.socket, adopt: Adopt) -> None:
        super().__init__(status=101)
        self._handover = socket_takeover
        self._client = client
        self._adopt = adopt

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        socket_takeover = self._handover
        tune(self._client)
        ahead = read_ahead(environ)
        self._adopt(socket_takeover.take(), ahead)
        if (carriage := socket_takeover.carriage) is not None:
            with socket_takeover.end:
                carriage.begin(self._client)
                try:
                    carry(self._client, socket_takeover.end)
                    # gevent's is a duplicate: the server's close would not end the connection.
                    with contextlib.suppress(OSError):
                        self._client.shutdown(socket.SHUT_RDWR)
                finally:
                    carriage.end()
            if "eventlet.input" in environ:
                from eventlet.wsgi import WSGI_LOCAL  # noqa: PLC0415

                WSGI_LOCAL.already_handled = True
                return []
        # The handshake has been sent already. This is for the server's log: the server's end is dead.
        start_response(self.status, [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        return []


class Stream(Response):
    """A response whose body the hub writes, for as long as the client listens."""

    def __init__(self, socket_takeover: SocketTakeover, adopt: Adopt, preamble: bytes) -> None:
        super().__init__(mimetype="text/event-stream")
        # Proxies shall pass on each event as it comes.
        self.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._handover = socket_takeover
        self._adopt = adopt
        self._preamble = preamble

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        socket_takeover = self._handover
        if socket_takeover.carried:
            client = client_socket(environ)
            if client is not None:
                tune(client)
            self._adopt(socket_takeover.take())
            environ["eventlet.minimum_write_chunk_size"] = 1  # it would wait for 512 bytes
            start_response(self.status, self.headers.to_wsgi_list())
            return _Pipe(socket_takeover.end, self._preamble, socket_takeover.carriage, client)
        self.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers)]
        sock = socket_takeover.take()
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + self._preamble)
        tune(sock)
        self._adopt(sock)
        # It has been sent already. This is for the server's log: the server's end is dead.
        start_response(self.status, self.headers.to_wsgi_list())
        return []


def read_ahead(environ: Mapping[str, Any]) -> bytes:
    """Return the bytes behind the request that gunicorn or Werkzeug has read from the socket already.

    A client has to wait for the answer to its handshake. One that doesn't is served all the same where these
    servers keep what they read.
    """
    given = environ.get("wsgi.input")
    unreader = getattr(getattr(given, "reader", None), "unreader", None)
    if unreader is not None:  # gunicorn
        found: bytes = unreader.buf.getvalue()
        return found
    sock = environ.get("werkzeug.socket")
    if sock is None or not isinstance(given, BufferedReader):
        return b""
    before = sock.gettimeout()
    sock.setblocking(False)  # it would wait for a byte where it has none
    try:
        return given.read1(_MAX_AHEAD)
    except OSError:
        return b""
    finally:
        sock.settimeout(before)


class _Pipe:
    """A WSGI body out of a socket: the thread of the request brings what the hub writes."""

    def __init__(
        self, sock: socket.socket, preamble: bytes, carriage: Carriage | None, client: socket.socket | None
    ) -> None:
        self._sock = sock
        self._preamble = preamble
        self._carriage, self._client = carriage, client
        self._has_begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self  # not a generator: whoever delegates to this with "yield from" also calls its close

    def __next__(self) -> bytes:
        if not self._has_begun and self._carriage is not None:
            self._has_begun = True
            self._carriage.begin(self._client)
        data, self._preamble = self._preamble or self._sock.recv(_MOST), b""
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """End it: the client has gone, or the server."""
        if self._carriage is not None:
            self._carriage.end()
        self._sock.close()


def carry(client: socket.socket, ours: socket.socket) -> None:
    """Carry bytes both ways until either side ends. The client's socket may be one of TLS or of gevent."""
    client.settimeout(None)
    with _selector() as selector:
        selector.register(client, selectors.EVENT_READ)
        selector.register(ours, selectors.EVENT_READ)
        pending: Callable[[], int] = getattr(client, "pending", lambda: 0)
        # ValueError: what TLS raises where the other side has ended it.
        with contextlib.suppress(OSError, ValueError):
            while True:
                # What TLS has taken from the descriptor already does not make it readable any more.
                is_pending = pending() > 0
                ready = {key.fileobj for key, _ in selector.select(0 if is_pending else None)}
                if is_pending:
                    ready.add(client)
                for source, target in ((client, ours), (ours, client)):
                    if source in ready:
                        data = source.recv(_MOST)
                        if not data:
                            return
                        target.sendall(data)


def _selector() -> selectors.BaseSelector:
    """Return one that takes no descriptor, which might be the one too many, unless gevent or eventlet has put its own there."""
    usual = selectors.DefaultSelector
    return selectors.PollSelector() if usual is getattr(selectors, "EpollSelector", None) else usual()
