"""Opening connections: the checks of a request, Flask-Sock's handshake, and the way of the socket to the hub.

The library's own routes are routes of a ``flask_sock.Sock``. Flask-Sock answers the handshake before it
calls a handler, so the checks of these routes run in front of Flask-Sock (``SocketRoutes``) and refuse with
an HTTP status. A handler of the app's own has been answered already when it calls ``Keyfold.serve``: there,
the same checks refuse with a close code.
"""

from __future__ import annotations

import contextlib
import logging
import re
import socket
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import wraps
from time import monotonic
from typing import Any

from flask import Blueprint, Response, after_this_request, current_app, g, has_request_context, request
from simple_websocket import ConnectionClosed
from simple_websocket.errors import SimpleWebsocketError
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    ServiceUnavailable,
    TooManyRequests,
)
from wsproto.frame_protocol import CloseReason
from wsproto.utilities import ProtocolError

from ..actors import Closed
from ..store import Position
from .app_registry import current_state
from .live.connections.client_identity import ClientIdentity
from .live.connections.connection import FORBIDDEN, GOING_AWAY, LIMIT, TRY_AGAIN_LATER, UNAUTHENTICATED
from .live.connections.connection_limits import CARRIED, Slot, TooManyConnections
from .live.connections.websocket import WebSocketConnection
from .live.protocol.messages import parse_position
from .live.protocol.websocket_frames import FrameReader, MessageReader, close_frame
from .sock_reader import OPTIONS, UNREAD, SocketReader, UnreadSocket, install_reader
from .socket_takeover import SocketTakeover, Upgraded, has_socket, raw_socket

_logger = logging.getLogger("keyfold.routes")

CLOSED = "the server is shutting down; try again"
RETRY_SECONDS = 2
_NO_DESCRIPTOR = "this server has no file descriptor left for a connection; try again"
_UNKNOWN = 4404
_CLOSE_CODES = {400: _UNKNOWN, 401: UNAUTHENTICATED, 403: FORBIDDEN, 404: _UNKNOWN, 429: LIMIT}
"""The close code of a refusal, by the HTTP status that the library's own routes would answer with."""
_LINGER_SECONDS = 1.0
_HANDSHAKE = (
    "HTTP_HOST",
    "HTTP_UPGRADE",
    "HTTP_CONNECTION",
    "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_VERSION",
)
_WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_UNUSED = "_keyfold_unused"
_SOCKET = "_keyfold_socket"

RowKey = tuple[str, str]
"""The name of a projection, and a key of it."""


class NoRawSocket(HTTPException):
    """The server in front gives an app no socket."""

    code = 501


@dataclass(frozen=True, slots=True)
class Admission:
    """The result of the checks of a request for a connection."""

    identity: ClientIdentity
    slot: Slot
    checked_at: float
    """When the checks began, by the hub's clock."""
    since: Position | None
    """The position from which the client wants to go on."""


def admit(row_keys: Sequence[RowKey], since: str | None, *, many: bool = False) -> Admission:
    """Check the current request for a connection, and take a slot for it.

    Args:
        row_keys: The keys to watch from the beginning.
        since: The position from which to go on, as the client has written it.
        many: The client may subscribe to further keys, for which its request has to be kept.

    Raises:
        HTTPException: The request is refused.
        Closed: The system is shutting down.
    """
    state = current_state()
    try:
        position = parse_position(since) if since else None
    except ValueError as error:
        raise BadRequest(str(error)) from None
    checked_at = state.hub.clock()
    app = current_app._get_current_object()  # type: ignore[attr-defined]  # noqa: SLF001
    identity = state.access.admit(app, request, row_keys[0] if row_keys and not many else None)
    if many:
        for row_key in row_keys:
            state.access.check_read(request, *row_key)
    if state.system.closed:
        raise Closed(CLOSED)
    try:
        descriptors = CARRIED if raw_socket(request.environ) is None else 1
        slot = state.hub.connection_limits.enter(identity.client_address, identity.user, descriptors)
    except TooManyConnections as error:
        raise TooManyRequests(str(error), retry_after=10) from None
    setattr(g, _UNUSED, [slot.leave])
    return Admission(identity, slot, checked_at, position)


