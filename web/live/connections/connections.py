"""The open connections of one hub, and the users who were signed out."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..reactor import Reactor
    from .connection import Connection

_POLL_SECONDS = 0.01
_MAX_SIGN_OUTS = 10_000
_MAX_KEYS_SHOWN = 3


class Connections:
    """Changed on the reactor's thread alone; counted and described from any thread."""

    def __init__(self) -> None:
        self._open: dict[int, Connection] = {}
        self._numbers = itertools.count(1)

    def add(self, connection: Connection) -> None:
        """Add a connection under a new number."""
        connection.number = next(self._numbers)
        self._open[connection.number] = connection

    def remove(self, connection: Connection) -> None:
        """Remove a connection that has ended."""
        self._open.pop(connection.number, None)

    def of_user(self, user: str) -> list[Connection]:
        """Return the connections of one user, and those that showed a ticket of this user."""
        return [connection for connection in self if user in connection.users]

    def find(self, number: int) -> Connection | None:
        """Return the connection with a number, or None."""
        return self._open.get(number)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def close_all(self, reactor: Reactor, code: int, reason: str, timeout: float) -> None:
        """Close every connection, and end those that are still open after the timeout.

        Must not be called on the reactor's thread.

        Args:
            reactor: The reactor of these connections. It must be alive.
            code: The close code.
            reason: The text beside the code.
            timeout: Seconds to wait for clients to answer.
        """
        all_gone = threading.Event()

        def close() -> None:
            for connection in self:
                connection.close(code, reason)
            poll()

        def poll() -> None:
            if self._open:
                reactor.call_later(_POLL_SECONDS, poll)
            else:
                all_gone.set()

        def end() -> None:
            for connection in self:
                connection.end()

        reactor.call(close)
        all_gone.wait(timeout)
        reactor.call(end)

    def describe(self, now: float, *, projection: str, max_count: int) -> list[dict[str, Any]]:
        """Return details of the newest connections with a subscription to a projection. From any thread.

        Args:
            now: The time by the hub's clock.
            projection: The name of the projection.
            max_count: The number of connections to return at most.
        """
        found: list[dict[str, Any]] = []
        for connection in reversed(self._open.copy().values()):
            live = [s.row_key for s in list(connection.subscriptions.values()) if s.channel is not None]
            keys = [key for name, key in live if name == projection]
            if keys:
                found.append(
                    {
                        "id": connection.number,
                        "address": connection.identity.client_address,
                        "user": ", ".join(connection.users) or None,
                        "kind": type(connection).__name__.removesuffix("Connection"),
                        "keys": keys[:_MAX_KEYS_SHOWN],
                        "more_keys": max(0, len(keys) - _MAX_KEYS_SHOWN),
                        "open_seconds": round(now - connection.opened_at, 1),
                        "waiting_bytes": connection.waiting_bytes,
                    }
                )
                if len(found) == max_count:
                    break
        return found


class SignOuts:
    """The time at which each user was signed out last. A check that began before holds no longer.

    Bounded: for the users beyond the bound, the latest of their times counts for everyone. Safe from any
    thread.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._time_of_others = -math.inf

    def note(self, user: str, now: float) -> None:
        """Remember that a user was signed out."""
        with self._lock:
            self._times.pop(user, None)
            self._times[user] = now
            if len(self._times) > _MAX_SIGN_OUTS:
                oldest = next(iter(self._times))
                self._time_of_others = max(self._time_of_others, self._times.pop(oldest))

    def since(self, user: str | None, checked_at: float) -> bool:
        """Return whether a user was signed out after a check of this user had begun. In doubt, True."""
        if user is None:
            return False
        with self._lock:
            return checked_at <= self._times.get(user, self._time_of_others)
