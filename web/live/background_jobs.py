"""Code of the app's that is to be told something, and that nobody waits for."""

from __future__ import annotations

import logging
import queue
import threading
from collections.abc import Callable

_logger = logging.getLogger("keyfold.errands")

_MOST_WAITING = 1_000


class BackgroundJobs:
    """Runs what it is given on a thread of its own, in order. Over a thousand that wait, the next is dropped."""

    def __init__(self, name: str) -> None:
        self._name = name
        self._waiting: queue.SimpleQueue[Callable[[], object] | None] = queue.SimpleQueue()
        self._lock = threading.Lock()
        self._thread: threading.Thread | None = None
        self._closed = False
        self.dropped = 0

    def run(self, function: Callable[[], object]) -> None:
        """Run it, after those that were given before. Never blocks. From any thread."""
        with self._lock:
            if self._closed:
                return
            if self._waiting.qsize() >= _MOST_WAITING:
                self.dropped += 1
                return
            self._waiting.put(function)
            if self._thread is None:
                self._thread = threading.Thread(target=self._work, name=self._name, daemon=True)
                self._thread.start()

    def close(self) -> None:
        """Run nothing more, and end the thread once the errand under way is done. From any thread."""
        with self._lock:
            self._closed = True
            self._waiting.put(None)

    def _work(self) -> None:
        while (function := self._waiting.get()) is not None and not self._closed:
            try:
                function()
            except BaseException:
                _logger.exception("%s raised", function)