def begin_takeover() -> SocketTakeover:
    """Take all descriptors that a connection needs, while a lack of them can still be answered over HTTP."""
    try:
        current_state().hub.prepare()
        takeover = SocketTakeover(request.environ)
    except OSError as error:
        _logger.error("no connection can be taken over: %s", error)  # noqa: TRY400
        raise ServiceUnavailable(_NO_DESCRIPTOR, retry_after=RETRY_SECONDS) from None
    unused().append(takeover.close)
    return takeover


def unused() -> list[Callable[[], object]]:
    """Return the calls that give back this request's slot and descriptors, unless a connection needs them."""
    calls: list[Callable[[], object]] = g.get(_UNUSED)
    return calls


def release_unused(_error: BaseException | None) -> None:
    """Give back the slot and the descriptors that no connection has come to need, at the end of a request."""
    for give_back in g.pop(_UNUSED, ()):
        give_back()


# -- the library's own routes


class SocketRoutes:
    """The blueprint that ``flask_sock.Sock.route`` gets: it puts a route's checks before the handshake."""

    def __init__(self, blueprint: Blueprint) -> None:
        self._blueprint = blueprint

    def route(self, path: str, **options: Any) -> Callable[[Callable[..., Response]], None]:
        def register(websocket_route: Callable[..., Response]) -> None:
            self._blueprint.route(path, **options)(_checked(websocket_route))

        return register


def leave_open(ws: Any, **_row_key: str) -> None:
    """Handle a socket of the library's own routes: leave it to the view, which passes it on to the hub."""
    setattr(g, _SOCKET, ws)
    ws.connected = False  # Flask-Sock would close it


def _checked(websocket_route: Callable[..., Response]) -> Callable[..., Response]:
    @wraps(websocket_route)
    def view(**arguments: str) -> Response:
        row_keys = [(arguments["name"], arguments["key"])] if arguments else []
        _require_socket(*(row_keys or [("<name>", "<key>")])[0])
        admission = admit(row_keys, request.args.get("since") if row_keys else None)
        if _WEBSOCKET_KEY.fullmatch(request.environ.get("HTTP_SEC_WEBSOCKET_KEY", "")) is None:
            msg = "this is no WebSocket handshake: Sec-WebSocket-Key has to be 16 bytes in base64, once"
            raise BadRequest(msg)
        takeover = begin_takeover()
        options = install_reader(current_app.config)
        ws = _shake_hands(websocket_route, arguments, options)
        bound = _max_message_bytes(options)
        # Most clients never send more than a pong: without a bound of the app's, the reader is made when
        # needed.
        reader = FrameReader(bound) if bound < WebSocketConnection.max_message_bytes else None
        unread: UnreadSocket = ws.thread
        return _upgrade(
            admission,
            takeover,
            ws.sock,
            row_keys,
            many=not row_keys,
            reader=reader,
            ahead=unread.ahead or None,
        )

    return view


def _require_socket(name: str, key: str) -> None:
    if not has_socket(request.environ):
        prefix = current_state().settings.url_prefix
        msg = (
            "this server gives an app no socket, so it has no WebSockets; gunicorn and Werkzeug do. "
            f"{prefix}/sse/projection/{name}/{key} streams the same"
        )
        raise NoRawSocket(msg)


def _shake_hands(
    websocket_route: Callable[..., Response], arguments: Mapping[str, str], options: Mapping[str, Any]
) -> Any:
    """Let Flask-Sock answer the handshake, and return the open socket."""
    environ = request.environ
    # Only the headers that the handshake needs: permessage-deflate, for one, is not to be agreed on.
    headers = [*_HANDSHAKE, "HTTP_SEC_WEBSOCKET_PROTOCOL"] if options.get("subprotocols") else _HANDSHAKE
    reduced = {name: environ[name] for name in headers if name in environ}
    reduced |= {name: value for name, value in environ.items() if not name.startswith("HTTP_")}
    request.environ = {**reduced, UNREAD: True}
    try:
        websocket_route(**arguments)
    except (ProtocolError, SimpleWebsocketError) as error:
        msg = f"this is no WebSocket handshake: {error}"
        raise BadRequest(msg) from None
    except OSError as error:
        _logger.info("a client went away in the middle of its handshake: %s", error)
        raise ClientDisconnected from None
    finally:
        request.environ = environ
    return g.pop(_SOCKET)


