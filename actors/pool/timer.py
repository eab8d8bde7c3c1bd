"""Calls that are to be made a little later."""

from __future__ import annotations

import heapq
import itertools
import logging
import threading
from collections.abc import Callable
from time import monotonic

from ..errors import MailboxSealed
from .threads import ThreadHealth, WatchedThread

_logger = logging.getLogger("keyfold.dispatcher")

Call = Callable[[], object]
"""Called on the timer's thread. It has to be short, and may not wait."""


class Timer:
    """Makes calls when they are due, on one thread. Safe from any thread.

    The thread starts with the first call: a process whose keys no other process writes never needs it.
    """

    def __init__(self) -> None:
        self._due: list[tuple[float, int, Call]] = []
        self._number = itertools.count()
        self._changed = threading.Condition()
        self._stopping = self._ended = False
        self._thread: WatchedThread[Call] | None = None

    def after(self, seconds: float, call: Call) -> None:
        """Make a call in so many seconds; at once if the timer has been stopped."""
        with self._changed:
            heapq.heappush(self._due, (monotonic() + seconds, next(self._number), call))
            if self._thread is None or self._ended or not self._thread.is_alive():
                self._ended = False
                thread = WatchedThread("keyfold-timer", self._next, self._make_call, role="timer")
                thread.start()
                self._thread = thread
            elif self._due[0][2] is call:
                self._changed.notify()

    def stop(self, deadline: float) -> bool:
        """Make at once all calls that are left, and wait until deadline for the thread.

        Returns whether the thread has ended.
        """
        with self._changed:
            self._stopping = True
            self._changed.notify()
        return self._thread is None or self._thread.join(deadline)

    def loops(self, now: float) -> list[ThreadHealth]:
        """Return the health of its thread; nothing while there is none."""
        return [] if self._thread is None else [self._thread.health(now)]

    def _make_call(self, call: Call) -> None:
        try:
            call()
        except MailboxSealed:
            pass  # the actor has ended meanwhile
        except Exception:
            _logger.exception("a call that was due failed")

    def _next(self) -> Call | None:
        """Wait for the next call and return it; None at the end, after the last."""
        with self._changed:
            while True:
                wait = self._due[0][0] - monotonic() if self._due else None
                if wait is not None and (wait <= 0 or self._stopping):
                    return heapq.heappop(self._due)[2]
                if self._stopping:
                    self._ended = True  # under the lock: a call that comes now starts another thread
                    return None
                self._changed.wait(wait)
