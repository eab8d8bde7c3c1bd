"""A few threads that run many actors, one turn at a time."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from typing import TYPE_CHECKING

from .threads import ThreadHealth, WatchedThread

if TYPE_CHECKING:
    from .pooled_actor import PooledActor

_logger = logging.getLogger("keyfold.dispatcher")

_LOCKS = 16


class Dispatcher:
    """Runs ready actors on a few threads, in the order in which they became ready.

    An actor is submitted when it becomes ready, and again at the end of a turn if messages are left: it then
    queues behind all others, so a busy key can't starve a quiet one. Pykka gives each actor a thread of its
    own instead, which fails at some 22,000 actors and costs 200 µs per spawn.

    Args:
        threads: How many threads run actors.
        turn_limit: How many messages an actor takes in one turn, at most.
        turn_seconds: A turn ends after the message during which this time is over.
    """

    def __init__(self, *, threads: int, turn_limit: int, turn_seconds: float) -> None:
        self.turn_limit = turn_limit
        self.turn_seconds = turn_seconds
        self._ready: queue.SimpleQueue[PooledActor | None] = queue.SimpleQueue()
        self.submit = self._ready.put
        # The mailboxes of all actors share a few locks: with a million actors a lock of its own would cost
        # each 72 bytes, and a cache miss per event.
        self.next_lock = itertools.cycle([threading.Lock() for _ in range(_LOCKS)]).__next__
        self._threads = [
            WatchedThread(f"keyfold-dispatcher-{number}", self._ready.get, self._run_turn, role="dispatcher")
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> bool:
        """Let the threads end after the turns that are queued; wait for them until ``deadline`` (monotonic).

        Returns whether all of them have ended. Threads that were never started count as ended.
        """
        for _ in self._threads:
            self._ready.put(None)
        return all(thread.join(deadline) for thread in self._threads)

    def loops(self, now: float) -> list[ThreadHealth]:
        """Return the health of each thread."""
        return [thread.health(now) for thread in self._threads]

    def _run_turn(self, actor: PooledActor) -> None:
        try:
            actor.run_turn()
        except BaseException:
            # One broken actor must not take a thread from all the others.
            _logger.exception("a turn of %s failed", actor)
