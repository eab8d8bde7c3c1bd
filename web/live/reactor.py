"""The reactor: one thread that waits for all sockets."""

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
from typing import Any, Protocol

from ...actors.pool.threads import ThreadHealth, WatchedThread

_logger = logging.getLogger("keyfold.reactor")

READABLE = selectors.EVENT_READ
WRITABLE = selectors.EVENT_WRITE

_Events = list[tuple[selectors.SelectorKey, int]]


class SocketReady(Protocol):
    """The reactor calls it on its own thread when a socket is ready."""

    def __call__(self, events: int, /) -> None:
        """``events`` is READABLE, WRITABLE or both."""


class Reactor:
    """Runs callbacks on its own thread: when a socket is ready, at a time, or when another thread calls.

    It uses a plain selector rather than asyncio: ``benchmarks/fan_out.py`` shows the cost of both. The thread
    and its descriptors come with the first call. A callback that raises is logged and harms no other
    callback.

    Args:
        name: The name of the thread.
        on_start: Called on the thread before everything else.
    """

    def __init__(self, name: str, on_start: Callable[[], None]) -> None:
        self._name = name
        self._on_start = on_start
        self._lock = threading.Lock()
        self._is_started = False
        self._calls: deque[tuple[Callable[..., None], tuple[Any, ...]]] = deque()
        self._timers: list[tuple[float, int, Callable[..., None], tuple[Any, ...]]] = []
        self._timer_numbers = itertools.count()
        self._asleep = False
        self._running = True
        self._selector: selectors.BaseSelector
        self._wakeup_receiver: socket.socket
        self._wakeup_sender: socket.socket
        self._thread: WatchedThread[_Events]

    # -- from any thread

    def start(self) -> None:
        """Start the thread, unless it was started. Raises OSError if the process has no descriptor left."""
        if self._is_started:
            return
        with self._lock:
            if self._is_started:
                return
            selector = selectors.DefaultSelector()
            self._wakeup_receiver, self._wakeup_sender = socket.socketpair()
            self._wakeup_receiver.setblocking(False)
            self._wakeup_sender.setblocking(False)
            selector.register(self._wakeup_receiver, READABLE, self._drain_wakeups)
            self._selector = selector
            self._calls = deque([(self._on_start, ())])
            self._thread = WatchedThread(self._name, self._wait, self._run_callbacks, on_end=self.abandon)
            self._thread.start()
            self._is_started = True

    @property
    def is_started(self) -> bool:
        """Whether the thread was started. It may have ended since."""
        return self._is_started

    @property
    def is_alive(self) -> bool:
        """Whether the thread was started and has not ended."""
        return self._is_started and self._thread.is_alive()

    def call(self, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function on the reactor's thread, after those of earlier calls. Never blocks.

        Raises:
            OSError: It is the first call, and the process has no descriptor left.
        """
        if not self._is_started:
            self.start()
        self._calls.append((function, arguments))
        if self._asleep:
            # Cleared before the byte is sent, so that one of many callers sends it.
            self._asleep = False
            # An error means that bytes enough are there already, or that the thread has ended.
            with contextlib.suppress(OSError):
                self._wakeup_sender.send(b"!")

    def stop(self, timeout: float) -> bool:
        """End the thread, which was started before.

        Args:
            timeout: How many seconds to wait for the end.

        Returns:
            Whether the thread has ended.
        """
        self.call(self._end)
        if self._thread.is_current():
            return False
        return self._thread.join(monotonic() + timeout)

    def health(self, now: float) -> ThreadHealth:
        """Return the health of the thread, which was started before, at ``now`` (monotonic time)."""
        return self._thread.health(now)

    def abandon(self) -> None:
        """Close the descriptors of this process: in a forked child, which has no such thread, or at the end.

        Nothing is unregistered: in a child, the parent uses the epoll instance behind the selector too.
        """
        if self._is_started:
            self._selector.close()
            self._wakeup_receiver.close()
            self._wakeup_sender.close()

    # -- from its own thread

    def call_later(self, seconds: float, function: Callable[..., None], *arguments: Any) -> None:
        """Run a function once, after so many seconds."""
        heapq.heappush(self._timers, (monotonic() + seconds, next(self._timer_numbers), function, arguments))

    def watch(self, sock: socket.socket, events: int, ready: SocketReady) -> None:
        """Call ``ready`` whenever the socket is READABLE or WRITABLE, as ``events`` says."""
        self._selector.register(sock, events, ready)

    def change(self, sock: socket.socket, events: int, ready: SocketReady) -> None:
        """Watch for other events."""
        self._selector.modify(sock, events, ready)

    def forget(self, sock: socket.socket) -> None:
        """Watch a socket no longer. Call it before the socket is closed."""
        with contextlib.suppress(KeyError, ValueError):
            self._selector.unregister(sock)

    # -- the loop

    def _wait(self) -> _Events | None:
        if not self._running:
            return None
        self._asleep = True
        # The calls are looked at after the flag is set: a caller that saw it unset has added its call before.
        ready = self._selector.select(0 if self._calls else self._seconds_to_next_timer())
        self._asleep = False
        return ready

    def _run_callbacks(self, ready: _Events) -> None:
        for key, events in ready:
            self._run(key.data, events)
        for _ in range(len(self._calls)):
            function, arguments = self._calls.popleft()
            self._run(function, *arguments)
        while self._timers and self._timers[0][0] <= monotonic():
            _, _, function, arguments = heapq.heappop(self._timers)
            self._run(function, *arguments)

    def _run(self, function: Callable[..., None], *arguments: Any) -> None:
        try:
            function(*arguments)
        except Exception:
            _logger.exception("a callback of %s raised", self._name)

    def _seconds_to_next_timer(self) -> float | None:
        return max(0.0, self._timers[0][0] - monotonic()) if self._timers else None

    def _drain_wakeups(self, _events: int) -> None:
        with contextlib.suppress(BlockingIOError):
            self._wakeup_receiver.recv(4096)

    def _end(self) -> None:
        self._running = False
