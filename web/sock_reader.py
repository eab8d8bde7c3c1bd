"""Reading the socket of an app's own Flask-Sock handler, until the handler gives it to the hub.

simple-websocket starts a thread per socket that reads it, and offers no way to stop it. Two readers of one
socket would each take a part of the client's bytes. So Keyfold sets ``thread_class`` in
``SOCK_SERVER_OPTIONS``: the thread reads as simple-websocket's own does, but ends on request between two
reads. The bytes and messages that it has read by then, and the parser with half a frame in it, go to the
hub.
"""

from __future__ import annotations

import contextlib
import logging
import os
import selectors
import threading
from collections.abc import Callable, Iterator, MutableMapping
from time import monotonic
from typing import Any

from simple_websocket import ConnectionClosed, Server
from wsproto.connection import ConnectionState
from wsproto.events import BytesMessage, CloseConnection, Ping, Pong, TextMessage
from wsproto.frame_protocol import CloseReason, Opcode
from wsproto.utilities import LocalProtocolError

from .live.connections.connection import TRY_AGAIN_LATER
from .live.protocol.websocket_frames import Incoming, ProtocolViolation
from .socket_takeover import cut, new_selector, read_ahead

_logger = logging.getLogger("keyfold.routes")

OPTIONS = "SOCK_SERVER_OPTIONS"
"""The key of Flask-Sock in an app's config: keyword arguments of ``simple_websocket.Server``."""
UNREAD = "keyfold.unread"
"""In the environ of a handshake: the socket is not to be read, as the hub takes it over at once."""
_STOP_SECONDS = 5.0
_MIN_BYTES_PER_FRAGMENT = 8


def install_reader(config: MutableMapping[str, Any]) -> dict[str, Any]:
    """Put Keyfold's ``thread_class`` in front of the app's own in Flask-Sock's options, and return them."""
    options: dict[str, Any] = dict(config.get(OPTIONS) or {})
    if not isinstance(options.get("thread_class"), ReaderFactory):
        # A new dictionary: several apps may share the one that is there.
        config[OPTIONS] = options = {**options, "thread_class": ReaderFactory(options.get("thread_class"))}
    return options


class ReaderFactory:
    """The ``thread_class`` of an app with Keyfold.

    Args:
        thread_class: The class by which the app wants its sockets read. None: ``threading.Thread``.
    """

    def __init__(self, thread_class: Callable[..., Any] | None = None) -> None:
        self._thread_class = thread_class

    def __call__(self, target: Callable[[], None]) -> Any:
        """Return the thread for a socket. simple-websocket calls this after the handshake, then ``start``."""
        thread_class = self._thread_class or threading.Thread
        ws = getattr(target, "__self__", None)
        if not isinstance(ws, Server):  # another version of simple-websocket: serve() refuses its sockets
            return thread_class(target=target)
        ahead = read_ahead(ws.environ)
        return UnreadSocket(ahead) if UNREAD in ws.environ else SocketReader(ws, ahead, thread_class)


class UnreadSocket:
    """Stands in for the reading thread of a socket that nothing reads before the hub does."""

    name = ""

    def __init__(self, ahead: bytes) -> None:
        self.ahead = ahead
        """The client's bytes that the server has read together with the handshake."""

    def start(self) -> None:
        """Do nothing."""


