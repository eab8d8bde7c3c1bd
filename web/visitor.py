"""Who is behind a connection, once its request is over."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

Recheck = Callable[[str, str], bool]


@dataclass(frozen=True, slots=True)
class Visitor:
    """What remains of a request while its connection lives.

    ``may(name, key)`` asks again whether the visitor may read a key. It runs the app's own code, so it
    may block, and is for the threads of the doorkeeper. None: a ticket opened the door, for one key only.
    """

    address: str
    user: str | None
    may: Recheck | None
