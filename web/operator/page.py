"""The operator's page and what can be done on it. Closed unless somebody opened it."""

from __future__ import annotations

import hmac
import logging
import secrets
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

from ...actors import (
    InvalidKey,
    ProjectionRuntime,
    UnknownProjection,
)
from ...store import StoreUnavailable
from ..access.admin import PASS_SECONDS
from ..access.read import ADMIN_COOKIE
from ..app_registry import current_state
from .actions import ACTIONS, REFUSALS
from .overview import SCAN_SECONDS

if TYPE_CHECKING:
    from werkzeug.wrappers import Response as AnyResponse

_logger = logging.getLogger("keyfold.admin")

_PAGE = Template((Path(__file__).parent / "static" / "admin.html").read_text("utf-8"))
_MOST_BYTES = 64 * 1024
_MOST_STATE_BYTES = 16 * 1024 * 1024
"""An action of an operator may bring a state."""
CSRF_COOKIE = "keyfold_csrf"

# Everything the pages load is ours, and nobody frames them: a click on "skip" is to be the operator's own.
_POLICY = (
    "default-src 'self'; style-src 'self'; img-src 'self' data:; frame-ancestors 'none'; base-uri 'none'"
)


def add_admin(blueprint: Blueprint) -> None:
    """Add the operator's URLs."""
    rule = blueprint.add_url_rule
    rule("/admin/projections", "admin", _page, methods=["GET"])
    rule("/admin/projections/login", "admin_login", _login, methods=["POST"])
    rule("/admin/projections/logout", "admin_logout", _logout, methods=["POST"])
    rule("/admin/projections/overview", "overview", _overview, methods=["GET"])
    rule("/admin/projections/stats", "stats", _stats, methods=["GET"])
    rule("/admin/projections/of/<name>", "admin_projection", _page, methods=["GET"])
    rule("/admin/projections/of/<name>/facts", "admin_facts", _facts, methods=["GET"])
    rule("/admin/projections/of/<name>/raw", "admin_raw", _raw, methods=["GET"])
    rule("/admin/projections/of/<name>/actions", "admin_action", _act, methods=["POST"])
    blueprint.after_request(_renew_pass)


# -- pages


def _page(name: str = "") -> AnyResponse:
    kept = current_state()
    try:
        kept.access.check_admin(request)
    except Forbidden:
        if kept.settings.admin_token is None:
            raise
        return _html("login", name, status=403)
    if name:
        _runtime(name)
    return _html("projection" if name else "overview", name)


def _html(view: str, name: str, *, status: int = 200, message: str = "") -> Response:
    csrf = request.cookies.get(CSRF_COOKIE) or secrets.token_urlsafe(24)
    facts = {
        "view": view,
        "name": name,
        "prefix": current_state().settings.url_prefix,
        "root": request.script_root + current_state().settings.url_prefix,
        "csrf": csrf,
        "message": message,
        "title": name or "Projections",
    }
    body = _PAGE.substitute({word: str(escape(text)) for word, text in facts.items()})
    response = Response(body, status=status, mimetype="text/html")
    _set_cookie(response, CSRF_COOKIE, csrf, None)
    response.headers["Content-Security-Policy"] = _POLICY
    response.headers["Referrer-Policy"] = "same-origin"
    response.cache_control.no_store = True
    return response


def _set_cookie(response: AnyResponse, name: str, value: str, seconds: int | None) -> None:
    # The path is all of the app, as the page's socket has to show it too.
    response.set_cookie(
        name, value, max_age=seconds, secure=request.is_secure, httponly=True, samesite="Strict"
    )


def _login() -> AnyResponse:
    kept = current_state()
    _check_csrf()
    if not kept.access.is_admin_token(request.form.get("token", "")):
        _logger.warning(
            "a wrong admin token from %s", request.remote_addr, extra={"address": request.remote_addr}
        )
        return _html("login", "", status=403, message="That is not the token.")
    response = redirect(_back(request.form.get("name", "")), 303)
    _set_cookie(response, ADMIN_COOKIE, kept.access.admin_pass(), PASS_SECONDS)
    return response


def _logout() -> AnyResponse:
    _check_csrf()
    response = redirect(_back(""), 303)
    response.delete_cookie(ADMIN_COOKIE, secure=request.is_secure, httponly=True, samesite="Strict")
    return response


