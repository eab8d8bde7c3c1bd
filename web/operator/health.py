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
_KEPT_SECONDS = 1.0


class Health:
    """Answers probes. What they are told names the failing part, and no host, no database and no error text."""

    def __init__(self, system: ProjectionSystem) -> None:
        self._system = system
        self._queries = Queries(system.store)
        self.after_fork()

    def after_fork(self) -> None:
        """Know nothing of what the parent asked."""
        self._lock = threading.Lock()
        self._asked: Future[list[str]] | None = None
        self._asked_at = 0.0

    def alive(self) -> dict[str, str]:
        """Return what hangs or has ended, and how; nothing if all loops go round.

        A loop is looked at from outside: one that has died can't report that it is well.
        """
        most = self._system.settings.health_seconds
        return {loop.name: trouble for loop in self._system.loops() if (trouble := loop.trouble(most))}

    def degraded(self) -> dict[str, int]:
        """Return how many keys of each projection do not load, as this process knows; nothing if all do.

        That is no reason to send the process no requests: every other process meets the same rows.
        """
        of = self._system.projections
        return {name: len(runtime.degraded) for name, runtime in sorted(of.items()) if runtime.degraded}

    def ready(self) -> dict[str, str]:
        """Return what stands in the way of serving requests, by part; nothing if all is well."""
        failing = self.alive()
        if self._system.closed:
            failing["system"] = "is closed"
            return failing
        try:
            pending = self._pending().result(_ANSWER_SECONDS)
        except TimeoutError:
            failing["database"] = f"has not answered within {_ANSWER_SECONDS:g} s"
        except Exception:
            _logger.warning("the database can't be asked", exc_info=True)
            failing["database"] = "can't be reached"
        else:
            if pending:
                failing["migrations"] = f"{len(pending)} are pending: run flask keyfold migrate"
        if self._system.trouble:
            failing["writer"] = "can't write at the moment"
        lag, most = self._system.lag_seconds(), self._system.settings.health_seconds
        if lag > most:
            failing["lag"] = f"the oldest event has waited for {lag:.1f} s"
        return failing

    def _pending(self) -> Future[list[str]]:
        """Ask once a second at most, and not again while an answer is due, however many probes come."""
        with self._lock:
            asked = self._asked
            if asked is None or (asked.done() and monotonic() - self._asked_at > _KEPT_SECONDS):
                asked = self._asked = self._system.submit(self._queries.pending_migrations)
                self._asked_at = monotonic()
        return asked
