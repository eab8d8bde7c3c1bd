"""Taking a connection over from the WSGI server, so that no request thread stays with it.

Where the server gives a plain socket, its descriptor is duplicated, and the server is left with one end of a
dead socket pair: it may shut that down or close it, which has no effect on the connection. Elsewhere (TLS
inside the server, gevent, eventlet) the socket is more than its descriptor. There the request's thread or
greenlet carries bytes between the client and the reactor until one of them ends. To the reactor both are one
plain socket.
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

_MAX_READ = 64 * 1024
_MAX_AHEAD = 8 * 1024
_SEND_BUFFER_BYTES = 256 * 1024
_USER_TIMEOUT_MS = 60_000
_MAX_UNSENT = 64 * 1024
"""As many bytes as one ``send`` passes to the kernel: it takes them at once if nothing is waiting there."""
_PLAIN_SERVERS = ("werkzeug.socket", "gunicorn.socket")


class Adopt(Protocol):
    """Gives a socket to the hub, which owns it from then on. Called once, on the request's thread."""

    def __call__(self, sock: socket.socket) -> None: ...


def raw_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the client's socket if it can be taken over, as it is no more than a descriptor. Else None."""
    for name in _PLAIN_SERVERS:
        sock = environ.get(name)
        if type(sock) is socket.socket and is_plain() and _survives_its_server():
            return sock
    return None


def has_socket(environ: Mapping[str, Any]) -> bool:
    """Return whether simple-websocket finds a socket of any kind in the environ."""
    names = (*_PLAIN_SERVERS, "eventlet.input")
    return any(name in environ for name in names) or environ.get("SERVER_SOFTWARE", "").startswith("gevent")


def client_socket(environ: Mapping[str, Any]) -> socket.socket | None:
    """Return the client's socket, of any kind, or None if the server does not show it."""
    for name in _PLAIN_SERVERS:
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
    """Return whether the sockets of this process are no more than descriptors, except those of TLS."""
    # gevent and eventlet put a class of their own into the socket module.
    return socket.socket.__module__ == "socket"


@cache
def _survives_its_server() -> bool:
    """Try with a socket pair whether a socket that is taken over outlives the server's shutdown and close."""
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

    The constructor takes every descriptor that the takeover needs, and changes nothing else: after an OSError
    the request can still be answered over HTTP. Later steps cannot fail for want of a descriptor.
    """

    def __init__(self, environ: Mapping[str, Any]) -> None:
        self._raw = raw_socket(environ)
        self.carriage: Carriage | None = None
        self.carried = self._raw is None
        """The request's thread stays and carries the bytes."""
        if self._raw is None:
            self._hub_end, self._server_end = socket.socketpair()
        else:
            self._hub_end, self._server_end = _dead_pair(self._raw)

    def take(self) -> socket.socket:
        """Return the socket for the hub. A server whose socket is taken over is left with a dead one."""
        if self._raw is not None:
            _replace_by_dead(self._raw, self._server_end)
        return self._hub_end

    def hold(self, slot: HeldSlot) -> HeldSlot:
        """Return the slot that the hub has to leave when the connection ends."""
        if not self.carried:
            return slot
        self.carriage = Carriage(slot)
        return self.carriage

    @property
    def end(self) -> socket.socket:
        """The end of the socket pair by which the request's thread reaches the hub."""
        return self._server_end

    def close(self) -> None:
        """Close the descriptors. The connection stays the server's."""
        self._hub_end.close()
        self._server_end.close()


def take_over(sock: socket.socket) -> socket.socket:
    """Return a new socket for the same connection, and leave a dead one in the descriptor of ``sock``."""
    ours, dead = _dead_pair(sock)
    _replace_by_dead(sock, dead)
    return ours


def _dead_pair(sock: socket.socket) -> tuple[socket.socket, socket.socket]:
    """Return a second socket for the same connection, and a socket whose other end is closed."""
    dead, other = socket.socketpair()
    other.close()
    try:
        return socket.socket(fileno=os.dup(sock.fileno())), dead
    except BaseException:
        dead.close()
        raise


def _replace_by_dead(sock: socket.socket, dead: socket.socket) -> None:
    with dead:
        os.dup2(dead.fileno(), sock.fileno(), inheritable=False)


def tune(sock: socket.socket) -> None:
    """Bound the bytes that the kernel holds for a slow client, and let it notice a client that is gone.

    The kernel holds few bytes that are not yet on the network, and reports the socket as writable again when
    half of those are sent. Otherwise answers would wait behind a third of its buffer: on a slow link for
    half a minute.
    """
    with contextlib.suppress(OSError):
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, _SEND_BUFFER_BYTES)
    with contextlib.suppress(OSError, AttributeError):  # not TCP, or not Linux
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_USER_TIMEOUT, _USER_TIMEOUT_MS)
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NOTSENT_LOWAT, _MAX_UNSENT)


class Carriage:
    """The slot of a carried connection. It is free when both the hub and the request's thread have left it.

    When the hub leaves first, the thread may be waiting in a write to a client that reads nothing, or in a
    read of half a record of TLS. So the client's socket is shut down then, which ends both.
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
        """Leave the client's socket alone: it is the server's again. On the request's thread."""
        with self._lock:
            self._is_carried, self._client = False, None
            is_left = self._is_left
        if is_left:
            self._slot.leave()

    def leave(self) -> None:
        """Note that the hub has ended the connection."""
        with self._lock:
            self._is_left = True
            is_carried = self._is_carried
            _cut(self._client)
        if not is_carried:
            self._slot.leave()


def _cut(client: socket.socket | None) -> None:
    if client is not None:
        cut(client)


