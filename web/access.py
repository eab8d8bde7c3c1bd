"""Who may see what. Closed unless somebody opened it."""

from __future__ import annotations

import hmac
import logging
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import urlsplit

from flask import Request
from werkzeug.exceptions import BadRequest, Forbidden, NotFound

from ..actors import InvalidKey, ProjectionKey, UnknownProjection

if TYPE_CHECKING:
    from ..actors import ProjectionSystem
    from .settings import WebSettings

Authorize = Callable[[Request, str, str], bool]
AuthorizeAdmin = Callable[[Request], bool]

_logger = logging.getLogger("keyfold.access")
_DEFAULT_PORTS = {"http": 80, "https": 443, "ws": 80, "wss": 443}


class Access:
    """Decides for one app. A check that raises has refused: an error in it opens nothing."""

    def __init__(
        self,
        system: ProjectionSystem,
        settings: WebSettings,
        authorize: Authorize | None,
        authorize_admin: AuthorizeAdmin | None,
    ) -> None:
        self._system = system
        self._settings = settings
        self._authorize = authorize
        self._authorize_admin = authorize_admin
        self._origins = {origin for given in settings.allowed_origins if (origin := _origin(given))}

    def check_read(self, request: Request, name: str, key: str) -> str:
        """Return the key if this request may read it. Raises NotFound, BadRequest or Forbidden."""
        try:
            projection = self._system.runtime(name).projection
        except UnknownProjection:
            msg = f"there is no projection {name!r}"
            raise NotFound(msg) from None
        try:
            ProjectionKey(key)
        except InvalidKey as error:
            raise BadRequest(str(error)) from None
        if projection.public:
            return key
        check = self._authorize
        if check is None:
            _logger.warning("%s is not public, and no authorize callable is set: refused", name)
        elif self._allows(lambda: check(request, name, key)):
            return key
        msg = f"you may not read {name!r}"
        raise Forbidden(msg)

    def check_origin(self, request: Request) -> None:
        """Refuse a page of another origin: a browser sends the user's cookies along. Raises Forbidden.

        No browser omits the Origin of a WebSocket handshake, so a client without one is none.
        """
        given = request.headers.get("Origin")
        if given is None:
            return
        origin = _origin(given)
        here = _origin(f"{request.scheme}://{request.host}")
        # The scheme is left out: behind a proxy that ends TLS the app may see http where the page was https.
        same_host = origin is not None and here is not None and _host(origin, given) == _host(here, given)
        if not same_host and origin not in self._origins:
            msg = f"the origin {given[:100]!r} is not allowed; KEYFOLD_ALLOWED_ORIGINS names those that are"
            raise Forbidden(msg)

    def check_admin(self, request: Request) -> None:
        """Let operators pass. Raises Forbidden."""
        token, given = self._settings.admin_token, request.authorization
        bearer = given.token if given is not None and given.type == "bearer" else None
        if token and bearer and hmac.compare_digest(token.encode(), bearer.encode()):
            return
        check = self._authorize_admin
        if check is not None and self._allows(lambda: check(request)):
            return
        msg = "this needs authorize_admin to agree, or the bearer token of KEYFOLD_ADMIN_TOKEN"
        raise Forbidden(msg)

    @staticmethod
    def _allows(check: Callable[[], bool]) -> bool:
        try:
            return check() is True
        except Exception:
            _logger.exception("an authorize callable raised: refused")
            return False


def _origin(text: str) -> tuple[str, str, int] | None:
    """Return (scheme, host, port) of an origin, or None if it is not one (such as ``null``)."""
    try:
        parts = urlsplit(text)
        port = parts.port or _DEFAULT_PORTS.get(parts.scheme)
    except ValueError:
        return None
    if not parts.hostname or port is None:
        return None
    return parts.scheme, parts.hostname, port


def _host(origin: tuple[str, str, int], given: str) -> tuple[str, int]:
    """Return host and port, with a default port of either scheme taken as the one of the given origin."""
    scheme, host, port = origin
    if port == _DEFAULT_PORTS.get(scheme):
        port = _DEFAULT_PORTS.get(urlsplit(given).scheme, port)
    return host, port
