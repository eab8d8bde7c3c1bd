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
from typing import Any, Protocol

from flask import Response

_MOST = 64 * 1024
_KERNEL_BUFFER = 256 * 1024
_USER_TIMEOUT_MS = 60_000
_BORROWED = ("werkzeug.socket", "gunicorn.socket")


class Adopt(Protocol):
    """Gives a socket to the hub, which owns it from then on."""

    def __call__(self, sock: socket.socket, *, carried: bool) -> None:
        """``carried``: the request's thread stays and carries the bytes."""


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


def take_over(sock: socket.socket) -> socket.socket:
    """Return a socket for the same connection, and leave the end of a dead pair in the descriptor of the given."""
    dead, other = (
        socket.socketpair()
    )  # first: if there are no descriptors left, nothing has changed hands yet
    other.close()
    with dead:
        ours = socket.socket(fileno=os.dup(sock.fileno()))
        os.dup2(dead.fileno(), sock.fileno(), inheritable=False)
    return ours


def tune(sock: socket.socket) -> None:
    """Bound what the kernel keeps for a client that takes nothing, and notice one that is gone."""
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _KERNEL_BUFFER)
    with contextlib.suppress(OSError, AttributeError):  # not TCP, or not Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)


class Upgraded(Response):
    """What a view returns after a WebSocket handshake: nothing more is to be said over HTTP."""

    def __init__(self, client: socket.socket, adopt: Adopt) -> None:
        super().__init__()
        self._client = client
        self._adopt = adopt

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:  # noqa: ARG002
        raw = raw_socket(environ)
        if raw is not None:
            tune(raw)
            self._adopt(take_over(raw), carried=False)
            return _forsaken(environ)
        tune(self._client)
        theirs, ours = socket.socketpair()
        with ours:
            self._adopt(theirs, carried=True)
            carry(self._client, ours)
        # gevent's is a duplicate: the server's close would not end the connection.
        with contextlib.suppress(OSError):
            self._client.shutdown(socket.SHUT_RDWR)
        if "eventlet.input" in environ:
            from eventlet.wsgi import WSGI_LOCAL  # noqa: PLC0415

            WSGI_LOCAL.already_handled = True
            return []
        return _forsaken(environ)


class Stream(Response):
    """A response whose body the hub writes, for as long as the client listens."""

    def __init__(self, adopt: Adopt, preamble: bytes) -> None:
        super().__init__(mimetype="text/event-stream")
        # Proxies shall pass on each event as it comes.
        self.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._adopt = adopt
        self._preamble = preamble

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        raw = raw_socket(environ)
        if raw is None:
            theirs, ours = socket.socketpair()
            self._adopt(theirs, carried=True)
            environ["eventlet.minimum_write_chunk_size"] = 1  # it would wait for 512 bytes
            start_response(self.status, self.headers.to_wsgi_list())
            return _Pipe(ours, self._preamble)
        self.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers)]
        raw.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + self._preamble)
        tune(raw)
        self._adopt(take_over(raw), carried=False)
        return _forsaken(environ)


class _Pipe:
    """A WSGI body out of a socket: the thread of the request brings what the hub writes."""

    def __init__(self, sock: socket.socket, preamble: bytes) -> None:
        self._sock = sock
        self._preamble = preamble

    def __iter__(self) -> Iterator[bytes]:
        yield self._preamble
        while data := self._sock.recv(_MOST):
            yield data

    def close(self) -> None:
        """End it: the client has gone, or the server."""
        self._sock.close()


def _forsaken(environ: Mapping[str, Any]) -> Iterable[bytes]:
    """Make the server let go of a connection that is no longer its own, without a response."""
    if "gunicorn.socket" in environ:
        raise StopIteration  # what gunicorn takes as "handled"
    if "werkzeug.socket" in environ:
        raise ConnectionAbortedError  # what Werkzeug takes as "the client has gone"
    return []


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
