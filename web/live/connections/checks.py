"""Asking the app who may read: on a few threads, in fair turns, no more at once than it can bear."""

from __future__ import annotations

import logging
import queue
import threading
from collections import Counter, OrderedDict
from collections.abc import Callable
from typing import TYPE_CHECKING

from .client_identity import Permission

if TYPE_CHECKING:
    from ..connections.subscription import Subscription
    from ..host import Host
    from .connection import Connection

_logger = logging.getLogger("keyfold.access")

_THREADS = 4
_AT_ONCE = 2
"""Of one connection: while one of its checks hangs, its other channels go on, and it holds no more than this."""
HANG_SECONDS = 5.0
"""A call that takes longer has a thread to itself: another one takes its place in the queue."""
_MOST_HANGING = 12

Answered = Callable[["Connection", "Subscription", Permission | None, float], None]
"""Called on the reactor's thread, once for each question that was begun, with the time of its beginning."""


class Checks:
    """A queue of questions to the app, asked in turns: each connection that waits gets one, then the next one's.

    So a connection with a hundred wishes delays another by one of them. What has ended while it waited
    is not asked. All but the calls of the app happens on the reactor's thread, so nothing is locked.
    Threads start when there is something to ask. If all of them hang, up to 12 more take their places; if
    those hang too, nothing is asked until one returns.
    """

    def __init__(self, host: Host, name: str, answered: Answered) -> None:
        self._host, self._name, self._answered = host, name, answered
        self._wishes: dict[Connection, dict[Subscription, None]] = {}
        self._turns: OrderedDict[Connection, None] = OrderedDict()
        """Those with wishes that are not asked about as much as they may be already."""
        self._begun: dict[Subscription, float] = {}
        self._busy: Counter[Connection] = Counter()
        self._jobs: queue.SimpleQueue[Subscription | None] = queue.SimpleQueue()
        self._threads = 0
        self._looks_again = False
        self._closed = False
        self.waiting = 0

    @property
    def running(self) -> int:
        """Questions that the app is answering. From any thread."""
        return len(self._begun)

    def ask(self, subscription: Subscription) -> None:
        """Ask when its connection's turn comes."""
        if self._closed:
            return
        connection = subscription.connection
        self._wishes.setdefault(connection, {})[subscription] = None
        self.waiting += 1
        if self._busy[connection] < _AT_ONCE:
            self._turns.setdefault(connection)
        self._go()

    def drop(self, subscription: Subscription) -> None:
        """Don't ask any more, if it has not been asked yet: it has ended."""
        connection = subscription.connection
        wishes = self._wishes.get(connection)
        if wishes is None or subscription not in wishes:
            return
        del wishes[subscription]
        self.waiting -= 1
        if not wishes:
            del self._wishes[connection]
            self._turns.pop(connection, None)

    def close(self) -> None:
        """Ask nothing more, and end the threads as soon as the app returns to them. From any thread."""
        self._closed = True
        for _ in range(self._threads):
            self._jobs.put(None)

    def _go(self) -> None:
        while self._turns and len(self._begun) < self._room():
            connection, _ = self._turns.popitem(last=False)
            wishes = self._wishes[connection]
            subscription = next(iter(wishes))
            self.drop(subscription)
            self._begun[subscription] = self._host.clock()
            self._busy[connection] += 1
            if wishes and self._busy[connection] < _AT_ONCE:
                self._turns[connection] = None
            self._jobs.put(subscription)
            if self._threads < len(self._begun) and not self._closed:
                self._threads += 1
                name = f"{self._name}-{self._threads}"
                threading.Thread(target=self._work, name=name, daemon=True).start()
                if self._closed:  # from another thread, just now
                    self._jobs.put(None)
        if self._turns and not self._looks_again:
            self._looks_again = True
            self._host.reactor.call_later(HANG_SECONDS, self._look_again)

    def _room(self) -> int:
        """Return how many may be asked at once: those that hang take nobody's place, within bounds."""
        late = self._host.clock() - HANG_SECONDS
        return _THREADS + min(_MOST_HANGING, sum(begun <= late for begun in self._begun.values()))

    def _look_again(self) -> None:
        self._looks_again = False
        self._go()

    def _done(self, subscription: Subscription, permission: Permission | None) -> None:
        connection, begun = subscription.connection, self._begun.pop(subscription)
        self._busy[connection] -= 1
        if not self._busy[connection]:
            del self._busy[connection]
        if connection in self._wishes:
            self._turns.setdefault(connection)
        try:
            self._answered(connection, subscription, permission, begun)
        finally:
            self._go()

    # -- the threads

    def _work(self) -> None:
        while (subscription := self._jobs.get()) is not None and not self._closed:
            self._host.reactor.call(self._done, subscription, _answer(subscription))
            del subscription  # an idle thread keeps no connection


def _answer(subscription: Subscription) -> Permission | None:
    ticket = subscription.opened_by if isinstance(subscription.opened_by, str) else None
    name, key = subscription.address
    try:
        return subscription.connection.identity.may(name, key, ticket)
    except BaseException:  # SystemExit, for one: the thread is needed
        _logger.exception("asking who may read %s raised: refused", name)
        return None
