"""Taking a connection out of the hands of the WSGI server, so that no request thread stays with it.

Where the server gives a plain socket, its descriptor is duplicated and the server keeps the end of a dead
pair: whatever it shuts down or closes afterwards hits nothing. Where it can't be so (TLS inside the server,
gevent, eventlet: the socket is more than its descriptor) the request's thread or greenlet carries bytes between
the client and the reactor until one of them ends. Both are one socket to the reactor.
"""

from __future__ import annotations

import contextlib
import os
import selectors
import socket
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import cache
from io import BufferedReader
from typing import Any, Protocol

from flask import Response

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
        if type(sock) is socket.socket and _is_plain() and _survives_its_server():
            return sock
    return None


def has_socket(environ: Mapping[str, Any]) -> bool:
    """Say whether simple-websocket finds a socket in there, of whatever kind."""
    names = (*_BORROWED, "eventlet.input")
    return any(name in environ for name in names) or environ.get("SERVER_SOFTWARE", "").startswith("gevent")


def _is_plain() -> bool:
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


class Handover:
    """A connection on its way from the server to the hub.

    Making one takes every descriptor that the way needs, and changes nothing yet: whoever gets OSError here can
    still answer over HTTP. From then on nothing on the way can fail for want of a descriptor.
    """

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._raw = raw_socket(environ)
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


class Upgraded(Response):
    """What a view returns after a WebSocket handshake: nothing more is to be said over HTTP."""

    def __init__(self, handover: Handover, client: socket.socket, adopt: Adopt) -> None:
        super().__init__(status=101)
        self._handover = handover
        self._client = client
        self._adopt = adopt

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        handover = self._handover
        tune(self._client)
        ahead = read_ahead(environ)
        self._adopt(handover.take(), ahead)
        if handover.carried:
            with handover.end:
                carry(self._client, handover.end)
            # gevent's is a duplicate: the server's close would not end the connection.
            with contextlib.suppress(OSError):
                self._client.shutdown(socket.SHUT_RDWR)
            if "eventlet.input" in environ:
                from eventlet.wsgi import WSGI_LOCAL  # noqa: PLC0415

                WSGI_LOCAL.already_handled = True
                return []
        # The handshake has been sent already. This is for the server's log: the server's end is dead.
        start_response(self.status, [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        return []


class Stream(Response):
    """A response whose body the hub writes, for as long as the client listens."""

    def __init__(self, handover: Handover, adopt: Adopt, preamble: bytes) -> None:
        super().__init__(mimetype="text/event-stream")
        # Proxies shall pass on each event as it comes.
        self.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._handover = handover
        self._adopt = adopt
        self._preamble = preamble

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        handover = self._handover
        if handover.carried:
            self._adopt(handover.take())
            environ["eventlet.minimum_write_chunk_size"] = 1  # it would wait for 512 bytes
            start_response(self.status, self.headers.to_wsgi_list())
            return _Pipe(handover.end, self._preamble)
        self.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers)]
        sock = handover.take()
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

    def __init__(self, sock: socket.socket, preamble: bytes) -> None:
        self._sock = sock
        self._preamble = preamble

    def __iter__(self) -> Iterator[bytes]:
        return self  # not a generator: whoever delegates to this with "yield from" also calls its close

    def __next__(self) -> bytes:
        data, self._preamble = self._preamble or self._sock.recv(_MOST), b""
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """End it: the client has gone, or the server."""
        self._sock.close()


def carry(client: socket.socket, ours: socket.socket) -> None:
    """Carry bytes both ways until either side ends. The client's socket may be one of TLS or of gevent."""
    client.settimeout(None)
    with selectors.DefaultSelector() as selector:
        selector.register(client, selectors.EVENT_READ, (client, ours))
        selector.register(ours, selectors.EVENT_READ, (ours, client))
        pending: Callable[[], int] = getattr(client, "pending", lambda: 0)
        with contextlib.suppress(OSError):
            while True:
                for key, _ in selector.select():
                    source, target = key.data
                    data = source.recv(_MOST)
                    while source is client and pending():
                        data += source.recv(_MOST)
                    if not data:
                        return
                    target.sendall(data)
