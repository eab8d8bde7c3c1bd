"""The URLs of the operator's page. All but login and logout refuse a request that is not an operator's."""

from __future__ import annotations

import logging
from functools import partial
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any
from urllib.parse import quote

from flask import Blueprint, Response, redirect, request
from markupsafe import escape
from msgspec import json
from werkzeug.exceptions import (
    BadRequest,
    Conflict,
    Forbidden,
    LengthRequired,
    NotFound,
    RequestEntityTooLarge,
)

from ...actors import InvalidKey, ProjectionRuntime
from ...actors.errors import UnknownProjection
from ...store import StoreUnavailable
from ..access.admin import ADMIN_COOKIE, COOKIE_SECONDS, CSRF_COOKIE
from ..app_registry import current_state
from .actions import ACTIONS, REFUSALS
from .overview import SCAN_SECONDS

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as AnyResponse

_logger = logging.getLogger("keyfold.admin")

_PAGE = Template((Path(__file__).parent / "static" / "admin.html").read_text("utf-8"))
_MAX_BYTES = 64 * 1024
_MAX_STATE_BYTES = 16 * 1024 * 1024
"""The body of an action may contain a state."""

# The pages load nothing from elsewhere, and no page may frame them to trick an operator into a click.
_POLICY = (
    "default-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
)


def add_admin(blueprint: Blueprint) -> None:
    """Add the URLs of the operator's page."""
    rule = blueprint.add_url_rule
    rule("/admin/projections", "admin", _page, methods=["GET"])
    rule("/admin/projections/login", "admin_login", _login, methods=["POST"])
    rule("/admin/projections/logout", "admin_logout", _logout, methods=["POST"])
    rule("/admin/projections/overview", "overview", _overview, methods=["GET"])
    rule("/admin/projections/stats", "stats", _stats, methods=["GET"])
    rule("/admin/projections/of/<name>", "admin_projection", _page, methods=["GET"])
    rule("/admin/projections/of/<name>/facts", "admin_facts", _detail, methods=["GET"])
    rule("/admin/projections/of/<name>/raw", "admin_raw", _raw, methods=["GET"])
    rule("/admin/projections/of/<name>/actions", "admin_action", _act, methods=["POST"])
    blueprint.after_request(_renew_cookie)


# -- pages


def _page(name: str = "") -> AnyResponse:
    state = current_state()
    try:
        state.access.admin.check(request)
    except Forbidden:
        if state.settings.admin_token is None:
            raise
        return _html("login", name, status=403)
    if name:
        _runtime(name)
    return _html("projection" if name else "overview", name)


def _html(view: str, name: str, *, status: int = 200, message: str = "") -> Response:
    state = current_state()
    csrf = state.access.admin.csrf_token(request)
    values = {
        "view": view,
        "name": name,
        "prefix": state.settings.url_prefix,
        "root": request.script_root + state.settings.url_prefix,
        "csrf": csrf,
        "message": message,
        "title": name or "Projections",
    }
    body = _PAGE.substitute({word: str(escape(text)) for word, text in values.items()})
    response = Response(body, status=status, mimetype="text/html")
    _set_cookie(response, CSRF_COOKIE, csrf, None)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.cache_control.no_store = True
    return response


def _set_cookie(response: AnyResponse, name: str, value: str, seconds: int | None) -> None:
    # The path is that of the whole app, because the page's socket has to send the cookie too.
    response.set_cookie(
        name, value, max_age=seconds, secure=request.is_secure, httponly=True, samesite="Strict"
    )


def _login() -> AnyResponse:
    state = current_state()
    _check_post()
    if not state.access.admin.is_token(request.form.get("token", "")):
        _logger.warning(
            "a wrong admin token from %s", request.remote_addr, extra={"address": request.remote_addr}
        )
        return _html("login", "", status=403, message="That is not the token.")
    response = redirect(_url_of(request.form.get("name", "")), 303)
    _set_cookie(response, ADMIN_COOKIE, state.access.admin.issue_cookie(), COOKIE_SECONDS)
    return response


