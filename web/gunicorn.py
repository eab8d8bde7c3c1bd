"""Hooks for gunicorn: ``gunicorn -c python:keyfold.web.gunicorn app:app``.

A worker that is told to end says 1001 to its sockets at once, also to those that its request threads
carry and that would hold it up until ``--graceful-timeout``; what was accepted is committed while it ends.
With a configuration file of your own, import the hooks into it: ``from keyfold.web.gunicorn import *``.
"""

from __future__ import annotations

import _thread
import logging
import os
import signal
from typing import Any

from ..actors.system import all_systems
from .live.connections.connection_limits import CARRIED, Room, reserve_of
from .live.hub import Hub
from .socket_takeover import is_plain

_logger = logging.getLogger("keyfold.gunicorn")

__all__ = ["child_exit", "post_worker_init", "worker_exit"]


def post_worker_init(worker: Any) -> None:
    """Look for room for the sockets, so that the log tells at the start if there is little of it.

    And let the signals that end a worker end its sockets as well, before the worker waits for its requests.
    """
    carried = worker.cfg.is_ssl or not is_plain()
    for system in all_systems():
        if isinstance(system.broadcaster, Hub):
            room = system.broadcaster.connection_limits.look_for_room(CARRIED if carried else 1)
            _compare_with_worker_connections(worker.cfg, room)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)

        def handle(given: int, frame: Any, before: Any = before) -> None:
            # Not here: a handler may interrupt whoever holds a lock that the goodbye needs. And not by a Thread, whose
            # start waits until it runs: with gevent a handler runs where nothing may wait.
            try:
                _thread.start_new_thread(_say_goodbye, ())
            except RuntimeError:
                pass  # the process may have no more threads: worker_exit ends the sockets, a little later
            finally:
                if callable(before):
                    before(given, frame)

        signal.signal(number, handle)


def _compare_with_worker_connections(cfg: Any, room: Room) -> None:
    """Log it if gunicorn takes fewer connections than Keyfold would, or so many that no descriptor may be left to accept one."""
    if cfg.worker_class_str == "sync":  # it takes one at a time
        return
    most, reserve = cfg.worker_connections, reserve_of(room.descriptors)
    if not is_plain():
        if most < room.connections:
            _logger.warning(
                "this worker accepts %d connections at once, requests and sockets together, though there is room for "
                "%d sockets; raise --worker-connections",
                most,
                room.connections,
            )
    elif most > reserve:
        _logger.warning(
            "this worker accepts %d connections at once for requests, and only %d open files are kept for them: it ends "
            "if it finds none; lower --worker-connections to less than that, or raise the limit of open files",
            most,
            reserve,
        )


def _say_goodbye() -> None:
    for system in all_systems():
        if system.broadcaster is not None:
            system.broadcaster.close(system.settings.close_timeout)


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """Commit what was accepted, and end the threads, however the worker came to its end (max_requests too)."""
    for system in all_systems():
        system.close()


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """In the master: forget the gauges of a worker that is gone."""
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  # an extra

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
