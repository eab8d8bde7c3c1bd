"""The URLs: one channel as a socket, its snapshot over HTTP, and the operator's numbers."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from flask import Blueprint, Response, g, request
from flask_sock import Sock
from msgspec import json
from werkzeug.exceptions import HTTPException, NotFound, ServiceUnavailable, TooManyRequests

from ..actors import Closed, channel_of
from ..store import Position, StoreError
from .hub import TooManySockets
from .sockets import SocketSession
from .state import current_state

if TYPE_CHECKING:
    from .settings import WebSettings

_RAW_SOCKETS = ("werkzeug.socket", "gunicorn.socket", "eventlet.input")
_SUBSCRIBER = "_keyfold_subscriber"


class NoRawSocket(HTTPException):
    """The server in front hands an app no socket."""

    code = 501


def make_blueprint(settings: WebSettings) -> Blueprint:
    """Return the routes, all below the URL prefix."""
    blueprint = Blueprint("keyfold", __name__, url_prefix=settings.url_prefix or None)
    sock = Sock()
    # A key may hold slashes, two in a row as well: nothing is to be merged.
    address: dict[str, Any] = {"bp": blueprint, "merge_slashes": False}
    blueprint.before_request(_check_handshake)
    blueprint.teardown_request(_forget_subscriber)
    sock.route("/ws/projection/<name>/<path:key>", endpoint="socket", **address)(_socket)
    blueprint.add_url_rule(
        "/projection/<name>/<path:key>", "snapshot", _snapshot, methods=["GET"], merge_slashes=False
    )
    blueprint.add_url_rule("/admin/projections/stats", "stats", _stats, methods=["GET"])
    blueprint.register_error_handler(HTTPException, _as_json)
    blueprint.register_error_handler(StoreError, _database_away)
    blueprint.register_error_handler(Closed, _database_away)
    return blueprint


# -- the socket


def _check_handshake() -> None:
    """Refuse before the upgrade, so that a client that may not gets a real HTTP status."""
    if request.endpoint is None or not request.endpoint.endswith(".socket"):
        return
    environ = request.environ
    gevent = environ.get("SERVER_SOFTWARE", "").startswith("gevent")
    if not gevent and not any(name in environ for name in _RAW_SOCKETS):
        msg = "this server gives an app no raw socket, so it has no WebSockets; gunicorn and Werkzeug do"
        raise NoRawSocket(msg)
    kept, arguments = current_state(), request.view_args or {}
    name, key = arguments["name"], arguments["key"]
    kept.access.check_origin(request)
    kept.access.check_read(request, name, key)
    try:
        subscriber = kept.hub.subscribe(name, key, request.remote_addr or "")
    except TooManySockets as error:
        raise TooManyRequests(str(error), retry_after=10) from None
    setattr(g, _SUBSCRIBER, subscriber)


def _socket(ws: Any, name: str, key: str) -> None:
    kept = current_state()
    subscriber = getattr(g, _SUBSCRIBER)
    SocketSession(ws, subscriber, kept, (name, key)).run()


def _forget_subscriber(_error: BaseException | None) -> None:
    subscriber = g.pop(_SUBSCRIBER, None)
    if subscriber is not None:
        current_state().hub.unsubscribe(subscriber, request.remote_addr or "")


# -- HTTP


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


def _stats() -> Response:
    kept = current_state()
    kept.access.check_admin(request)
    response = Response(json.encode(kept.system.stats()), mimetype="application/json")
    response.cache_control.no_store = True
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


def _database_away(error: Exception) -> Response:
    return _as_json(ServiceUnavailable(str(error), retry_after=2))
