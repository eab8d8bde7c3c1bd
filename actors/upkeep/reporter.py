"""Says now and then, in the database, what this process is doing, so that operators see all processes."""

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

_MISSED = 3
"""A process is taken for gone when so many of its reports are missing,"""
_PATIENCE = 3.0
"""and not before so many seconds."""


class Reporter:
    """One report every ``report_seconds`` at most, and one at a time. ``report`` never blocks or raises."""

    def __init__(self, system: ProjectionSystem) -> None:
        self.hooks: list[Callable[[dict[str, Any]], object]] = []
        """Called with the stats of each report."""
        self._system = system
        self._processes = Processes(system.store)
        self.after_fork()

    def after_fork(self) -> None:
        """Be another process, that has said nothing yet."""
        self.host, self.started_at = socket.gethostname(), time()
        # A pid comes again, and several systems share one.
        self.process = f"{self.host[:40]}:{os.getpid()}:{secrets.token_hex(4)}"
        self._lock = threading.Lock()
        self._due = 0.0
        self._under_way: Future[None] | None = None

    def report(self) -> None:
        """Write a report, if one is due. Called by whatever thread comes by."""
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
            for hook in self.hooks:
                hook(stats)
            self._processes.report(self.process, stats)
        except Exception:
            _logger.info("this process could not report itself to the others", exc_info=True)

    def others(self) -> list[dict[str, Any]]:
        """Return what the other processes said last, those that are not gone. Raises StoreError."""
        seconds = self._system.settings.report_seconds
        recent = self._processes.recent(max(_PATIENCE, _MISSED * seconds)) if seconds else []
        return [facts for facts in recent if facts["process"] != self.process]

    def leave(self) -> None:
        """Take the report back at the end; if the database is away, it grows old by itself."""
        if self._due:
            if self._under_way is not None:
                wait([self._under_way], _PATIENCE)  # on another thread: it would bring the report back
            try:
                self._processes.leave(self.process)
            except Exception:
                _logger.debug("the report stays behind", exc_info=True)
