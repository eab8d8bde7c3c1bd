"""The open connections of one hub."""

from __future__ import annotations

import itertools
import math
import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..reactor import Reactor
    from .connection import Connection

_LOOK_SECONDS = 0.01


class Connections:
    """Changed on the reactor's thread alone; counted and described from any."""

    def __init__(self) -> None:
        self._open: dict[int, Connection] = {}
        self._numbers = itertools.count(1)

    def add(self, connection: Connection) -> None:
        """Take one in, under a number that no other had."""
        connection.number = next(self._numbers)
        self._open[connection.number] = connection

    def remove(self, connection: Connection) -> None:
        """Forget one that has ended."""
        self._open.pop(connection.number, None)

    def of_user(self, user: str) -> list[Connection]:
        """Return the connections of one user, also those over which a ticket of this user was shown."""
        return [connection for connection in self if user in connection.users]

    def find(self, number: int) -> Connection | None:
        """Return the connection of a number."""
        return self._open.get(number)

    def __iter__(self) -> Iterator[Connection]:
        return iter(list(self._open.values()))

    def __len__(self) -> int:
        return len(self._open)

    def close_all(self, reactor: Reactor, code: int, reason: str, timeout: float) -> None:
        """Close every connection, and end those that are still there after the timeout. From any other thread."""
        all_gone = threading.Event()

        def close() -> None:
            for connection in self:
                connection.close(code, reason)
            look()

        def look() -> None:
            if self._open:
                reactor.call_later(_LOOK_SECONDS, look)
            else:
                all_gone.set()

        def end() -> None:
            for connection in self:
                connection.end()

        reactor.call(close)
        all_gone.wait(timeout)
        reactor.call(end)

    def describe(self, now: float, *, projection: str, most: int) -> list[dict[str, Any]]:
        """Return, for people, the newest connections that watch a projection."""
        found: list[dict[str, Any]] = []
        for connection in reversed(self._open.copy().values()):
            live = [s.address for s in list(connection.subscriptions.values()) if s.channel is not None]
            keys = [key for name, key in live if name == projection]
            if keys:
                found.append(
                    {
                        "id": connection.number,
                        "address": connection.identity.address,
                        "user": ", ".join(connection.users) or None,
                        "kind": type(connection).__name__.removesuffix("Connection"),
                        "keys": keys[:3],
                        "more_keys": max(0, len(keys) - 3),
                        "open_seconds": round(now - connection.opened_at, 1),
                        "waiting_bytes": connection.waiting_bytes,
                    }
                )
                if len(found) == most:
                    break
        return found


_MOST = 10_000


class SignOuts:
    """The last disconnect of each user. Bounded: of those beyond it the latest time holds for everybody. From any thread."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._times: dict[str, float] = {}
        self._of_all = -math.inf

    def note(self, user: str, now: float) -> None:
        """Remember that a user was disconnected."""
        with self._lock:
            self._times.pop(user, None)
            self._times[user] = now
            if len(self._times) > _MOST:
                oldest = next(iter(self._times))
                self._of_all = max(self._of_all, self._times.pop(oldest))

    def since(self, user: str | None, checked_at: float) -> bool:
        """Say whether a user was disconnected after a check of them had begun. In doubt, yes."""
        if user is None:
            return False
        with self._lock:
            return checked_at <= self._times.get(user, self._of_all)
