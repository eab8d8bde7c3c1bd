"""A few threads that run many actors, one turn at a time."""

from __future__ import annotations

import itertools
import logging
import os
import queue
import threading
from time import monotonic
from typing import TYPE_CHECKING

from ..upkeep.health import Loop

if TYPE_CHECKING:
    from .pooled_actor import PooledActor

_logger = logging.getLogger("keyfold.dispatcher")

_LOCKS = 16

_ROLE = "keyfold_role"


def on_dispatcher_thread() -> bool:
    """Return whether the calling thread belongs to a Dispatcher, and so must not wait for actors."""
    return role_of_thread() == "dispatcher"


def on_own_thread() -> bool:
    """Return whether the calling thread is one of Keyfold's, and so must not wait for all of them to end."""
    return role_of_thread() != ""


def role_of_thread() -> str:
    """Return what the calling thread is there for; nothing if it is none of Keyfold's."""
    # Kept by the Thread and not in a threading.local: one that was made before gevent has patched the module is
    # shared by all greenlets.
    role: str = vars(threading.current_thread()).get(_ROLE, "")
    return role


def be_own_thread(role: str) -> None:
    """Mark the calling thread as one of Keyfold's."""
    vars(threading.current_thread())[_ROLE] = role


def _be_nobody() -> None:
    # A fork in a hook: the thread that forked is the child's main thread, and no longer one of ours.
    be_own_thread("")


os.register_at_fork(after_in_child=_be_nobody)


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

        Returns whether all of them have ended. Threads that were never started count as ended.
        """
        started = [thread for thread in self._threads if thread.ident is not None]
        for _ in started:
            self._ready.put(None)
        for thread in started:
            thread.join(max(0.0, deadline - monotonic()))
        return not any(thread.is_alive() for thread in started)

    def loops(self, now: float) -> list[Loop]:
        """Return how each thread fares."""
        return [
            Loop.of(thread, since, now) for thread, since in zip(self._threads, self._busy_since, strict=True)
        ]

    def _run(self, number: int) -> None:
        be_own_thread("dispatcher")
        while self._run_one(number):
            pass

    def _run_one(self, number: int) -> bool:
        """Run the next actor that is ready. False: the thread is to end."""
        actor = self._ready.get()
        if actor is None:
            return False
        try:
            self._busy_since[number] = monotonic()
            actor.run_turn()
        except BaseException:
            # One broken actor must not take a thread from all the others.
            _logger.exception("a turn of %s failed", actor)
        finally:
            self._busy_since[number] = None
        return True