def _logout() -> AnyResponse:
    _check_post()
    response = redirect(_url_of(""), 303)
    response.delete_cookie(ADMIN_COOKIE, secure=request.is_secure, httponly=True, samesite="Strict")
    return response


def _renew_cookie(response: Response) -> Response:
    """Keep the operator of an open page signed in."""
    state = current_state()
    if request.method != "POST" and request.path.startswith(f"{state.settings.url_prefix}/admin/projections"):
        renewed = state.access.admin.renew_cookie(request)
        if renewed is not None:
            _set_cookie(response, ADMIN_COOKIE, renewed, COOKIE_SECONDS)
    return response


def _url_of(name: str) -> str:
    root = request.script_root + current_state().settings.url_prefix
    return f"{root}/admin/projections" + (f"/of/{quote(name, safe='')}" if name else "")


# -- stats and details


def _overview() -> Response:
    state = current_state()
    state.access.admin.check(request)
    try:
        return _as_response(state.system.ask(state.overview.stats, seconds=SCAN_SECONDS))
    except StoreUnavailable:
        return _as_response(state.overview.stats_of_this_process())


def _stats() -> Response:
    state = current_state()
    state.access.admin.check(request)
    return _as_response(state.system.stats())


def _detail(name: str) -> Response:
    state = current_state()
    state.access.admin.check(request)
    query = partial(state.overview.detail, _runtime(name), request.args.get("key"))
    try:
        return _as_response(state.system.ask(query, seconds=SCAN_SECONDS))
    except InvalidKey as error:
        raise BadRequest(str(error)) from None


def _raw(name: str) -> Response:
    state = current_state()
    state.access.admin.check(request)
    query = partial(state.overview.raw, _runtime(name), request.args.get("key", ""))
    try:
        return _as_response(state.system.ask(query))
    except InvalidKey as error:
        raise BadRequest(str(error)) from None


def _as_response(value: Any) -> Response:
    response = Response(json.encode(value), mimetype="application/json")
    response.cache_control.no_store = True
    return response


def _runtime(name: str) -> ProjectionRuntime[Any, Any]:
    try:
        return current_state().system.runtime(name)
    except UnknownProjection as error:
        raise NotFound(str(error)) from None


# -- actions


def _act(name: str) -> Response:
    """Carry out one of ACTIONS. Each is logged, with the name and the address of the operator."""
    state = current_state()
    state.access.admin.check(request)
    _check_post(_MAX_STATE_BYTES)
    runtime = _runtime(name)
    body = request.get_json(silent=True)
    if not isinstance(body, dict):
        msg = 'an action is a JSON object, as {"action": "retry", "letter": 7}'
        raise BadRequest(msg)
    act = ACTIONS.get(str(body.get("action")))
    if act is None:
        msg = f"the action must be one of {', '.join(ACTIONS)}"
        raise BadRequest(msg)
    details: dict[str, Any] = {
        "projection": name,
        "operator": state.access.user(request),
        "address": request.remote_addr,
    }
    details["wish"] = {
        field: body[field] for field in ("action", "letter", "key", "position", "client") if field in body
    }
    _logger.warning("an operator asks for an action on %s: %s", name, details["wish"], extra=details)
    try:
        return _as_response({"message": act(runtime, body)})
    except InvalidKey as error:
        raise BadRequest(str(error)) from None
    except REFUSALS as error:
        _logger.warning("the action was refused: %s", error, extra=details)
        raise Conflict(str(error)) from None


def _check_post(max_bytes: int = _MAX_BYTES) -> None:
    """Refuse a POST that is too long, and one that another site may have made the operator's browser send."""
    if request.content_length is None:
        msg = "send a Content-Length"
        raise LengthRequired(msg)
    if request.content_length > max_bytes:
        msg = f"at most {max_bytes} bytes"
        raise RequestEntityTooLarge(msg)
    current_state().access.admin.check_csrf(request)
