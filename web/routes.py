"""The URLs: channels as sockets and streams, snapshots over HTTP, the client, the operator's numbers."""

from __future__ import annotations

import logging
import re
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

from flask import Blueprint, Response, current_app, g, request
from msgspec import json
from simple_websocket import Server
from werkzeug.exceptions import (
    BadRequest,
    ClientDisconnected,
    HTTPException,
    InternalServerError,
    NotFound,
    ServiceUnavailable,
    TooManyRequests,
)
from wsproto.utilities import ProtocolError

from ..actors import Closed, NewerRow, channel_of
from ..store import Position, StoreError, StoreUnavailable
from .app_registry import current_state
from .live.connections.client_identity import ClientIdentity
from .live.connections.connection_limits import CARRIED, Slot, TooManyConnections
from .live.connections.event_stream import PREAMBLE, EventStream
from .live.connections.websocket import WebSocketConnection
from .live.protocol.messages import parse_position
from .operator.page import add_admin
from .operator.probes import add_probes
from .socket_takeover import SocketTakeover, Stream, Upgraded, has_socket, raw_socket

if TYPE_CHECKING:
    from .settings import WebSettings

_logger = logging.getLogger("keyfold.routes")

_WEB = Path(__file__).parent
_FOLDERS = {
    "keyfold.js": _WEB / "js",
    "keyfold.d.ts": _WEB / "js",
    "admin.js": _WEB / "operator" / "static",
    "admin_parts.js": _WEB / "operator" / "static",
    "admin.css": _WEB / "operator" / "static",
}
_HANDSHAKE = (
    "HTTP_HOST",
    "HTTP_UPGRADE",
    "HTTP_CONNECTION",
    "HTTP_SEC_WEBSOCKET_KEY",
    "HTTP_SEC_WEBSOCKET_VERSION",
)
_WEBSOCKET_KEY = re.compile(r"[A-Za-z0-9+/]{22}==")
_NO_DESCRIPTOR = "this server has no file descriptor left for a connection; try again"
_AWAY = "the database can't be reached at the moment; try again"
_NEWER = "a newer release has written this, which this server does not know yet; try again"
_CLOSED = "the server is shutting down; try again"
_REFUSED = "this can't be read; the server's log says why"
_CLIENT_SECONDS = 3600
_RETRY_SECONDS = 2
_KINDS = {"js": "text/javascript", "ts": "text/plain", "css": "text/css"}
_SHARED = ("keyfold.stream", "keyfold.snapshot")
_UNDO = "_keyfold_undo"


class NoRawSocket(HTTPException):
    """The server in front hands an app no socket."""

    code = 501


def make_blueprint(settings: WebSettings) -> Blueprint:
    """Return the routes, all below the URL prefix."""
    blueprint = Blueprint("keyfold", __name__, url_prefix=settings.url_prefix or None)
    # A key may hold slashes, two in a row as well: nothing is to be merged.
    address: dict[str, Any] = {"methods": ["GET"], "merge_slashes": False}
    rule = blueprint.add_url_rule
    rule("/ws/projection/<name>/<path:key>", "socket", _socket, websocket=True, **address)
    rule("/ws/projection", "sockets", _sockets, websocket=True, methods=["GET"])
    rule("/sse/projection/<name>/<path:key>", "stream", _stream, **address)
    rule("/projection/<name>/<path:key>", "snapshot", _snapshot, **address)
    rule(
        "/keyfold/<any('keyfold.js', 'keyfold.d.ts', 'admin.js', 'admin_parts.js', 'admin.css'):file>",
        "client",
        _client,
        methods=["GET"],
    )
    add_admin(blueprint)
    add_probes(blueprint)
    blueprint.after_request(_add_headers)
    blueprint.teardown_request(_undo)
    blueprint.register_error_handler(HTTPException, _as_json)
    blueprint.register_error_handler(StoreUnavailable, _away)
    blueprint.register_error_handler(NewerRow, _newer)
    blueprint.register_error_handler(Closed, _closed)
    blueprint.register_error_handler(StoreError, _refused)
    return blueprint


# -- connections


