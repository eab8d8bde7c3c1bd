"""Operators: the admin token, the cookie that replaces it after the login, and the CSRF token of forms."""

from __future__ import annotations

import hmac
import logging
import secrets
from collections.abc import Callable
from time import time
from typing import TYPE_CHECKING, Protocol

import msgspec
from itsdangerous import BadData, URLSafeSerializer
from werkzeug.exceptions import Forbidden

if TYPE_CHECKING:
    from flask import Request

    from .origin import AllowedOrigins

ADMIN_COOKIE = "keyfold_admin"
CSRF_COOKIE = "keyfold_csrf"
COOKIE_SECONDS = 3600
"""How long an admin cookie is valid. A page that is used or open renews it."""
LOGIN_SECONDS = 12 * 3600
"""How long after the login an admin cookie is renewed at most."""
REAUTHORIZING = "keyfold.reauthorizing"
"""Set in the environ of a request that is checked again for a connection that it opened earlier."""

_logger = logging.getLogger("keyfold.access")

_Times = tuple[float, float]
"""The times of the login and of the cookie's issue."""


class AuthorizeAdmin(Protocol):
    """The app's decision whether a request comes from an operator.

    It is called on the request's thread, and on a thread of ``Checks`` to authorize an open connection again.
    Any result but True, and any exception, refuses.
    """

    def __call__(self, request: Request, /) -> bool:
        """Return True to allow."""


class AdminAccess:
    """The rights of operators. An error in ``authorize_admin`` refuses."""

    def __init__(
        self,
        admin_token: str | None,
        metrics_token: str | None,
        origins: AllowedOrigins,
        authorize_admin: AuthorizeAdmin | None = None,
    ) -> None:
        self._admin_token = admin_token
        self._metrics_token = metrics_token
        self._origins = origins
        self._authorize_admin = authorize_admin
        self._cookies = AdminCookies(admin_token)

    def check(self, request: Request) -> None:
        """Refuse a request that does not come from an operator. Raises Forbidden."""
        if self.is_admin(request):
            return
        msg = "this needs authorize_admin to agree, or the bearer token of KEYFOLD_ADMIN_TOKEN"
        raise Forbidden(msg)

    def is_admin(self, request: Request) -> bool:
        """Return whether a request comes from an operator: by bearer token, cookie or ``authorize_admin``."""
        cookie = request.cookies.get(ADMIN_COOKIE)
        if self._has_bearer(request) or self._cookies.is_valid(
            cookie, until_login_ends=REAUTHORIZING in request.environ
        ):
            return True
        authorize = self._authorize_admin
        return authorize is not None and allows(lambda: authorize(request))

    def _has_bearer(self, request: Request) -> bool:
        return self.is_token(_bearer(request))

    def is_token(self, text: str) -> bool:
        """Return whether a text is the admin token, compared in constant time."""
        return _is_secret(self._admin_token, text)

    def check_metrics(self, request: Request) -> None:
        """Refuse a request that has neither the metrics token nor an operator's rights. Raises Forbidden."""
        if _is_secret(self._metrics_token, _bearer(request)) or self.is_admin(request):
            return
        msg = "this needs the bearer token of KEYFOLD_METRICS_TOKEN, or an operator"
        raise Forbidden(msg)

    # -- cookies

    def issue_cookie(self) -> str:
        """Return the value of ADMIN_COOKIE, after a login with the token."""
        return self._cookies.issue()

    def renew_cookie(self, request: Request) -> str | None:
        """Return the value that replaces this request's ADMIN_COOKIE, or None: no new one is needed."""
        return self._cookies.renew(request.cookies.get(ADMIN_COOKIE))

    # -- forged requests

    def csrf_token(self, request: Request) -> str:
        """Return the CSRF token of this browser, a new one for a browser that has none."""
        return request.cookies.get(CSRF_COOKIE) or secrets.token_urlsafe(24)

    def check_csrf(self, request: Request) -> None:
        """Refuse a POST that another site may have made the operator's browser send.

        The token of the cookie has to be repeated in the header ``X-Keyfold-CSRF`` or the form's field
        ``csrf``: only a page of this app can read it. A request with the bearer token needs no CSRF token,
        because no browser sends a bearer token by itself.

        Raises:
            Forbidden: The token is missing or wrong, or the page is of another origin.
        """
        if self._has_bearer(request):
            return
        self._origins.check(request)
        cookie = request.cookies.get(CSRF_COOKIE, "")
        repeated = request.headers.get("X-Keyfold-CSRF") or request.form.get("csrf", "")
        if not cookie or not hmac.compare_digest(cookie.encode(), repeated.encode()):
            msg = "the CSRF token is missing or wrong: reload the page and try again"
            raise Forbidden(msg)


class AdminCookies:
    """Issues and renews admin cookies, signed with the admin token: a new token invalidates all of them."""

    def __init__(self, admin_token: str | None, clock: Callable[[], float] = time) -> None:
        self._serializer = None if admin_token is None else URLSafeSerializer(admin_token, "keyfold.admin")
        self._clock = clock

    def issue(self) -> str:
        """Return a new cookie. Raises RuntimeError: there is no admin token to sign it with."""
        now = self._clock()
        return self._signed((now, now))

    def is_valid(self, cookie: str | None, *, until_login_ends: bool = False) -> bool:
        """Return whether a cookie shows an operator.

        Args:
            cookie: The cookie's value, if the request has one.
            until_login_ends: Accept it for LOGIN_SECONDS after the login, as if it had been renewed. A
                connection needs this: it can show only the cookie that it was opened with.
        """
        times = self._times(cookie)
        return times is not None and (until_login_ends or self._clock() - times[1] <= COOKIE_SECONDS)

    def renew(self, cookie: str | None) -> str | None:
        """Return a cookie to replace this one, or None: it is invalid, or still new."""
        times = self._times(cookie)
        if times is None or not COOKIE_SECONDS / 4 <= self._clock() - times[1] <= COOKIE_SECONDS:
            return None
        return self._signed((times[0], self._clock()))

    def _times(self, cookie: str | None) -> _Times | None:
        if cookie is None or self._serializer is None:
            return None
        try:
            times: _Times = msgspec.convert(self._serializer.loads(cookie), _Times)
        except (BadData, msgspec.ValidationError):
            return None
        return times if self._clock() - times[0] <= LOGIN_SECONDS else None

    def _signed(self, times: _Times) -> str:
        if self._serializer is None:
            msg = "admin cookies are signed with the admin token; set KEYFOLD_ADMIN_TOKEN"
            raise RuntimeError(msg)
        signed = self._serializer.dumps(times)
        return signed if isinstance(signed, str) else signed.decode()


def allows(authorize: Callable[[], bool]) -> bool:
    """Return whether an authorize callable of the app agrees. One that raises refuses."""
    try:
        return authorize() is True
    except Exception:
        _logger.exception("an authorize callable raised: refused")
        return False


def _bearer(request: Request) -> str:
    header = request.authorization
    return (header.token or "") if header is not None and header.type == "bearer" else ""


def _is_secret(secret: str | None, text: str) -> bool:
    return bool(secret and text) and hmac.compare_digest((secret or "").encode(), text.encode())
