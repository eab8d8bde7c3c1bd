"""A TCP proxy on loopback that can cut, freeze, and swallow the answer to a given message."""

from __future__ import annotations

import contextlib
import selectors
import socket
import struct
import threading
from dataclasses import dataclass, field

_CHUNK = 65536
_NO_LINGER = struct.pack("ii", 1, 0)


@dataclass(eq=False)
class _Link:
    """One client's connection and the server's."""

    client: socket.socket
    server: socket.socket
    swallowing: bool = False
    ends: tuple[socket.socket, ...] = field(init=False)

    def __post_init__(self) -> None:
        self.ends = (self.client, self.server)


class TcpProxy:
    """Forwards connections to a port of 127.0.0.1, until it is told to misbehave.

    One thread does everything, so each order takes effect between two chunks.
    """

    def __init__(self, target_port: int) -> None:
        self._target_port = target_port
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        self.swallowed = threading.Event()
        """Set when the answer to the needle was dropped, or the needle itself, and the line was cut."""
        self._needle = b""
        self._forward_needle = True
        self._frozen = threading.Event()
        self._refusing = False
        self._closing = False
        self._links: set[_Link] = set()
        self._lock = threading.RLock()
        self._selector = selectors.DefaultSelector()
        self._wake_up, self._woken = socket.socketpair()
        self._selector.register(self._listener, selectors.EVENT_READ)
        self._selector.register(self._woken, selectors.EVENT_READ)
        self._thread = threading.Thread(target=self._run, name="tcp-proxy", daemon=True)
        self._thread.start()

    # -- orders

    def swallow_reply_to(self, needle: bytes) -> None:
        """Forward the next message with needle in it, drop the server's answer, and cut the line."""
        self._arm(needle, forward=True)

    def cut_before(self, needle: bytes) -> None:
        """Cut the line when a message with needle in it comes, without forwarding it."""
        self._arm(needle, forward=False)

    def cut(self) -> None:
        """Reset all connections."""
        with self._lock:
            for link in list(self._links):
                self._cut(link)

    def refuse(self) -> None:
        """Cut all connections, and each new one at once."""
        self._refusing = True
        self.cut()

    def accept(self) -> None:
        """Take new connections again."""
        self._refusing = False

    def freeze(self) -> None:
        """Forward nothing any more; connections stay up."""
        self._frozen.set()

    def thaw(self) -> None:
        """Forward again, including the data that was held back."""
        self._frozen.clear()
        self._wake()

    def close(self) -> None:
        """End the proxy and all connections."""
        self._closing = True
        self._wake()
        self._thread.join(10)
        self.cut()
        self._listener.close()
        self._wake_up.close()
        self._woken.close()
        self._selector.close()

    # -- the loop

    def _arm(self, needle: bytes, *, forward: bool) -> None:
        with self._lock:
            self.swallowed.clear()
            self._needle, self._forward_needle = needle, forward

    def _wake(self) -> None:
        self._wake_up.send(b"x")

    def _run(self) -> None:
        while not self._closing:
            for key, _ in self._selector.select(0.05 if self._frozen.is_set() else None):
                if key.fileobj is self._listener:
                    self._open()
                elif key.fileobj is self._woken:
                    self._woken.recv(_CHUNK)
                elif not self._frozen.is_set():
                    with self._lock:
                        self._pass_on(*key.data)

    def _open(self) -> None:
        client, _ = self._listener.accept()
        if self._refusing:
            _reset(client)
            return
        try:
            server = socket.create_connection(("127.0.0.1", self._target_port))
        except OSError:
            _reset(client)
            return
        link = _Link(client, server)
        with self._lock:
            self._links.add(link)
            self._selector.register(client, selectors.EVENT_READ, (link, client, server))
            self._selector.register(server, selectors.EVENT_READ, (link, server, client))

    def _pass_on(self, link: _Link, source: socket.socket, target: socket.socket) -> None:
        if link not in self._links:
            return
        try:
            data = source.recv(_CHUNK)
        except OSError:
            data = b""
        if not data:
            self._cut(link)
            return
        if source is link.server and link.swallowing:
            self._cut(link)
            self.swallowed.set()
            return
        if source is link.client and self._needle and self._needle in data:
            self._needle = b""
            if not self._forward_needle:
                self._cut(link)
                self.swallowed.set()
                return
            link.swallowing = True
        try:
            target.sendall(data)
        except OSError:
            self._cut(link)

    def _cut(self, link: _Link) -> None:
        self._links.discard(link)
        for end in link.ends:
            with contextlib.suppress(KeyError, ValueError):
                self._selector.unregister(end)
            _reset(end)


def _reset(end: socket.socket) -> None:
    with contextlib.suppress(OSError):
        end.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, _NO_LINGER)
    end.close()