def _socket(name: str, key: str) -> Response:
    _need_socket(name, key)
    admitted, since = _admit((name, key), request.args.get("since"))
    return _upgrade(admitted, (name, key, since))


def _sockets() -> Response:
    _need_socket("<name>", "<key>")
    admitted, _ = _admit(None, None)
    return _upgrade(admitted, None)


def _stream(name: str, key: str) -> Response:
    wanted = request.headers.get("Last-Event-ID") or request.args.get("since")
    (identity, slot, checked_at), since = _admit((name, key), wanted)
    if request.method == "HEAD":
        return Response(mimetype="text/event-stream")
    hub, socket_takeover = current_state().hub, _begin_handover()
    undo = g.get(_UNDO)

    def adopt(sock: socket.socket, ahead: bytes = b"") -> None:  # noqa: ARG001  # a stream was asked for once
        stream = EventStream(sock, hub, identity, socket_takeover.hold(slot), checked_at)
        undo.clear()
        hub.adopt(stream, (name, key, since), carried=socket_takeover.carried)

    return Stream(socket_takeover, adopt, PREAMBLE)


def _need_socket(name: str, key: str) -> None:
    if not has_socket(request.environ):
        prefix = current_state().settings.url_prefix
        msg = (
            "this server gives an app no socket, so it has no WebSockets; gunicorn and Werkzeug do. "
            f"{prefix}/sse/projection/{name}/{key} streams the same"
        )
        raise NoRawSocket(msg)


class _Admitted(NamedTuple):
    """Who may connect, and when the check of that was begun, by the hub's clock."""

    identity: ClientIdentity
    slot: Slot
    checked_at: float


def _admit(address: tuple[str, str] | None, wanted: str | None) -> tuple[_Admitted, Position | None]:
    """Refuse before the connection is handed over, so that whoever may not gets a real HTTP status."""
    kept = current_state()
    try:
        since = parse_position(wanted) if wanted else None
    except ValueError as error:
        raise BadRequest(str(error)) from None
    checked_at = kept.hub.clock()
    identity = kept.access.admit(current_app._get_current_object(), request, address)  # type: ignore[attr-defined]  # noqa: SLF001
    if kept.system.closed:
        raise Closed(_CLOSED)
    try:
        each = CARRIED if raw_socket(request.environ) is None else 1
        slot = kept.hub.connection_limits.enter(identity.client_address, identity.user, each)
    except TooManyConnections as error:
        raise TooManyRequests(str(error), retry_after=10) from None
    setattr(g, _UNDO, [slot.leave])
    return _Admitted(identity, slot, checked_at), since


def _begin_handover() -> SocketTakeover:
    """Take all descriptors that a connection needs, as long as the client can still be told that there are none."""
    try:
        current_state().hub.prepare()
        socket_takeover = SocketTakeover(request.environ)
    except OSError as error:
        _logger.error("no connection can be taken over: %s", error)  # noqa: TRY400
        raise ServiceUnavailable(_NO_DESCRIPTOR, retry_after=_RETRY_SECONDS) from None
    g.get(_UNDO).append(socket_takeover.close)
    return socket_takeover


def _upgrade(admitted: _Admitted, wish: tuple[str, str, Position | None] | None) -> Response:
    environ = request.environ
    if _WEBSOCKET_KEY.fullmatch(environ.get("HTTP_SEC_WEBSOCKET_KEY", "")) is None:
        msg = "this is no WebSocket handshake: Sec-WebSocket-Key has to be 16 bytes in base64, once"
        raise BadRequest(msg)
    socket_takeover = _begin_handover()
    # Only what the handshake needs: permessage-deflate, for one, is not to be agreed on.
    needed = {name: environ[name] for name in _HANDSHAKE if name in environ}
    needed |= {name: value for name, value in environ.items() if not name.startswith("HTTP_")}
    try:
        ws = Server.accept(needed, thread_class=_NoThread)
    except ProtocolError as error:
        msg = f"this is no WebSocket handshake: {error}"
        raise BadRequest(msg) from None
    except OSError as error:
        _logger.info("a client went away in the middle of its handshake: %s", error)
        raise ClientDisconnected from None
    hub, undo = current_state().hub, g.get(_UNDO)
    identity, slot, checked_at = admitted

    def adopt(sock: socket.socket, ahead: bytes = b"") -> None:
        slot_or_carriage = socket_takeover.hold(slot)
        connection = WebSocketConnection(sock, hub, identity, slot_or_carriage, checked_at, many=wish is None)
        undo.clear()
        hub.adopt(connection, wish, carried=socket_takeover.carried, ahead=ahead)

    return Upgraded(socket_takeover, ws.sock, adopt)


