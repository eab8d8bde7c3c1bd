"""One WebSocket, one channel: a snapshot first, then every version after it."""

from __future__ import annotations

import contextlib
import logging
import socket
import struct
import threading
from time import monotonic
from typing import TYPE_CHECKING, Any

import msgspec
from simple_websocket import ConnectionClosed

from ..store import Position, StoreError
from .frames import PONG, error_frame, heartbeat_frame, snapshot_frame
from .subscriber import NOWHERE, Close, Delta, Item, Refresh, Subscriber, Whole

if TYPE_CHECKING:
    from .state import KeyfoldState

_logger = logging.getLogger("keyfold.web")

_MOST_INBOUND = 4096
_UNSUPPORTED_DATA = 1003
_TRY_AGAIN_LATER = 1013


class _Message(msgspec.Struct):
    """What a client may send."""

    type: str


_decode = msgspec.json.Decoder(_Message).decode


class _LockedSocket:
    """A socket whose sends are whole: simple-websocket answers pings from its own thread, beside ours.

    Everything else goes straight to the socket.
    """

    def __init__(self, inner: socket.socket) -> None:
        self._inner = inner
        self._lock = threading.Lock()

    def send(self, data: bytes) -> int:
        """Send all of data, and nothing in between."""
        with self._lock:
            self._inner.sendall(data)
        return len(data)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


class _Bell(threading.Event):
    """simple-websocket's event for "something came in, or it ended", which also wakes the sender."""

    def __init__(self, subscriber: Subscriber) -> None:
        super().__init__()
        self._subscriber = subscriber

    def set(self) -> None:
        super().set()
        self._subscriber.ring()


class SocketSession:
    """The life of one open socket, run by its request thread, its only sender of frames."""

    def __init__(
        self,
        ws: Any,
        subscriber: Subscriber,
        kept: KeyfoldState,
        address: tuple[str, str],
    ) -> None:
        self._ws = ws
        self._subscriber = subscriber
        self._system, self._hub, self._settings = kept.system, kept.hub, kept.settings
        self._name, self._key = address
        _tame(ws, subscriber, self._settings.stall_seconds)

    def run(self) -> None:
        """Send what the channel brings until either side ends."""
        silent_since = monotonic()
        try:
            while self._ws.connected:
                wait = self._settings.heartbeat_seconds - (monotonic() - silent_since)
                item = self._subscriber.take(max(0.0, wait))
                if item is not None:
                    if not self._handle(item):
                        return
                    silent_since = monotonic()
                elif not self._answer_client():
                    return
                elif monotonic() - silent_since >= self._settings.heartbeat_seconds:
                    self._send(
                        heartbeat_frame(self._subscriber.channel, self._subscriber.position or NOWHERE)
                    )
                    silent_since = monotonic()
        except ConnectionClosed:
            return
        except OSError as error:
            # The client took nothing for stall_seconds, or is gone. A close frame could not reach it.
            self._hub.count("stalled" if isinstance(error, BlockingIOError) else "broken")
            with contextlib.suppress(OSError):
                self._ws.sock.shutdown(socket.SHUT_RDWR)

    def _handle(self, item: Item) -> bool:
        """Send an item. False: the connection is to end."""
        if isinstance(item, Delta):
            next_one = self._subscriber.accepts(item)
            if next_one:
                self._send(item.frame)
            elif next_one is None:
                self._hub.count("gap")
                return self._send_snapshot("gap")
        elif isinstance(item, Whole):
            if item.position != self._subscriber.position:
                self._subscriber.position = item.position
                self._send(item.frame)
        elif isinstance(item, Refresh):
            return self._send_snapshot(item.reason)
        elif isinstance(item, Close):
            self._ws.close(item.code, item.reason)
            return False
        return True

    def _send_snapshot(self, reason: str) -> bool:
        """Send the committed row, never an actor's state: another process may be ahead of ours."""
        try:
            row = self._system.read_row(self._name, self._key)
        except StoreError as error:
            _logger.warning("no snapshot of %s: %s", self._subscriber.channel, error)
            self._ws.close(_TRY_AGAIN_LATER, "the database is away")
            return False
        if row is None:
            position, state = NOWHERE, b"null"
        else:
            position, state = Position(row.epoch, row.version), row.state
        self._subscriber.position = position
        self._send(snapshot_frame(self._subscriber.channel, position, state, reason))
        return True

    def _answer_client(self) -> bool:
        """Answer what the client has sent. False: the connection is to end."""
        while (received := self._ws.receive(timeout=0)) is not None:
            if isinstance(received, bytes):
                self._ws.close(_UNSUPPORTED_DATA, "frames are text")
                return False
            try:
                kind = _decode(received).type
            except msgspec.MsgspecError as error:
                self._hub.count("garbage")
                self._send(error_frame("malformed", f"this is no frame: {error}"))
                continue
            if kind == "ping":
                self._send(PONG)
            elif kind == "resync":
                if not self._send_snapshot("resync"):
                    return False
            else:
                self._send(error_frame("unknown_type", f"no frame is of type {kind[:100]!r}"))
        return True

    def _send(self, frame: bytes) -> None:
        self._ws.send(frame.decode())


def _tame(ws: Any, subscriber: Subscriber, stall_seconds: float) -> None:
    """Make simple-websocket's connection safe for two threads, and bounded."""
    inner = ws.sock
    # A time-out of the socket itself would end its reading thread as well: this one is for sends alone.
    seconds, fraction = divmod(stall_seconds, 1)
    timeval = struct.pack("ll", int(seconds), int(fraction * 1e6))
    inner.setsockopt(socket.SOL_SOCKET, socket.SO_SNDTIMEO, timeval)
    ws.sock = _LockedSocket(inner)
    ws.max_message_size = _MOST_INBOUND
    ws.event = _Bell(subscriber)
    subscriber.ring()  # for what came in before the bell hung