class SocketReader:
    """Reads one socket, as simple-websocket's thread does, until the socket ends or ``stop`` is called.

    It waits for the socket and for a pipe, so that ``stop`` can wake it up while nothing has been read. It
    waits for a duplicate of the socket's descriptor: the server may close the socket at any time, and another
    connection may get the number then. A process that has no descriptor left for these closes the socket with
    1013.

    Args:
        ws: The open socket.
        ahead: The client's bytes that the server has read together with the handshake.
        thread_class: Makes the thread.
    """

    def __init__(self, ws: Any, ahead: bytes, thread_class: Callable[..., Any]) -> None:
        self._ahead = ahead
        # The thread holds the socket, and forgets it when it ends: no reference cycle stays.
        self._thread = thread_class(target=lambda: self._run(ws))
        self.name: str = self._thread.name
        self._handler_thread = threading.get_ident()
        self._lock = threading.Lock()
        self._ended = threading.Event()
        self._is_stopping = False
        try:
            self._descriptors = _descriptors_for(ws.sock)
        except OSError as error:
            _logger.error("a socket of an app's own handler can't be read: %s", error)  # noqa: TRY400
            self._ended.set()
            ws.close(TRY_AGAIN_LATER, "this server has no file descriptor left for a connection; try again")
            ws.sock.close()

    @property
    def is_of_this_thread(self) -> bool:
        """Whether the current thread is the one that has answered the handshake."""
        return threading.get_ident() == self._handler_thread

    def start(self) -> None:
        if self._ended.is_set():
            return
        self._thread.name = self.name
        try:
            self._thread.start()
        except BaseException:
            self._close_descriptors()
            raise

    def stop(self, ws: Any, max_bytes: int) -> tuple[ResumedReader, bytes]:
        """End the thread. The socket stays open, and ``ws`` counts as closed.

        Args:
            ws: The socket that this reads.
            max_bytes: The bound of a message for the reader that is returned.

        Returns:
            The reader that goes on where the thread stopped, and the bytes that it has to be fed first.

        Raises:
            ConnectionClosed: The client has closed the connection, or it is broken, or a message was too big.
        """
        with self._lock:
            if self._ended.is_set():
                raise ConnectionClosed(ws.close_reason, ws.close_message)
            self._is_stopping = True
            os.write(self._descriptors[2], b"!")
        if not self._ended.wait(_STOP_SECONDS):
            # It waits in the middle of a read of TLS, or of a pong to a client that takes nothing.
            cut(ws.sock)
            raise ConnectionClosed(CloseReason.ABNORMAL_CLOSURE, None)
        ws.connected = False
        if ws.ws.state is not ConnectionState.OPEN:
            ws.sock.close()
            raise ConnectionClosed(ws.close_reason, ws.close_message)
        messages = list[str | bytes]()
        with contextlib.suppress(IndexError):
            while True:  # another thread of the handler may be taking them at the same time
                messages.append(ws.input_buffer.pop(0))
        ws.event.set()  # a thread of the handler's that waits in ``receive`` gets no message any more
        return ResumedReader(ws.ws, messages, ws.incoming_message, max_bytes), self._ahead

    # -- the thread

    def _run(self, ws: Any) -> None:
        try:
            self._read(ws)
        except (OSError, ValueError, LocalProtocolError):
            ws.connected = False
            ws.event.set()
        finally:
            with self._lock:
                if not self._is_stopping:
                    ws.sock.close()
                self._close_descriptors()
                self._ended.set()

    def _close_descriptors(self) -> None:
        for descriptor in self._descriptors:
            os.close(descriptor)

    def _read(self, ws: Any) -> None:
        """Do as ``simple_websocket.Base._thread`` does."""
        ping_at = monotonic() + ws.ping_interval if ws.ping_interval else None
        with new_selector() as selector:
            for descriptor in self._descriptors[:2]:
                selector.register(descriptor, selectors.EVENT_READ)
            while ws.connected and not self._is_stopping:
                data, self._ahead = self._ahead, b""
                if not data:
                    if not self._wait(ws, selector, ping_at):
                        ping_at = self._ping(ws, ping_at)
                        continue
                    if self._is_stopping:
                        return
                    data = ws.sock.recv(ws.receive_bytes)
                    if not data:
                        raise OSError
                ws.ws.receive_data(data)
                ws.connected = ws._handle_events()  # noqa: SLF001

    @staticmethod
    def _wait(ws: Any, selector: selectors.BaseSelector, ping_at: float | None) -> bool:
        """Wait until there is something to read, or a wake-up. False: a ping is due."""
        seconds = None if ping_at is None else ping_at - monotonic()
        if seconds is not None and seconds <= 0:
            return False
        # The bytes that TLS has taken from the descriptor already do not make it readable any more.
        pending: Callable[[], int] = getattr(ws.sock, "pending", lambda: 0)
        return pending() > 0 or bool(selector.select(seconds))

    @staticmethod
    def _ping(ws: Any, due_at: float | None) -> float | None:
        if not ws.pong_received:
            ws.close(reason=CloseReason.POLICY_VIOLATION, message="Ping/Pong timeout")
            ws.event.set()
            return None
        ws.pong_received = False
        ws.sock.send(ws.ws.send(Ping()))
        return max(monotonic(), due_at or 0) + float(ws.ping_interval)


def _descriptors_for(sock: Any) -> tuple[int, int, int]:
    """Return a duplicate of the socket's descriptor, and the reading and the writing end of a pipe."""
    duplicate = os.dup(sock.fileno())
    try:
        return (duplicate, *os.pipe())
    except BaseException:
        os.close(duplicate)
        raise


class ResumedReader:
    """Reads on where simple-websocket has stopped: its messages first, then the bytes, through its parser.

    The parser knows a frame that has come in part, and the compression that the handshake has agreed on.

    Args:
        connection: The parser, a ``wsproto.WSConnection``.
        messages: The messages that no one has received so far.
        begun: The fragments so far of a message that has not ended.
        max_bytes: The bound of a message. A longer one, or one in very many fragments, ends the connection.
    """

    __slots__ = ("_connection", "_fragments", "_max_bytes", "_message", "_messages")

    def __init__(
        self,
        connection: Any,
        messages: list[str | bytes],
        begun: str | bytes | bytearray | None,
        max_bytes: int,
    ) -> None:
        self._connection = connection
        self._messages = messages
        self._message = bytearray(_encoded(begun or b""))
        self._fragments = 0
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield the messages and control frames that are complete now. Raises ProtocolViolation."""
        self._check_size(len(self._message))  # the handler's bound may be larger
        messages, self._messages = self._messages, []
        for message in messages:
            self._check_size(len(payload := _encoded(message)))
            yield Incoming(Opcode.TEXT if isinstance(message, str) else Opcode.BINARY, payload)
        self._connection.receive_data(data)
        for event in self._connection.events():
            match event:
                case Ping():
                    yield Incoming(Opcode.PING, bytes(event.payload))
                case Pong():
                    yield Incoming(Opcode.PONG, bytes(event.payload))
                case CloseConnection():
                    if (
                        self._connection.state is ConnectionState.OPEN
                    ):  # not the client's: it broke the protocol
                        raise ProtocolViolation(event.code, event.reason or "")
                    yield Incoming(Opcode.CLOSE, b"", event.code)
                case TextMessage() | BytesMessage():
                    self._message += _encoded(event.data)
                    self._fragments += event.frame_finished
                    self._check_size(len(self._message))
                    if event.message_finished:
                        whole, self._message, self._fragments = bytes(self._message), bytearray(), 0
                        yield Incoming(
                            Opcode.TEXT if isinstance(event, TextMessage) else Opcode.BINARY, whole
                        )

    def _check_size(self, size: int) -> None:
        # Fragments are counted too: empty ones would keep the thread busy and have no size.
        if size > self._max_bytes or self._fragments > self._max_bytes // _MIN_BYTES_PER_FRAGMENT:
            msg = f"a message of more than {self._max_bytes} bytes"
            raise ProtocolViolation(CloseReason.MESSAGE_TOO_BIG, msg)


def _encoded(data: str | bytes | bytearray) -> bytes:
    return data.encode() if isinstance(data, str) else bytes(data)