class _NoThread:
    """What simple-websocket runs instead of a reading thread of its own."""

    name = ""

    def __init__(self, target: object) -> None:
        """Take no notice of it."""

    def start(self) -> None:
        """Start nothing."""


def _undo(_error: BaseException | None) -> None:
    """Give back the place and the descriptors that no connection has come to need."""
    for give_back in g.pop(_UNDO, ()):
        give_back()


# -- HTTP


def _add_headers(response: Response) -> Response:
    """Say that the type is meant, and let the pages of allowed origins read streams and snapshots."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin")
    if request.endpoint in _SHARED:
        response.vary.add("Origin")
        if origin is not None and current_state().access.origins.admits(origin, request):
            response.access_control_allow_origin = origin
            response.access_control_allow_credentials = True
    return response


def _snapshot(name: str, key: str) -> Response:
    kept = current_state()
    kept.access.check_read(request, name, key)
    row = kept.system.read_row(name, key)
    if row is None or row.is_tombstone:
        msg = f"key {key!r} of {name!r} has no state"
        raise NotFound(msg)
    head = json.encode({"channel": channel_of(name, key), "epoch": row.epoch, "version": row.version})
    body = b'%b,"state":%b,"updated_at":%b}' % (head[:-1], row.state, json.encode(row.updated_at))
    response = Response(body, mimetype="application/json")
    response.set_etag(str(Position(row.epoch, row.version)))
    # Kept by the browser alone, and asked about each time: a 304 is cheap, an old state is wrong.
    response.cache_control.private = True
    response.cache_control.no_cache = True
    response.make_conditional(request)
    return response


def _client(file: str) -> Response:
    kind = _KINDS[file.rpartition(".")[2]]
    response = Response((_FOLDERS[file] / file).read_bytes(), mimetype=kind)
    response.add_etag()
    response.cache_control.max_age = _CLIENT_SECONDS
    # A page of another origin may import it: it is no secret, and holds none.
    response.headers["Access-Control-Allow-Origin"] = "*"
    response.make_conditional(request)
    return response


# -- errors


def _as_json(error: HTTPException) -> Response:
    code = (error.name or "error").lower().replace(" ", "_")
    body = json.encode({"error": {"code": code, "message": error.description or error.name}})
    response = Response(body, status=error.code, mimetype="application/json")
    retry_after = getattr(error, "retry_after", None)
    if retry_after is not None:
        response.headers["Retry-After"] = str(retry_after)
    return response


def _away(error: StoreUnavailable) -> Response:
    return _hidden(error, ServiceUnavailable(_AWAY, retry_after=_RETRY_SECONDS))


def _newer(error: NewerRow) -> Response:
    return _hidden(error, ServiceUnavailable(_NEWER, retry_after=_RETRY_SECONDS))


def _closed(_error: Closed) -> Response:
    return _as_json(ServiceUnavailable(_CLOSED, retry_after=_RETRY_SECONDS))


def _refused(error: StoreError) -> Response:
    """A row does not load, or the database refuses the question: no request will change that by itself."""
    return _hidden(error, InternalServerError(_REFUSED))


def _hidden(error: StoreError, answer: HTTPException) -> Response:
    """Log the error, and tell its text to operators alone.

    It names hosts, paths, users and values, and quotes drivers: the answer that others get is a fixed sentence.
    """
    level = logging.ERROR if answer.code == InternalServerError.code else logging.WARNING
    _logger.log(level, "%s", error, extra=error.facts)
    if current_state().access.admin.is_admin(request):
        answer.description = str(error)
    return _as_json(answer)
