"""Reading rights. A key is readable if its projection is public, or if the app's ``authorize`` allows it."""

from __future__ import annotations

import io
import logging
import sys
from typing import TYPE_CHECKING, Protocol

from flask import Flask, Request
from flask import request as current_request
from werkzeug.exceptions import BadRequest, Forbidden, HTTPException, NotFound, Unauthorized

from ...actors import InvalidKey, ProjectionKey
from ...actors.errors import UnknownProjection
from ..live.connections.client_identity import ClientIdentity, May, Permission
from ..live.sources import ReadableBy
from .admin import REAUTHORIZING, AdminAccess, AuthorizeAdmin, allows
from .origin import AllowedOrigins
from .tickets import INVALID_TICKET, Tickets

if TYPE_CHECKING:
    from ..live.sources import Sources
    from ..settings import WebSettings

_logger = logging.getLogger("keyfold.access")


class Authorize(Protocol):
    """The app's decision whether a request may read the key ``key`` of the projection ``name``.

    It is called on the request's thread, and on a thread of ``Checks`` for a subscription over an open socket
    and to authorize an open connection again. Any result but True, and any exception, refuses.
    """

    def __call__(self, request: Request, name: str, key: str, /) -> bool:
        """Return True to allow."""


class Identify(Protocol):
    """Names the user behind a request, or returns None. It is called on the request's thread."""

    def __call__(self, request: Request, /) -> str | None:
        """Return the user's name."""


class Access:
    """The access rules of one app: reading rights here, ``origins`` and ``admin`` beside them.

    An error in a check of the app refuses.
    """

    def __init__(
        self,
        sources: Sources,
        settings: WebSettings,
        *,
        authorize: Authorize | None = None,
        authorize_admin: AuthorizeAdmin | None = None,
        identify: Identify | None = None,
    ) -> None:
        self.origins = AllowedOrigins(settings.allowed_origins)
        self.admin = AdminAccess(settings.admin_token, settings.metrics_token, self.origins, authorize_admin)
        self._sources = sources
        self._settings = settings
        self._authorize = authorize
        self._identify = identify
        self._tickets: dict[str | bytes, Tickets] = {}
        """By secret key, which an app may set after ``init_app``."""

    def after_fork(self) -> None:
        """In a forked child: replace the locks that a thread of the parent may have held."""
        for tickets in self._tickets.values():
            tickets.after_fork()

    def check_row_key(self, name: str, key: str) -> None:
        """Check that a projection is registered and that its key is well-formed.

        Raises:
            NotFound: No projection has this name.
            BadRequest: The text cannot be a key.
        """
        try:
            self._sources.get(name)
            ProjectionKey(key)
        except UnknownProjection:
            msg = f"there is no projection {name!r}"
            raise NotFound(msg) from None
        except InvalidKey as error:
            raise BadRequest(str(error)) from None

    def check_read(self, request: Request, name: str, key: str) -> None:
        """Refuse a request that may not read the key. Raises NotFound, BadRequest or Forbidden."""
        self.check_row_key(name, key)
        readable_by = self._sources.get(name).readable_by
        if readable_by is ReadableBy.EVERYONE:
            return
        check = self._authorize if readable_by is ReadableBy.AUTHORIZED else None
        if check is not None and allows(lambda: check(request, name, key)):
            return
        if self.admin.is_admin(request):
            return
        if check is None and readable_by is ReadableBy.AUTHORIZED:
            _logger.warning("%s is not public, and no authorize callable is set: refused", name)
        msg = f"you may not read {name!r}"
        raise Forbidden(msg)

    def user(self, request: Request) -> str | None:
        """Return the name of the user behind a request, or None if the app does not name it."""
        return None if self._identify is None else self._identify(request)

    # -- connections

    def admit(self, app: Flask, request: Request, row_key: tuple[str, str] | None) -> ClientIdentity:
        """Return the identity of a client that may connect.

        Args:
            app: The app of the request.
            request: The handshake, or the request for a stream.
            row_key: The (name, key) to watch, or None for a client that will name its keys over the socket.

        Raises:
            Forbidden: The page is of another origin, or the client may not read the key.
            Unauthorized: The ticket is invalid.
            NotFound: No projection has this name.
            BadRequest: The text cannot be a key.
        """
        self.origins.check(request)
        client_address = request.remote_addr or ""
        if row_key is not None:
            self.check_row_key(*row_key)
            ticket = request.args.get("ticket")
            if ticket is not None:
                user = self._redeem(app, ticket, *row_key)
                return ClientIdentity(client_address, user, _may_not, by_ticket=True)
            self.check_read(request, *row_key)
        user = self.user(request)
        if row_key is not None and self._sources.is_public(row_key[0]):
            return ClientIdentity(client_address, user, _may_not)
        return ClientIdentity(client_address, user, self._reauthorize(app, request))

    def _reauthorize(self, app: Flask, request: Request) -> May:
        """Return a function that checks a key with a copy of the request as it was."""
        copied = {name: value for name, value in request.environ.items() if isinstance(value, (str, tuple))}

        def may(name: str, key: str, ticket: str | None) -> Permission | None:
            environ = {**copied, REAUTHORIZING: "", "wsgi.input": io.BytesIO(), "wsgi.errors": sys.stderr}
            try:
                with app.request_context(environ):
                    if ticket is not None:
                        return Permission(self._redeem(app, ticket, name, key))
                    self.check_read(current_request, name, key)
            except HTTPException:
                return None
            except Exception:
                _logger.exception("authorizing %s again raised: refused", name)
                return None
            return Permission()

        return may

    # -- tickets

    def ticket(self, app: Flask, name: str, key: str, user: str | None) -> str:
        """Issue a ticket that opens one connection to one key.

        Raises:
            RuntimeError: The app has no secret key to sign it with.
            NotFound: No projection has this name.
            BadRequest: The text cannot be a key.
        """
        self.check_row_key(name, key)
        tickets = self._tickets_of(app)
        if tickets is None:
            msg = "tickets are signed with the app's secret key; set app.secret_key"
            raise RuntimeError(msg)
        return tickets.issue(name, key, user)

    def _redeem(self, app: Flask, ticket: str, name: str, key: str) -> str | None:
        tickets = self._tickets_of(app)
        if tickets is None:  # so it has never issued one
            raise Unauthorized(INVALID_TICKET)
        return tickets.redeem(ticket, name, key)

    def _tickets_of(self, app: Flask) -> Tickets | None:
        """Return the tickets under the app's present secret key, or None: it has no secret key."""
        secret = app.secret_key
        if not secret:
            return None
        # Two first requests may come at once. Both have to get one object, or a ticket would be valid twice.
        return self._tickets.get(secret) or self._tickets.setdefault(
            secret, Tickets(secret, self._settings.ticket_seconds)
        )


def _may_not(_name: str, _key: str, _ticket: str | None) -> Permission | None:
    return None  # for a public key, or one that a ticket opened: no copy of the request is needed
