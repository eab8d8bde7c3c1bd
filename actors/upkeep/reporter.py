"""Reports the stats of this process in the database, so that operators see all processes."""

from __future__ import annotations

import logging
import os
import secrets
import socket
import threading
from collections.abc import Callable
from concurrent.futures import Future, wait
from time import monotonic, time
from typing import TYPE_CHECKING, Any

from ...store.processes import Processes

if TYPE_CHECKING:
    from ..system import ProjectionSystem

_logger = logging.getLogger("keyfold.system")

_MAX_MISSED = 3
"""A process is taken for gone when so many of its reports are missing,"""
_MIN_GONE_SECONDS = 3.0
"""and not before so many seconds."""


class Reporter:
    """Writes a report every ``report_seconds``, one at a time. ``report`` never blocks or raises."""

    def __init__(self, system: ProjectionSystem) -> None:
        self._hooks: list[Callable[[dict[str, Any]], object]] = []
        self._system = system
        self._processes = Processes(system.store)
        self.after_fork()

    def after_fork(self) -> None:
        """Be another process, which has not reported yet. Called in a forked child, and at the start."""
        self.host, self.started_at = socket.gethostname(), time()
        # A pid is used again, and several systems in a process share one.
        self.process = f"{self.host[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._due = 0.0
        self._under_way: Future[None] | None = None

    def on_report(self, hook: Callable[[dict[str, Any]], object]) -> None:
        """Call ``hook(stats)`` with each report, on a reader's thread.

        If it raises, the report is not written.
        """
        self._hooks.append(hook)

    def report(self) -> None:
        """Write a report, if one is due. Safe from any thread; the sweeper calls it in each round."""
        seconds = self._system.settings.report_seconds
        if not seconds or self._system.closed:
            return
        with self._lock:
            busy = self._under_way is not None and not self._under_way.done()
            if busy or monotonic() < self._due:
                return
            self._due = monotonic() + seconds
            try:
                self._under_way = self._system.submit(self._report)
            except Exception:
                _logger.debug("no report: the system closes", exc_info=True)

    def _report(self) -> None:
        try:
            stats = self._system.stats()
            for hook in self._hooks:
                hook(stats)
            self._processes.report(self.process, stats)
        except Exception:
            _logger.info("this process could not report itself to the others", exc_info=True)

    def others(self) -> list[dict[str, Any]]:
        """Return the last reports of the other processes that are not gone. Raises StoreError."""
        seconds = self._system.settings.report_seconds
        recent = self._processes.recent(max(_MIN_GONE_SECONDS, _MAX_MISSED * seconds)) if seconds else []
        return [report for report in recent if report["process"] != self.process]

    def leave(self) -> None:
        """Remove the report at the end. If the database is not available, the report expires by itself."""
        if self._due:
            if self._under_way is not None:
                # On another thread: it would write the report again.
                wait([self._under_way], _MIN_GONE_SECONDS)
            try:
                self._processes.leave(self.process)
            except Exception:
                _logger.debug("the report stays behind", exc_info=True)
