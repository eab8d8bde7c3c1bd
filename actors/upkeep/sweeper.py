"""Retires idle actors."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from heapq import nsmallest
from time import monotonic
from typing import TYPE_CHECKING

from ..pool.threads import ThreadHealth, WatchedThread

if TYPE_CHECKING:
    from ..key_actor.actor import KeyActor
    from ..settings import Settings

_logger = logging.getLogger("keyfold.supervisor")


class Sweeper:
    """Looks over all live actors from time to time, and suggests to the idle ones that they retire.

    An actor notes the time of its last turn, and nothing else is kept per message. Over ``max_live_actors``
    the actors with the oldest times are chosen. At an eighth above the limit spawning waits, so that the
    number stays bounded however fast new keys come.

    Args:
        settings: The settings of the system.
        report: Called at the end of each round, on the sweeper's thread. It does not block or raise.
    """

    def __init__(self, settings: Settings, report: Callable[[], None]) -> None:
        self._settings = settings
        self._report = report
        self._populations: list[dict[str, KeyActor]] = []
        self._hard_limit = settings.max_live_actors + settings.max_live_actors // 8
        self._wake = threading.Event()
        self._stopping = False
        self._room = threading.Condition()
        self._waiting = 0
        self._interval = max(0.01, min(5.0, settings.idle_seconds / 4, settings.report_seconds or 5.0))
        self._thread = WatchedThread("keyfold-sweeper", self._wait, self._round, role="sweeper")

    def watch(self, population: dict[str, KeyActor]) -> None:
        """Sweep this map of live actors, too."""
        self._populations = [*self._populations, population]

    def live(self) -> int:
        """Return how many actors live in all projections."""
        return sum(map(len, self._populations))

    def has_room(self) -> bool:
        """Return whether one more actor may be spawned at once."""
        live = self.live()
        if live >= self._settings.max_live_actors:
            self._wake.set()
        return live < self._hard_limit or self._stopping

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until an actor may be spawned. False once the deadline has passed."""
        with self._room:
            self._waiting += 1
            try:
                return self._room.wait_for(self.has_room, max(0.0, deadline - monotonic()))
            finally:
                self._waiting -= 1

    def actor_retired(self) -> None:
        """Let a waiting spawner look again."""
        if self._waiting:
            with self._room:
                self._room.notify_all()

    def sweep(self, now: float) -> int:
        """Suggest retirement to actors that are idle for ``idle_seconds``, and to the oldest over the limit.

        Args:
            now: Monotonic time.

        Returns:
            The number of suggestions. Each actor decides for itself.
        """
        idle = [
            actor
            for population in self._populations
            for actor in list(population.values())
            if actor.actor_inbox.idle
        ]
        idle_since = now - self._settings.idle_seconds
        chosen = [actor for actor in idle if actor.last_turn <= idle_since]
        max_live = self._settings.max_live_actors
        # A spawner that waits needs one actor to retire, and an eighth of a small limit is none.
        excess = self.live() - len(chosen) - max_live + (self._waiting > 0)
        if excess > 0:
            others = (actor for actor in idle if actor.last_turn > idle_since)
            # A sixteenth more than needed, so that a flood of new keys is not one sweep per key.
            chosen += nsmallest(excess + max_live // 16 + 1, others, key=_last_turn)
        for actor in chosen:
            actor.suggest_retirement()
        return len(chosen)

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def stop(self, deadline: float) -> bool:
        """End the thread, and wait for that until deadline. Returns whether it has ended."""
        self._stopping = True
        self._wake.set()
        self.actor_retired()  # a spawner that waits for one to retire learns that the system closes
        return self._thread.join(deadline)

    def loop(self, now: float) -> ThreadHealth:
        """Return the health of its thread."""
        return self._thread.health(now)

    def _wait(self) -> float | None:
        """Wait for the next round and return its time; None at the end."""
        if self._stopping:
            return None
        self._wake.wait(self._interval)
        self._wake.clear()
        return monotonic()

    def _round(self, now: float) -> None:
        try:
            self.sweep(now)
        except Exception:
            _logger.exception("a sweep failed; the next one comes in %s s", self._interval)
        self._report()


def _last_turn(actor: KeyActor) -> float:
    return actor.last_turn
