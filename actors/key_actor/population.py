"""The live actors of one projection."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ...store import StoreError
    from ..upkeep.counters import Counters
    from ..upkeep.sweeper import Sweeper
    from .actor import KeyActor


class Population:
    """Maps keys to their live actors. Safe from any thread.

    Args:
        counters: Counts the actors that are added and removed.
        sweeper: Learns of each actor that is removed, since a new one may wait for its place.
    """

    def __init__(self, counters: Counters, sweeper: Sweeper) -> None:
        self.actors: dict[str, KeyActor] = {}
        self.given_up: StoreError | None = None
        """Set when a close runs out of time: the error of every event that is not committed yet."""
        self._counters = counters
        self._sweeper = sweeper
        self._removal = threading.Lock()

    def add(self, actor: KeyActor) -> KeyActor:
        """Add the actor of a key, and return the one that owns the key: another one may have been first."""
        owner = self.actors.setdefault(actor.key, actor)  # atomic: of two spawners, one wins
        if owner is actor:
            self._counters.add(spawned=1)
        return owner

    def remove(self, actor: KeyActor) -> None:
        """Remove an actor that has retired or failed. Nothing happens if its key has a new one by now."""
        # Removals exclude each other; an addition needs no lock, as it only ever fills a gap.
        with self._removal:
            is_mapped = self.actors.get(actor.key) is actor
            if is_mapped:
                del self.actors[actor.key]
        if is_mapped:
            self._counters.add(retired=1)
            self._sweeper.actor_retired()

    def give_up(self, error: StoreError, *, wake: bool) -> None:
        """Fold nothing more: the time of a close is over. With ``wake`` each actor fails its events now."""
        self.given_up = error
        if wake:
            for actor in list(self.actors.values()):
                actor.actor_inbox.wake()

    def seal(self) -> None:
        """Seal every mailbox: nothing runs any more, and a sender that waits for room learns it."""
        for actor in list(self.actors.values()):
            actor.actor_inbox.seal()
