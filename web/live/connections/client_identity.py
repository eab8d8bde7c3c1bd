"""Who is behind a connection, once its request is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Permission:
    """A key may be read. ``user``: to whom the ticket was issued that was shown for it."""

    user: str | None = None


May = Callable[[str, str, str | None], Permission | None]


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """What remains of a request while its connection lives.

    ``may(name, key, ticket)`` says whether the visitor may read a key, now; None: no. It runs the app's
    own code, so it may block, and is for the threads of ``Checks``.
    """

    address: str
    user: str | None
    may: May
    by_ticket: bool = False
    """A ticket opened the door, so nobody can be asked again."""
