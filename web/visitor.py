"""Who is behind a connection, once its request is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

May = Callable[[str, str, str | None], bool]


@dataclass(frozen=True, slots=True)
class Visitor:
    """What remains of a request while its connection lives.

    ``may(name, key, ticket)`` says whether the visitor may read a key, now. It never raises. It runs the
    app's own code, so it may block, and is for the hub's checking threads.
    """

    address: str
    user: str | None
    may: May
    by_ticket: bool = False
    """A ticket opened the door, so nobody can be asked again."""
