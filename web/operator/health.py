"""Whether this process is alive, and whether it is ready for requests."""

from __future__ import annotations

import logging
import threading
from concurrent.futures import Future
from time import monotonic
from typing import TYPE_CHECKING

from ...store.operator_queries import Queries

if TYPE_CHECKING:
    from ...actors import ProjectionSystem

_logger = logging.getLogger("keyfold.health")

_ANSWER_SECONDS = 2.0
_CACHE_SECONDS = 1.0


class Health:
    """Answers probes. An answer names the failing part, but no host, no database and no error text."""

    def __init__(self, system: ProjectionSystem) -> None:
        self._system = system
        self._queries = Queries(system.store)
        self.after_fork()

    def after_fork(self) -> None:
        """In a forked child: forget the question of the parent, and replace its lock."""
        self._lock = threading.Lock()
        self._asked: Future[list[str]] | None = None
        self._asked_at = 0.0

    def alive(self) -> dict[str, str]:
        """Return the trouble of each loop that hangs or has ended, by its name; empty if all are running.

        The loops are checked from outside: a loop that has died cannot report it.
        """
        max_seconds = self._system.settings.health_seconds
        return {loop.name: trouble for loop in self._system.loops() if (trouble := loop.trouble(max_seconds))}

    def degraded(self) -> dict[str, int]:
        """Return the number of keys that do not load, by projection, as far as this process knows.

        Such keys are no reason to send the process no requests: every other process reads the same rows.
        """
        projections = sorted(self._system.projections.items())
        return {name: len(runtime.degraded) for name, runtime in projections if runtime.degraded}

    def ready(self) -> dict[str, str]:
        """Return why the process cannot serve requests, by failing part; empty if it can."""
        failing = self.alive()
        if self._system.closed:
            failing["system"] = "is closed"
            return failing
        try:
            pending = self._pending().result(_ANSWER_SECONDS)
        except TimeoutError:
            failing["database"] = f"has not answered within {_ANSWER_SECONDS:g} s"
        except Exception:
            _logger.warning("a probe could not query the database", exc_info=True)
            failing["database"] = "can't be reached"
        else:
            if pending:
                failing["migrations"] = f"{len(pending)} are pending: run flask keyfold migrate"
        if self._system.trouble:
            failing["writer"] = "can't write at the moment"
        lag = self._system.lag_seconds()
        if lag > self._system.settings.health_seconds:
            failing["lag"] = f"the oldest event has waited for {lag:.1f} s"
        return failing

    def _pending(self) -> Future[list[str]]:
        """Query at most once per second, and never twice at a time, however many probes arrive."""
        with self._lock:
            asked = self._asked
            if asked is None or (asked.done() and monotonic() - self._asked_at > _CACHE_SECONDS):
                asked = self._asked = self._system.submit(self._queries.pending_migrations)
                self._asked_at = monotonic()
        return asked
