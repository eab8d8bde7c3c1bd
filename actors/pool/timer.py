"""Calls that are to be made a little later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic

from ..errors import MailboxSealed
from ..upkeep.health import Loop
from .dispatcher import be_own_thread

_logger = logging.getLogger("keyfold.dispatcher")


class Timer:
    """One thread, started when it is first needed: a process whose keys nobody else writes never needs it."""

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Callable[[], object]]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self._busy_since: float | None = None
        self._thread: threading.Thread | None = None

    def after(self, seconds: float, call: Callable[[], object]) -> None:
        """Make a call in so many seconds, after ``stop`` at once. It has to be short, and may not wait."""
        with self._changed:
            heapq.heappush(self._due, (monotonic() + seconds, next(self._number), call))
            if self._thread is None or self._ended or not self._thread.is_alive():
                self._ended = False
                thread = threading.Thread(target=self._run, name="keyfold-timer", daemon=True)
                thread.start()
                self._thread = thread
            elif self._due[0][2] is call:
                self._changed.notify()

    def stop(self, deadline: float) -> bool:
        """Make at once all calls that are left, and end the thread until deadline. Returns whether it has ended."""
        with self._changed:
            self._stopping = True
            self._changed.notify()
        if self._thread is None:
            return True
        self._thread.join(max(0.0, deadline - monotonic()))
        return not self._thread.is_alive()

    def loops(self, now: float) -> list[Loop]:
        """Return how its thread fares; nothing while it has none."""
        return [] if self._thread is None else [Loop.of(self._thread, self._busy_since, now)]

    def _run(self) -> None:
        be_own_thread("timer")
        while (call := self._next()) is not None:
            try:
                call()
            except MailboxSealed:
                pass  # the actor has ended meanwhile
            except Exception:
                _logger.exception("a call that was due failed")
            self._busy_since = None

    def _next(self) -> Callable[[], object] | None:
        """Wait for the next call and return it; None at the end, after the last."""
        with self._changed:
            while True:
                wait = self._due[0][0] - monotonic() if self._due else None
                if wait is not None and (wait <= 0 or self._stopping):
                    self._busy_since = monotonic()
                    return heapq.heappop(self._due)[2]
                if self._stopping:
                    self._ended = True  # under the lock: a call that comes now starts another thread
                    return None
                self._changed.wait(wait)
