"""The routes: sockets and streams of keys, snapshots over HTTP, the browser client, the operator's pages."""

from __future__ import annotations

import logging
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, request
from flask_sock import Sock
from msgspec import json
from werkzeug.exceptions import HTTPException, InternalServerError, NotFound, ServiceUnavailable

from ..actors import Closed
from ..actors.broadcaster import channel_of
from ..actors.errors import NewerRow
from ..store import Position, StoreError, StoreUnavailable
from .app_registry import current_state
from .live.connections.event_stream import PREAMBLE, EventStream
from .operator.page import add_admin
from .operator.probes import add_probes
from .socket_takeover import Stream
from .sockets import CLOSED, RETRY_SECONDS, SocketRoutes, admit, begin_takeover, leave_open, unused

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
_UNAVAILABLE = "the database can't be reached at the moment; try again"
_NEWER = "a newer release has written this, which this server does not know yet; try again"
_REFUSED = "this can't be read; the server's log says why"
_CLIENT_MAX_AGE = 3600
_KINDS = {"js": "text/javascript", "ts": "text/plain", "css": "text/css"}
_CROSS_ORIGIN = ("keyfold.stream", "keyfold.snapshot")


def make_blueprint(settings: WebSettings, sock: Sock) -> Blueprint:
    """Return the routes, all below the URL prefix.

    Args:
        settings: The settings, with the prefix.
        sock: The Flask-Sock extension that answers the handshakes.
    """
    blueprint = Blueprint("keyfold", __name__, url_prefix=settings.url_prefix or None)
    # A key may hold slashes, also two in a row: nothing is to be merged.
    of_key: dict[str, Any] = {"methods": ["GET"], "merge_slashes": False}
    sockets = SocketRoutes(blueprint)
    sock.route("/ws/projection/<name>/<path:key>", bp=sockets, endpoint="socket", **of_key)(leave_open)
    sock.route("/ws/projection", bp=sockets, endpoint="sockets", methods=["GET"])(leave_open)
    rule = blueprint.add_url_rule
    rule("/sse/projection/<name>/<path:key>", "stream", _stream, **of_key)
    rule("/projection/<name>/<path:key>", "snapshot", _snapshot, **of_key)
    rule(
        "/keyfold/<any('keyfold.js', 'keyfold.d.ts', 'admin.js', 'admin_parts.js', 'admin.css'):file>",
        "client",
        _client,
        methods=["GET"],
    )
    add_admin(blueprint)
    add_probes(blueprint)
    blueprint.after_request(_add_headers)
    blueprint.register_error_handler(HTTPException, _as_json)
    blueprint.register_error_handler(StoreUnavailable, _unavailable)
    blueprint.register_error_handler(NewerRow, _newer)
    blueprint.register_error_handler(Closed, _closed)
    blueprint.register_error_handler(StoreError, _refused)
    return blueprint


# -- streams


def _stream(name: str, key: str) -> Response:
    admission = admit([(name, key)], request.headers.get("Last-Event-ID") or request.args.get("since"))
    if request.method == "HEAD":
        return Response(mimetype="text/event-stream")
    hub, takeover, calls = current_state().hub, begin_takeover(), unused()

    def adopt(sock: socket.socket) -> None:
        stream = EventStream(
            sock, hub, admission.identity, takeover.hold(admission.slot), admission.checked_at
        )
        calls.clear()
        hub.adopt(stream, [(name, key, admission.since)], carried=takeover.carried)

    return Stream(takeover, adopt, PREAMBLE)


# -- HTTP


def _add_headers(response: Response) -> Response:
    """Forbid browsers to guess another type, and let pages of allowed origins read streams and snapshots."""
    response.headers["X-Content-Type-Options"] = "nosniff"
    origin = request.headers.get("Origin")
    if request.endpoint in _CROSS_ORIGIN:
        response.vary.add("Origin")
        if origin is not None and current_state().access.origins.admits(origin, request):
            response.access_control_allow_origin = origin
            response.access_control_allow_credentials = True
    return response


def _snapshot(name: str, key: str) -> Response:
    state = current_state()
    state.access.check_read(request, name, key)
    row = state.system.read_row(name, key)
    if row is None or row.is_tombstone:
        msg = f"key {key!r} of {name!r} has no state"
        raise NotFound(msg)
    head = json.encode({"channel": channel_of(name, key), "epoch": row.epoch, "version": row.version})
    body = b'%b,"state":%b,"updated_at":%b}' % (head[:-1], row.state, json.encode(row.updated_at))
    response = Response(body, mimetype="application/json")
    response.set_etag(str(Position(row.epoch, row.version)))
    # For the browser's cache alone, which revalidates it each time: a 304 is cheap, an old state is wrong.
    response.cache_control.private = True
    response.cache_control.no_cache = True
    response.make_conditional(request)
    return response


def _client(file: str) -> Response:
    kind = _KINDS[file.rpartition(".")[2]]
    response = Response((_FOLDERS[file] / file).read_bytes(), mimetype=kind)
    response.add_etag()
    response.cache_control.max_age = _CLIENT_MAX_AGE
    # A page of another origin may import it: it is not secret.
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


def _unavailable(error: StoreUnavailable) -> Response:
    return _log_and_answer(error, ServiceUnavailable(_UNAVAILABLE, retry_after=RETRY_SECONDS))


def _newer(error: NewerRow) -> Response:
    return _log_and_answer(error, ServiceUnavailable(_NEWER, retry_after=RETRY_SECONDS))


def _closed(_error: Closed) -> Response:
    return _as_json(ServiceUnavailable(CLOSED, retry_after=RETRY_SECONDS))


def _refused(error: StoreError) -> Response:
    """Answer when a row does not load, or the database refuses the query: a retry would fail alike."""
    return _log_and_answer(error, InternalServerError(_REFUSED))


def _log_and_answer(error: StoreError, answer: HTTPException) -> Response:
    """Log the error, and show its text to operators alone.

    The text names hosts, paths, users and values, and quotes drivers. All others get a fixed sentence.
    """
    level = logging.ERROR if answer.code == InternalServerError.code else logging.WARNING
    _logger.log(level, "%s", error, extra=error.facts)
    if current_state().access.admin.is_admin(request):
        answer.description = str(error)
    return _as_json(answer)
