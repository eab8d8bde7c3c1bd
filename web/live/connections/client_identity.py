"""The identity of a client, for as long as its connection lives."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Permission:
    """A key may be read. ``user`` is the user to whom the ticket was issued, if the client showed one."""

    user: str | None = None


class May(Protocol):
    """Decides whether a client may read a key now. It runs the app's code, on a thread of ``Checks``."""

    def __call__(self, name: str, key: str, ticket: str | None, /) -> Permission | None:
        """Return the permission, or None to refuse.

        Args:
            name: The projection.
            key: The key.
            ticket: The ticket that the client showed for this key, if any.
        """


@dataclass(frozen=True, slots=True)
class ClientIdentity:
    """The part of a request that its connection needs after the request is over."""

    client_address: str
    user: str | None
    may: May
    by_ticket: bool = False
    """The client was admitted by a ticket, so that no app can be asked about it again."""
