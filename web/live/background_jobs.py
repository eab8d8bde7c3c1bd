"""Background jobs: calls of the app's code that no thread waits for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

from ...actors.pool.threads import WatchedThread

_logger = logging.getLogger("keyfold.background_jobs")

_MAX_WAITING = 1_000


class BackgroundJobs:
    """Runs functions in order, on a thread of its own. While a thousand wait, further ones are dropped."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: WatchedThread[Callable[[], object]] | None = None
        self._closed = False
        self.dropped = 0

    def run(self, function: Callable[[], object]) -> None:
        """Run a function after those of earlier calls. From any thread; never blocks."""
        with self._lock:
            if self._closed:
                return
            if self._waiting.qsize() >= _MAX_WAITING:
                self.dropped += 1
                return
            self._waiting.put(function)
            if self._thread is None:
                self._thread = WatchedThread(self._name, self._take, _run)
                self._thread.start()

    def close(self) -> None:
        """Run no more functions, and end the thread after the one under way. From any thread."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)

    def _take(self) -> Callable[[], object] | None:
        function = self._waiting.get()
        return None if self._closed else function


def _run(function: Callable[[], object]) -> None:
    try:
        function()
    except BaseException:  # SystemExit, for one: the thread is needed
        _logger.exception("%s raised", function)
