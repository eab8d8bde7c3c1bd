"""A small projection that tests can park, poison and count."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

from keyfold.actors import Projection
from keyfold.actors.broadcaster import Broadcaster, Committed
from keyfold.store import Position

from .parking import Parking


@dataclass
class Added:
    """Add an amount to a key, after a call of ``then``, if it is given."""

    key: str
    amount: int = 1
    then: Callable[[Total], object] | None = None


@dataclass
class Total:
    """The sum, and the amounts in the order they came."""

    total: int = 0
    amounts: list[int] = field(default_factory=list)


class Totals(Projection[Added, Total]):
    """Folds Added into Total."""

    name = "test.totals"
    public = True

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Total, event: Added) -> Any:
        state.total += event.amount
        state.amounts.append(event.amount)
        if event.then is not None:
            instead = event.then(state)
            if instead is not None:
                return instead
        return {"total": state.total}


def park_in(parking: Parking) -> Callable[[Total], None]:
    """Hold the actor in the middle of ``apply``."""

    def then(_state: Total) -> None:
        parking.park()

    return then


def poison(_state: Total) -> None:
    """Raise, after the state was changed."""
    msg = "poison"
    raise ValueError(msg)


class RecordingBroadcaster(Broadcaster):
    """Records all calls. ``before`` is called first, and may raise or read the database."""

    def __init__(self, before: Callable[[Committed], object] | None = None) -> None:
        self.published: list[Committed] = []
        self.snapshots: list[tuple[str, Position, bytes, str]] = []
        self.invalidated: list[str] = []
        self.before = before

    def publish(self, committed: Committed) -> None:
        if self.before is not None:
            self.before(committed)
        self.published.append(committed)

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        self.snapshots.append((key, position, state, reason))

    def invalidate(self, projection: str, key: str) -> None:
        self.invalidated.append(key)
