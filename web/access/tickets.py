"""Tickets: a short-lived word that opens one channel for whoever shows it first."""

from __future__ import annotations

import secrets
import threading
from collections.abc import Callable
from time import monotonic

import msgspec
from itsdangerous import BadData, SignatureExpired, URLSafeTimedSerializer
from werkzeug.exceptions import Unauthorized

_SALT = "keyfold.ticket"
_Content = tuple[str, str, str | None, str]
"""Projection, key, user, and the nonce by which it is remembered."""
NO_TICKET = "this is no ticket of this app"


class Tickets:
    """Issues and redeems the tickets of one app. Signed with its secret key; safe from any thread.

    A process redeems each of them once. It remembers those that it has redeemed until they are too old.
    """

    def __init__(self, secret_key: str | bytes, seconds: int, clock: Callable[[], float] = monotonic) -> None:
        self._serializer = URLSafeTimedSerializer(secret_key, salt=_SALT)
        self._seconds = seconds
        self._clock = clock
        self._redeemed: dict[str, float] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held. What was redeemed stays so."""
        self._lock = threading.Lock()

    def issue(self, name: str, key: str, user: str | None) -> str:
        """Return a ticket for one key."""
        whom = None if user is None else str(user)
        made = self._serializer.dumps([name, key, whom, secrets.token_urlsafe(12)])
        return made if isinstance(made, str) else made.decode()

    def redeem(self, ticket: str, name: str, key: str) -> str | None:
        """Return the user whom a ticket was issued to. Raises Unauthorized."""
        try:
            given = self._serializer.loads(ticket, max_age=self._seconds)
            content: _Content = msgspec.convert(given, _Content)
        except SignatureExpired:
            msg = "the ticket is too old"
            raise Unauthorized(msg) from None
        except (BadData, msgspec.ValidationError):
            raise Unauthorized(NO_TICKET) from None
        for_name, for_key, user, nonce = content
        if (for_name, for_key) != (name, key):
            msg = "the ticket is for another key"
            raise Unauthorized(msg)
        with self._lock:
            now = self._clock()  # within the lock, so that what is redeemed is in the order of time
            self._forget_old(now)
            if nonce in self._redeemed:
                msg = "the ticket has been used"
                raise Unauthorized(msg)
            # Kept a little longer than the signature holds, whose clock counts whole seconds.
            self._redeemed[nonce] = now + self._seconds + 2
        return user

    def _forget_old(self, now: float) -> None:
        # In the order in which they were redeemed, so the first that is young enough is the last to be looked at.
        while self._redeemed:
            oldest = next(iter(self._redeemed))
            if self._redeemed[oldest] >= now:
                return
            del self._redeemed[oldest]
