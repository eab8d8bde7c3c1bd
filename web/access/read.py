"""Who may see what. Closed unless somebody opened it."""

from __future__ import annotations

import hmac
import io
import logging
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from flask import Flask, Request
from flask import request as current_request
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound, Unauthorized

from ...actors import InvalidKey, ProjectionKey, UnknownProjection
from ..live.connections.client_identity import ClientIdentity, May, Permission
from ..operator.overview import OVERVIEW
from .admin import Passes
from .origin import parse_origin
from .tickets import NO_TICKET, Tickets

if TYPE_CHECKING:
    from ...actors import ProjectionSystem
    from ..settings import WebSettings

Authorize = Callable[[Request, str, str], bool]
AuthorizeAdmin = Callable[[Request], bool]
Identify = Callable[[Request], str | None]

ADMIN_COOKIE = "keyfold_admin"
_AGAIN = "keyfold.asked_again"

_logger = logging.getLogger("keyfold.access")


class Access:
    """Decides for one app. A check that raises has refused: an error in it opens nothing."""

    def __init__(
        self,
        system: ProjectionSystem,
        settings: WebSettings,
        *,
        authorize: Authorize | None = None,
        authorize_admin: AuthorizeAdmin | None = None,
        identify: Identify | None = None,
    ) -> None:
        self._system = system
        self._settings = settings
        self._authorize = authorize
        self._authorize_admin = authorize_admin
        self._identify = identify
        self._origins = {parse_origin(given) for given in settings.allowed_origins}
        self._tickets: dict[str | bytes, Tickets] = {}
        """By secret key, which an app may set after ``init_app``."""
        self._passes = Passes(settings.admin_token)

    def after_fork(self) -> None:
        """In a forked child: take no lock that a thread of the parent may have held."""
        for tickets in self._tickets.values():
            tickets.after_fork()

    def check_address(self, name: str, key: str) -> None:
        """Raise NotFound for a name that is not registered, BadRequest for what can't be a key."""
        try:
            if name != OVERVIEW:
                self._system.runtime(name)
            ProjectionKey(key)
        except UnknownProjection:
            msg = f"there is no projection {name!r}"
            raise NotFound(msg) from None
        except InvalidKey as error:
            raise BadRequest(str(error)) from None

    def check_read(self, request: Request, name: str, key: str) -> None:
        """Let a request pass that may read the key. Raises NotFound, BadRequest or Forbidden."""
        self.check_address(name, key)
        if self._is_public(name):
            return
        check = self._authorize if name != OVERVIEW else None
        if check is not None and self._allows(lambda: check(request, name, key)):
            return
        if self.is_admin(request):
            return
        if check is None and name != OVERVIEW:
            _logger.warning("%s is not public, and no authorize callable is set: refused", name)
        msg = f"you may not read {name!r}"
        raise Forbidden(msg)

    def _is_public(self, name: str) -> bool:
        return name != OVERVIEW and self._system.runtime(name).projection.public

    # -- connections

    def admit(self, app: Flask, request: Request, address: tuple[str, str] | None) -> ClientIdentity:
        """Return who wants to watch a key, or (None) will say over the socket which keys.

        Raises Forbidden for a foreign origin, Unauthorized for a bad ticket, and as ``check_read``.
        """
        self.check_origin(request)
        remote = request.remote_addr or ""
        if address is not None:
            self.check_address(*address)
            ticket = request.args.get("ticket")
            if ticket is not None:
                user = self._redeem(app, ticket, *address)
                return ClientIdentity(remote, user, _never_asked, by_ticket=True)
            self.check_read(request, *address)
        user = self.user(request)
        if address is not None and self._is_public(address[0]):
            return ClientIdentity(remote, user, _never_asked)
        return ClientIdentity(remote, user, self._asked_again(app, request))

    def ticket(self, app: Flask, name: str, key: str, user: str | None) -> str:
        """Issue a ticket. Raises RuntimeError: the app has no secret key; else as ``check_address``."""
        self.check_address(name, key)
        office = self._ticket_office(app)
        if office is None:
            msg = "tickets are signed with the app's secret key; set app.secret_key"
            raise RuntimeError(msg)
        return office.issue(name, key, user)

    def _redeem(self, app: Flask, ticket: str, name: str, key: str) -> str | None:
        office = self._ticket_office(app)
        if office is None:  # so it has never issued one
            raise Unauthorized(NO_TICKET)
        return office.redeem(ticket, name, key)

    def _ticket_office(self, app: Flask) -> Tickets | None:
        """Return what issues and redeems tickets, or None: the app has no secret key."""
        secret = app.secret_key
        if not secret:
            return None
        # Two first requests may come at once: both get the one that is there first, or a ticket would be good twice.
        return self._tickets.get(secret) or self._tickets.setdefault(
            secret, Tickets(secret, self._settings.ticket_seconds)
        )

    def _asked_again(self, app: Flask, request: Request) -> May:
        """Return a function that asks ``authorize`` once more, with the request as it was."""
        kept = {name: value for name, value in request.environ.items() if isinstance(value, (str, tuple))}

        def may(name: str, key: str, ticket: str | None) -> Permission | None:
            environ = {**kept, _AGAIN: "", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
            try:
                with app.request_context(environ):
                    if ticket is not None:
                        return Permission(self._redeem(app, ticket, name, key))
                    self.check_read(current_request, name, key)
            except HTTPException:
                return None
            except Exception:
                _logger.exception("asking about %s again raised: refused", name)
                return None
            return Permission()

        return may

    def check_origin(self, request: Request) -> None:
        """Refuse a page of another origin: a browser sends the user's cookies along. Raises Forbidden.

        No browser omits the Origin of a WebSocket handshake, so a client without one is none.
        """
        given = request.headers.get("Origin")
        if given is not None and not self.admits(given, request):
            msg = f"the origin {given[:100]!r} is not allowed; KEYFOLD_ALLOWED_ORIGINS names those that are"
            raise Forbidden(msg)

    def admits(self, given: str, request: Request) -> bool:
        """Say whether pages of an origin may read here, with their user's cookies."""
        origin = parse_origin(given)
        if origin is None:
            return False
        here = parse_origin(f"{request.scheme}://{request.host}")
        return (here is not None and origin.is_of_host(here)) or origin in self._origins

    def check_admin(self, request: Request) -> None:
        """Let operators pass. Raises Forbidden."""
        if self.is_admin(request):
            return
        msg = "this needs authorize_admin to agree, or the bearer token of KEYFOLD_ADMIN_TOKEN"
        raise Forbidden(msg)

    def is_admin(self, request: Request) -> bool:
        """Say whether an operator asks: by bearer token, by the pass of the login page, or as the app says."""
        given = request.cookies.get(ADMIN_COOKIE)
        if self.has_admin_bearer(request) or self._passes.is_good(given, renewed=_AGAIN in request.environ):
            return True
        check = self._authorize_admin
        return check is not None and self._allows(lambda: check(request))

    def has_admin_bearer(self, request: Request) -> bool:
        """Say whether the admin token stands in the Authorization header."""
        return self.is_admin_token(_bearer(request))

    def is_admin_token(self, given: str) -> bool:
        """Say whether this is the admin token, without telling by the time it takes how much of it is right."""
        return _same(self._settings.admin_token, given)

    def check_metrics(self, request: Request) -> None:
        """Let the scraper pass that has the metrics token, and operators. Raises Forbidden."""
        if _same(self._settings.metrics_token, _bearer(request)) or self.is_admin(request):
            return
        msg = "this needs the bearer token of KEYFOLD_METRICS_TOKEN, or an operator"
        raise Forbidden(msg)

    def admin_pass(self) -> str:
        """Return the cookie of an operator who has shown the token."""
        return self._passes.issue()

    def renewed_pass(self, request: Request) -> str | None:
        """Return the cookie that replaces the one of this request, or None: it needs none."""
        return self._passes.renew(request.cookies.get(ADMIN_COOKIE))

    def user(self, request: Request) -> str | None:
        """Return the name of whoever asks, if the app tells."""
        return None if self._identify is None else self._identify(request)

    @staticmethod
    def _allows(check: Callable[[], bool]) -> bool:
        try:
            return check() is True
        except Exception:
            _logger.exception("an authorize callable raised: refused")
            return False


def _bearer(request: Request) -> str:
    given = request.authorization
    return (given.token or "") if given is not None and given.type == "bearer" else ""


def _same(wanted: str | None, given: str) -> bool:
    return bool(wanted and given) and hmac.compare_digest((wanted or "").encode(), given.encode())


def _never_asked(_name: str, _key: str, _ticket: str | None) -> Permission | None:
    return None  # of a public key, or one that a ticket opened: keeps no copy of the request