def _max_message_bytes(options: Mapping[str, Any]) -> int:
    bound = WebSocketConnection.max_message_bytes
    return min(bound, options.get("max_message_size") or bound)


def _upgrade(
    admission: Admission,
    takeover: SocketTakeover,
    client: socket.socket,
    row_keys: Sequence[RowKey],
    *,
    many: bool,
    reader: MessageReader | None,
    ahead: bytes | None,
) -> Upgraded:
    hub, calls = current_state().hub, unused()
    subscriptions = [(*row_key, admission.since) for row_key in row_keys]

    def adopt(sock: socket.socket) -> None:
        slot = takeover.hold(admission.slot)
        connection = WebSocketConnection(
            sock, hub, admission.identity, slot, admission.checked_at, many=many, reader=reader
        )
        calls.clear()
        hub.adopt(connection, subscriptions, carried=takeover.carried, ahead=ahead)

    return Upgraded(takeover, client, adopt)


# -- handlers of the app's own


def serve_socket(ws: Any, row_keys: Sequence[RowKey], *, many: bool) -> None:
    """Pass the socket of a Flask-Sock handler on to the hub, when the request's response is made.

    Args:
        ws: The socket, as Flask-Sock gave it to the handler of the current request.
        row_keys: The keys to watch from the beginning.
        many: The client may subscribe to further keys.

    Raises:
        ConnectionClosed: The socket was refused and has been closed, or it had ended before.
        RuntimeError: The socket is another request's or another thread's, or is read by a thread that Keyfold
            cannot end.
    """
    thread = getattr(ws, "thread", None)
    if not isinstance(thread, SocketReader):
        msg = (
            "serve() can't end the thread that reads this socket: it takes the socket of a flask_sock.Sock "
            "route, of an app that has Keyfold and whose SOCK_SERVER_OPTIONS are not replaced after the "
            "first request"
        )
        raise RuntimeError(msg)  # noqa: TRY004
    if not thread.is_of_this_thread or not has_request_context() or ws.environ is not request.environ:
        msg = "serve() takes the socket of the current request, on the thread that runs its handler"
        raise RuntimeError(msg)
    bound = _max_message_bytes(current_app.config[OPTIONS])
    reader, ahead = thread.stop(ws, bound)
    try:
        if len(row_keys) > current_state().settings.max_channels_per_socket:
            msg = f"a socket may watch {current_state().settings.max_channels_per_socket} channels"
            raise TooManyRequests(msg)
        admission = admit(row_keys, None if many else request.args.get("since"), many=many)
        takeover = begin_takeover()
    except HTTPException as error:
        _refuse(ws, _CLOSE_CODES.get(error.code or 0, TRY_AGAIN_LATER), error.description or "")
    except Closed:
        _refuse(ws, GOING_AWAY, "the server is shutting down")
    except BaseException:
        _close(ws, CloseReason.INTERNAL_ERROR, "")
        raise
    else:
        response = _upgrade(admission, takeover, ws.sock, row_keys, many=many, reader=reader, ahead=ahead)
        after_this_request(lambda _of_flask_sock: response)


def _refuse(ws: Any, code: int, reason: str) -> None:
    """Close the socket, and end the handler by the exception that Flask-Sock expects of a closed socket."""
    _logger.info("a socket of %s was refused with %d: %s", request.path, code, reason)
    _close(ws, code, reason)
    raise ConnectionClosed(code, reason)


def _close(ws: Any, code: int, reason: str) -> None:
    """Send a close frame, and read on for a moment: closing with unread data would reset the connection."""
    until, sock = monotonic() + _LINGER_SECONDS, ws.sock
    with contextlib.suppress(OSError, ValueError):
        sock.settimeout(_LINGER_SECONDS)
        sock.sendall(close_frame(code, reason))
        if not hasattr(sock, "pending"):  # of TLS, a shutdown would end the decryption
            sock.shutdown(socket.SHUT_WR)
        while sock.recv(4096) and monotonic() < until:
            pass
    if ws.mode == "gevent":  # a duplicate, which the server does not close
        sock.close()
