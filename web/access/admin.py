"""What the login page gives an operator's browser instead of the admin token."""

from __future__ import annotations

from collections.abc import Callable
from time import time

import msgspec
from itsdangerous import BadData, URLSafeSerializer

PASS_SECONDS = 3600
"""How long a pass is good. A page that is used or open renews it."""
LOGIN_SECONDS = 12 * 3600
"""How long after the login it is renewed at most."""

_Times = tuple[float, float]
"""When the operator has logged in, and when the pass was issued."""


class Passes:
    """Issues and renews passes, signed with the admin token: a new token ends all of them."""

    def __init__(self, admin_token: str | None, clock: Callable[[], float] = time) -> None:
        self._serializer = None if admin_token is None else URLSafeSerializer(admin_token, "keyfold.admin")
        self._clock = clock

    def issue(self) -> str:
        """Return a new pass. Raises RuntimeError: there is no admin token to sign it with."""
        now = self._clock()
        return self._signed((now, now))

    def is_good(self, given: str | None, *, renewed: bool = False) -> bool:
        """Say whether a pass opens anything.

        Args:
            given: The cookie, if there is one.
            renewed: It stands for its renewals. So it is with a connection, which goes on showing its first.
        """
        times = self._times(given)
        return times is not None and (renewed or self._clock() - times[1] <= PASS_SECONDS)

    def renew(self, given: str | None) -> str | None:
        """Return a pass to replace this one, or None: it is no good, or still young."""
        times = self._times(given)
        if times is None or not PASS_SECONDS / 4 <= self._clock() - times[1] <= PASS_SECONDS:
            return None
        return self._signed((times[0], self._clock()))

    def _times(self, given: str | None) -> _Times | None:
        if given is None or self._serializer is None:
            return None
        try:
            times: _Times = msgspec.convert(self._serializer.loads(given), _Times)
        except (BadData, msgspec.ValidationError):
            return None
        return times if self._clock() - times[0] <= LOGIN_SECONDS else None

    def _signed(self, times: _Times) -> str:
        if self._serializer is None:
            msg = "passes are signed with the admin token; set KEYFOLD_ADMIN_TOKEN"
            raise RuntimeError(msg)
        made = self._serializer.dumps(times)
        return made if isinstance(made, str) else made.decode()