def cut(sock: socket.socket) -> None:
    """Shut down the connection itself, below TLS or gevent: another thread is using the socket around it."""
    with contextlib.suppress(OSError, ValueError):  # it has been closed already
        bare = _socket.socket(fileno=sock.fileno())
        try:
            bare.shutdown(socket.SHUT_RDWR)
        finally:
            bare.detach()


class Upgraded(Response):
    """The response of a view after a WebSocket handshake, to which no more is added over HTTP.

    Args:
        takeover: The connection, on its way to the hub.
        client: The client's socket, of any kind.
        adopt: Gives the socket to the hub.
    """

    def __init__(self, takeover: SocketTakeover, client: socket.socket, adopt: Adopt) -> None:
        super().__init__(status=101)
        self._takeover = takeover
        self._client = client
        self._adopt = adopt

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        takeover = self._takeover
        tune(self._client)
        self._adopt(takeover.take())
        if (carriage := takeover.carriage) is not None:
            with takeover.end:
                carriage.begin(self._client)
                try:
                    carry(self._client, takeover.end)
                    # gevent's is a duplicate: the server's close would not end the connection.
                    with contextlib.suppress(OSError):
                        self._client.shutdown(socket.SHUT_RDWR)
                finally:
                    carriage.end()
                    if self._client is not client_socket(environ):
                        self._client.close()
            if "eventlet.input" in environ:
                from eventlet.wsgi import WSGI_LOCAL  # noqa: PLC0415

                WSGI_LOCAL.already_handled = True
                return []
        # The handshake has been sent already. This is for the server's log: its socket is dead.
        start_response(self.status, [("Upgrade", "websocket"), ("Connection", "Upgrade")])
        return []


class Stream(Response):
    """A response whose body the hub writes, until the client hangs up.

    Args:
        takeover: The connection, on its way to the hub.
        adopt: Gives the socket to the hub.
        preamble: The first bytes of the body.
    """

    def __init__(self, takeover: SocketTakeover, adopt: Adopt, preamble: bytes) -> None:
        super().__init__(mimetype="text/event-stream")
        # Proxies have to pass on each event as it comes.
        self.headers.update({"Cache-Control": "no-store", "X-Accel-Buffering": "no"})
        del self.headers["Content-Length"]
        self._takeover = takeover
        self._adopt = adopt
        self._preamble = preamble

    def __call__(self, environ: Any, start_response: Any) -> Iterable[bytes]:
        takeover = self._takeover
        if takeover.carried:
            client = client_socket(environ)
            if client is not None:
                tune(client)
            self._adopt(takeover.take())
            environ["eventlet.minimum_write_chunk_size"] = 1  # it would wait for 512 bytes
            start_response(self.status, self.headers.to_wsgi_list())
            return _Pipe(takeover.end, self._preamble, takeover.carriage, client)
        self.headers["Connection"] = "close"
        lines = [f"HTTP/1.1 {self.status}", *(f"{name}: {value}" for name, value in self.headers)]
        sock = takeover.take()
        sock.sendall("\r\n".join([*lines, "", ""]).encode("latin-1") + self._preamble)
        tune(sock)
        self._adopt(sock)
        # The head has been sent already. This is for the server's log: its socket is dead.
        start_response(self.status, self.headers.to_wsgi_list())
        return []


def read_ahead(environ: Mapping[str, Any]) -> bytes:
    """Return the bytes behind the request that gunicorn or Werkzeug has read from the socket already.

    A client has to wait for the answer to its handshake. One that does not wait is still served on these
    servers, as they keep the bytes that they have read.
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
    """A WSGI body out of a socket: the request's thread brings the bytes that the hub writes."""

    def __init__(
        self, sock: socket.socket, preamble: bytes, carriage: Carriage | None, client: socket.socket | None
    ) -> None:
        self._sock = sock
        self._preamble = preamble
        self._carriage, self._client = carriage, client
        self._has_begun = False

    def __iter__(self) -> Iterator[bytes]:
        return self  # not a generator: a caller that delegates to this with "yield from" also calls its close

    def __next__(self) -> bytes:
        if not self._has_begun and self._carriage is not None:
            self._has_begun = True
            self._carriage.begin(self._client)
        data, self._preamble = self._preamble or self._sock.recv(_MAX_READ), b""
        if not data:
            raise StopIteration
        return data

    def close(self) -> None:
        """End the body: the client or the server has ended it."""
        if self._carriage is not None:
            self._carriage.end()
        self._sock.close()


def carry(client: socket.socket, ours: socket.socket) -> None:
    """Carry bytes both ways until either side ends. The client's socket may be one of TLS or of gevent."""
    client.settimeout(None)
    with new_selector() as selector:
        selector.register(client, selectors.EVENT_READ)
        selector.register(ours, selectors.EVENT_READ)
        pending: Callable[[], int] = getattr(client, "pending", lambda: 0)
        # TLS raises ValueError where the other side has ended it.
        with contextlib.suppress(OSError, ValueError):
            while True:
                # The bytes that TLS has taken from the descriptor already do not make it readable any more.
                is_pending = pending() > 0
                ready = {key.fileobj for key, _ in selector.select(0 if is_pending else None)}
                if is_pending:
                    ready.add(client)
                for source, target in ((client, ours), (ours, client)):
                    if source in ready:
                        data = source.recv(_MAX_READ)
                        if not data:
                            return
                        target.sendall(data)


def new_selector() -> selectors.BaseSelector:
    """Return a selector that takes no descriptor, as none may be left; under gevent or eventlet, theirs."""
    usual = selectors.DefaultSelector
    return selectors.PollSelector() if usual is getattr(selectors, "EpollSelector", None) else usual()