def _renew_pass(response: Response) -> Response:
    """Let an operator stay signed in who is still there."""
    kept = current_state()
    if request.method != "POST" and request.path.startswith(f"{kept.settings.url_prefix}/admin/projections"):
        renewed = kept.access.renewed_pass(request)
        if renewed is not None:
            _set_cookie(response, ADMIN_COOKIE, renewed, PASS_SECONDS)
    return response


def _back(name: str) -> str:
    root = request.script_root + current_state().settings.url_prefix
    return f"{root}/admin/projections" + (f"/of/{quote(name, safe='')}" if name else "")


# -- facts


def _overview() -> Response:
    kept = current_state()
    kept.access.check_admin(request)
    try:
        return _as_response(kept.system.ask(kept.overview.facts, seconds=SCAN_SECONDS))
    except StoreUnavailable:
        return _as_response(kept.overview.facts_of_this_process())


def _stats() -> Response:
    kept = current_state()
    kept.access.check_admin(request)
    return _as_response(kept.system.stats())


def _facts(name: str) -> Response:
    kept = current_state()
    kept.access.check_admin(request)
    ask = partial(kept.overview.detail, _runtime(name), request.args.get("key"))
    try:
        return _as_response(kept.system.ask(ask, seconds=SCAN_SECONDS))
    except InvalidKey as error:
        raise BadRequest(str(error)) from None


def _raw(name: str) -> Response:
    kept = current_state()
    kept.access.check_admin(request)
    ask = partial(kept.overview.raw, _runtime(name), request.args.get("key", ""))
    try:
        return _as_response(kept.system.ask(ask))
    except InvalidKey as error:
        raise BadRequest(str(error)) from None


def _as_response(facts: Any) -> Response:
    response = Response(json.encode(facts), mimetype="application/json")
    response.cache_control.no_store = True
    return response


def _runtime(name: str) -> ProjectionRuntime[Any, Any]:
    try:
        return current_state().system.runtime(name)
    except UnknownProjection as error:
        raise NotFound(str(error)) from None


# -- actions


def _act(name: str) -> Response:
    """Do one of ACTIONS. Each is logged, with the name and address of the operator."""
    kept = current_state()
    kept.access.check_admin(request)
    _check_csrf(_MOST_STATE_BYTES)
    runtime = _runtime(name)
    wish = request.get_json(silent=True)
    if not isinstance(wish, dict):
        msg = 'an action is a JSON object, as {"action": "retry", "letter": 7}'
        raise BadRequest(msg)
    act = ACTIONS.get(str(wish.get("action")))
    if act is None:
        msg = f"the action must be one of {', '.join(ACTIONS)}"
        raise BadRequest(msg)
    facts: dict[str, Any] = {
        "projection": name,
        "operator": kept.access.user(request),
        "address": request.remote_addr,
    }
    facts["wish"] = {
        word: wish[word] for word in ("action", "letter", "key", "position", "client") if word in wish
    }
    _logger.warning("an operator asks of %s: %s", name, facts["wish"], extra=facts)
    try:
        return _as_response({"message": act(runtime, wish)})
    except InvalidKey as error:
        raise BadRequest(str(error)) from None
    except REFUSALS as error:
        _logger.warning("it was refused: %s", error, extra=facts)
        raise Conflict(str(error)) from None


def _check_csrf(most: int = _MOST_BYTES) -> None:
    """Refuse a POST that another site may have made the operator's browser send, and one that is too long.

    The word of the cookie has to come back in the request itself, which only a page of ours can read. A
    bearer token is no cookie: no browser sends it by itself.
    """
    if request.content_length is None:
        msg = "send a Content-Length"
        raise LengthRequired(msg)
    if request.content_length > most:
        msg = f"at most {most} bytes"
        raise RequestEntityTooLarge(msg)
    access = current_state().access
    if access.has_admin_bearer(request):
        return
    access.check_origin(request)
    cookie = request.cookies.get(CSRF_COOKIE, "")
    given = request.headers.get("X-Keyfold-CSRF") or request.form.get("csrf", "")
    if not cookie or not hmac.compare_digest(cookie.encode(), given.encode()):
        msg = "the CSRF word is missing or wrong: reload the page and try again"
        raise Forbidden(msg)
