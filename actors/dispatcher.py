"""A few threads that run many actors, one turn at a time."""

from __future__ import annotations

import itertools
import logging
import queue
import threading
from time import monotonic
from typing import TYPE_CHECKING

from .health import Loop

if TYPE_CHECKING:
    from .pooled_actor import PooledActor

_logger = logging.getLogger("keyfold.dispatcher")

_LOCKS = 16

_worker = threading.local()


def on_dispatcher_thread() -> bool:
    """Return whether the calling thread belongs to a Dispatcher, and so must not wait for actors."""
    return getattr(_worker, "is_dispatcher", False)


class Dispatcher:
    """Runs ready actors on ``threads`` threads, first come, first served.

    An actor is submitted when it becomes ready and again at the end of a turn that left something:
    it then queues behind all others, so a busy key can't starve a quiet one. Pykka gives each actor
    a thread of its own instead, which ends at some 22,000 actors and costs 200 µs a spawn.
    """

    def __init__(self, *, threads: int, turn_limit: int, turn_seconds: float) -> None:
        self.turn_limit = turn_limit
        self.turn_seconds = turn_seconds
        self._ready: queue.SimpleQueue[PooledActor | None] = queue.SimpleQueue()
        self.submit = self._ready.put
        # The mailboxes of all actors share a few locks: one each is 72 bytes and a cache miss an event,
        # with a million of them.
        self.next_lock = itertools.cycle([threading.Lock() for _ in range(_LOCKS)]).__next__
        self._busy_since: list[float | None] = [None] * threads
        self._threads = [
            threading.Thread(
                target=self._run, args=(number,), name=f"keyfold-dispatcher-{number}", daemon=True
            )
            for number in range(threads)
        ]

    def start(self) -> None:
        """Start the threads."""
        for thread in self._threads:
            thread.start()

    def stop(self, deadline: float) -> bool:
        """Let the threads end after the turns that are queued; wait for them until deadline.

        Returns whether all of them have ended.
        """
        for _ in self._threads:
            self._ready.put(None)
        for thread in self._threads:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in self._threads)

    def loops(self, now: float) -> list[Loop]:
        """Return how each thread fares."""
        return [
            Loop.of(thread, since, now) for thread, since in zip(self._threads, self._busy_since, strict=True)
        ]

    def _run(self, number: int) -> None:
        busy_since = self._busy_since
        _worker.is_dispatcher = True
        get = self._ready.get
        while True:
            actor = get()
            if actor is None:
                return
            busy_since[number] = monotonic()
            try:
                actor.run_turn()
            except BaseException:
                # One broken actor must not take a thread from all the others.
                _logger.exception("a turn of %s failed", actor)
            busy_since[number] = None
            del actor  # else the last actor would live as long as the thread waits
