"""Checks: the app is asked who may read, on a few threads, and in fair order among the connections."""

from __future__ import annotations

import logging
import queue
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

from ....actors.pool.threads import WatchedThread
from .client_identity import Permission

if TYPE_CHECKING:
    from ..reactor import Reactor
    from .connection import Connection
    from .subscription import Subscription

_logger = logging.getLogger("keyfold.access")

_THREADS = 4
_MAX_PER_CONNECTION = 2
"""Checks of one connection that run together. If one hangs, its other channels go on."""
HANG_SECONDS = 5.0
"""A check that takes longer no longer counts against the number of threads."""
_MAX_HANGING = 12


class CheckAnswered(Protocol):
    """Takes the answer of a check. Called on the reactor's thread, once for each check that was started."""

    def __call__(
        self, subscription: Subscription, permission: Permission | None, started_at: float, /
    ) -> None:
        """``permission`` is None if it was refused; ``started_at`` is by the hub's clock."""


class Checks:
    """A queue of checks, in fair order: each connection that waits gets one check, then the next connection.

    So a connection with a hundred subscriptions delays another one by a single check. A subscription that
    ends while it waits is not checked. All but the calls of the app happens on the reactor's thread, so
    nothing is locked. Threads start when they are needed. If all of them hang, up to 12 more start; if those
    hang too, no check is made until one returns.

    Args:
        reactor: Runs the answers.
        clock: Returns the time in seconds.
        name: The first part of the threads' names.
        answered: Takes the answers.
    """

    def __init__(
        self, reactor: Reactor, clock: Callable[[], float], name: str, answered: CheckAnswered
    ) -> None:
        self._reactor, self._clock, self._name, self._answered = reactor, clock, name, answered
        self._waiting: dict[Connection, dict[Subscription, None]] = {}
        self._ready: OrderedDict[Connection, None] = OrderedDict()
        """The connections with a subscription that waits and fewer running checks than they may have."""
        self._started: dict[Subscription, float] = {}
        self._running: Counter[Connection] = Counter()
        self._jobs: queue.SimpleQueue[Subscription | None] = queue.SimpleQueue()
        self._threads = 0
        self._is_retry_scheduled = False
        self._closed = False
        self.waiting = 0

    @property
    def running(self) -> int:
        """The number of checks that the app is answering. From any thread."""
        return len(self._started)

    def ask(self, subscription: Subscription) -> None:
        """Check a subscription once the queue has come to it."""
        if self._closed:
            return
        connection = subscription.connection
        self._waiting.setdefault(connection, {})[subscription] = None
        self.waiting += 1
        if self._running[connection] < _MAX_PER_CONNECTION:
            self._ready.setdefault(connection)
        self._start_checks()

    def drop(self, subscription: Subscription) -> None:
        """Remove a subscription that has ended, if its check has not started."""
        connection = subscription.connection
        waiting = self._waiting.get(connection)
        if waiting is None or subscription not in waiting:
            return
        del waiting[subscription]
        self.waiting -= 1
        if not waiting:
            del self._waiting[connection]
            self._ready.pop(connection, None)

    def close(self) -> None:
        """Start no more checks, and end the threads as soon as the app returns to them. From any thread."""
        self._closed = True
        for _ in range(self._threads):
            self._jobs.put(None)

    def _start_checks(self) -> None:
        while self._ready and len(self._started) < self._max_running():
            connection, _ = self._ready.popitem(last=False)
            waiting = self._waiting[connection]
            subscription = next(iter(waiting))
            self.drop(subscription)
            self._started[subscription] = self._clock()
            self._running[connection] += 1
            if waiting and self._running[connection] < _MAX_PER_CONNECTION:
                self._ready[connection] = None
            self._jobs.put(subscription)
            if self._threads < len(self._started) and not self._closed:
                self._threads += 1
                WatchedThread(f"{self._name}-{self._threads}", self._next_job, self._work).start()
                if self._closed:  # by another thread, just now
                    self._jobs.put(None)
        if self._ready and not self._is_retry_scheduled:
            self._is_retry_scheduled = True
            self._reactor.call_later(HANG_SECONDS, self._retry)

    def _max_running(self) -> int:
        """Return how many checks may run at once. Those that hang do not count, within bounds."""
        late = self._clock() - HANG_SECONDS
        return _THREADS + min(_MAX_HANGING, sum(started <= late for started in self._started.values()))

    def _retry(self) -> None:
        self._is_retry_scheduled = False
        self._start_checks()

    def _take_answer(self, subscription: Subscription, permission: Permission | None) -> None:
        connection, started_at = subscription.connection, self._started.pop(subscription)
        self._running[connection] -= 1
        if not self._running[connection]:
            del self._running[connection]
        if connection in self._waiting:
            self._ready.setdefault(connection)
        try:
            self._answered(subscription, permission, started_at)
        finally:
            self._start_checks()

    # -- on the threads

    def _next_job(self) -> Subscription | None:
        subscription = self._jobs.get()
        return None if self._closed else subscription

    def _work(self, subscription: Subscription) -> None:
        self._reactor.call(self._take_answer, subscription, _check(subscription))


def _check(subscription: Subscription) -> Permission | None:
    ticket = subscription.opened_by if isinstance(subscription.opened_by, str) else None
    name, key = subscription.row_key
    try:
        return subscription.connection.identity.may(name, key, ticket)
    except BaseException:  # SystemExit, for one: the thread is needed
        _logger.exception("the check whether %s may be read raised: refused", name)
        return None
