"""Tickets: short-lived texts that open one connection to one key for the first client that shows them."""

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
"""Projection, key, user, and the nonce by which a redeemed ticket is remembered."""
INVALID_TICKET = "this is not a ticket of this app"


class Tickets:
    """Issues and redeems the tickets of one app, signed with its secret key. Safe from any thread.

    A process redeems each ticket once: it remembers the redeemed ones until they have expired.
    """

    def __init__(self, secret_key: str | bytes, seconds: int, clock: Callable[[], float] = monotonic) -> None:
        self._serializer = URLSafeTimedSerializer(secret_key, salt=_SALT)
        self._seconds = seconds
        self._clock = clock
        self._redeemed: dict[str, float] = {}
        self.after_fork()

    def after_fork(self) -> None:
        """Replace the lock, which a thread of the parent may have held. Redeemed tickets stay redeemed."""
        self._lock = threading.Lock()

    def issue(self, name: str, key: str, user: str | None) -> str:
        """Return a ticket for one key."""
        for_user = None if user is None else str(user)
        signed = self._serializer.dumps([name, key, for_user, secrets.token_urlsafe(12)])
        return signed if isinstance(signed, str) else signed.decode()

    def redeem(self, ticket: str, name: str, key: str) -> str | None:
        """Return the user that a ticket was issued for.

        Raises:
            Unauthorized: The ticket is invalid, expired, redeemed already, or for another key.
        """
        try:
            content: _Content = msgspec.convert(
                self._serializer.loads(ticket, max_age=self._seconds), _Content
            )
        except SignatureExpired:
            msg = "the ticket is too old"
            raise Unauthorized(msg) from None
        except (BadData, msgspec.ValidationError):
            raise Unauthorized(INVALID_TICKET) from None
        for_name, for_key, user, nonce = content
        if (for_name, for_key) != (name, key):
            msg = "the ticket is for another key"
            raise Unauthorized(msg)
        with self._lock:
            now = self._clock()  # read within the lock, so that the entries are in the order of time
            self._forget_expired(now)
            if nonce in self._redeemed:
                msg = "the ticket has been used"
                raise Unauthorized(msg)
            # Remembered a little longer than the signature is valid, because its clock counts whole seconds.
            self._redeemed[nonce] = now + self._seconds + 2
        return user

    def _forget_expired(self, now: float) -> None:
        # The entries are in the order of their expiry: the first valid one ends the search.
        while self._redeemed:
            oldest = next(iter(self._redeemed))
            if self._redeemed[oldest] >= now:
                return
            del self._redeemed[oldest]
