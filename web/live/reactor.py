"""One thread that waits for many sockets."""

from __future__ import annotations

import contextlib
import heapq
import itertools
import logging
import selectors
import socket
import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ...actors.pool.threads import ThreadHealth

_logger = logging.getLogger("keyfold.reactor")

READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE

Ready = Callable[[int], None]
"""Called in the reactor's thread with READABLE, WRITABLE or both."""


class Reactor:
    """Runs callbacks on its own thread: when a socket is ready, when their time has come, when called.

    A plain selector rather than asyncio: ``benchmarks/fan_out.py`` says what both cost. Only ``call``,
    ``start`` and ``stop`` are for other threads. A callback that raises is logged and harms no other.
    """

    def __init__(self, name: str) -> None:
        self._name = name
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._numbers = itertools.count()
        self._selector = selectors.DefaultSelector()
        self._bell, self._hand = socket.socketpair()
        self._bell.setblocking(False)
        self._hand.setblocking(False)
        self._selector.register(self._bell, READABLE, self._rung)
        self._asleep = False
        self._running = True
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._busy_since: float | None = None

    # -- from any thread

    def start(self) -> None:
        """Start the thread."""
        self._thread.start()

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run function on the reactor's thread, after what was called before. Never blocks."""
        self._calls.append((function, arguments))
        if self._asleep:
            # Cleared before the byte is sent: of many callers one rings.
            self._asleep = False
            with contextlib.suppress(BlockingIOError):
                self._hand.send(b"!")

    def stop(self, timeout: float) -> bool:
        """End the thread. False: it has not ended within timeout seconds."""
        self.call(self._end)
        if threading.current_thread() is self._thread:
            return False
        self._thread.join(timeout)
        return not self._thread.is_alive()

    @property
    def is_alive(self) -> bool:
        """The thread has not ended."""
        return self._thread.is_alive()

    def loop(self, now: float) -> ThreadHealth:
        """Return how the thread fares."""
        return ThreadHealth.of(self._thread, self._busy_since, now)

    def abandon(self) -> None:
        """In a forked child, where the thread is not: close this process's copy of the descriptors.

        Nothing is unregistered: the epoll instance behind the selector is still the parent's as well.
        """
        self._selector.close()
        self._bell.close()
        self._hand.close()

    # -- from its own thread

    def call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        """Run function once, after so many seconds."""
        heapq.heappush(self._timers, (monotonic() + seconds, next(self._numbers), function, arguments))

    def watch(self, sock: socket.socket, events: int, ready: Ready) -> None:
        """Call ready whenever the socket is readable or writable, as events say."""
        self._selector.register(sock, events, ready)

    def change(self, sock: socket.socket, events: int, ready: Ready) -> None:
        """Watch for other events."""
        self._selector.modify(sock, events, ready)

    def forget(self, sock: socket.socket) -> None:
        """Watch no longer. Call it before the socket is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    # -- the loop

    def _run(self) -> None:
        while self._running:
            self._asleep = True
            # Looked at after the flag is set: a caller that saw the flag unset has put its call in before.
            ready = self._selector.select(0 if self._calls else self._until_next_timer())
            self._asleep = False
            self._busy_since = monotonic()
            for key, events in ready:
                self._guarded(key.data, events)
            for _ in range(len(self._calls)):
                function, arguments = self._calls.popleft()
                self._guarded(function, *arguments)
            while self._timers and self._timers[0][0] <= monotonic():
                _, _, function, arguments = heapq.heappop(self._timers)
                self._guarded(function, *arguments)
            self._busy_since = None
        self._selector.close()
        self._bell.close()
        self._hand.close()

    def _until_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - monotonic()) if self._timers else None

    def _rung(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._bell.recv(4096)

    def _end(self) -> None:
        self._running = False

    def _guarded(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            _logger.exception("a callback of %s raised", self._name)
