"""Hooks for gunicorn: ``gunicorn -c python:keyfold.web.gunicorn app:app``.

A worker that gets the signal to end closes its sockets with 1001 at once. That includes the sockets that its
request threads carry, which would otherwise delay it until ``--graceful-timeout``. The accepted events are
committed while it ends. With a configuration file of your own, import the hooks into it:
``from keyfold.web.gunicorn import *``.
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
    """Prepare a worker, before it waits for requests.

    Its log says at the start if it has too few descriptors for the sockets. The signals that end it also end
    its sockets.

    Args:
        worker: gunicorn's worker.
    """
    carried = worker.cfg.is_ssl or not is_plain()
    for system in all_systems():
        if isinstance(system.broadcaster, Hub):
            room = system.broadcaster.connection_limits.look_for_room(CARRIED if carried else 1)
            _compare_with_worker_connections(worker.cfg, room)
    for number in (signal.SIGTERM, signal.SIGINT, signal.SIGQUIT):
        before = signal.getsignal(number)

        def handle(given: int, frame: Any, before: Any = before) -> None:
            # Not in the handler: it may interrupt a thread that holds a lock which closing needs. And not by
            # a Thread, whose start waits until it runs: gevent runs the handler where nothing may wait.
            try:
                _thread.start_new_thread(_close_sockets, ())
            except RuntimeError:
                pass  # the process may have no more threads: worker_exit ends the sockets, a little later
            finally:
                if callable(before):
                    before(given, frame)

        signal.signal(number, handle)


def _compare_with_worker_connections(cfg: Any, room: Room) -> None:
    """Log it if gunicorn accepts fewer connections than Keyfold, or more than it may have descriptors for."""
    if cfg.worker_class_str == "sync":  # it takes one at a time
        return
    max_accepted, reserve = cfg.worker_connections, reserve_of(room.descriptors)
    if not is_plain():
        if max_accepted < room.connections:
            _logger.warning(
                "this worker accepts %d connections at once, requests and sockets together, though there is "
                "room for %d sockets; raise --worker-connections",
                max_accepted,
                room.connections,
            )
    elif max_accepted > reserve:
        _logger.warning(
            "this worker accepts %d connections at once for requests, and only %d open files are kept for "
            "them: it ends if it finds none; lower --worker-connections to less than that, or raise the "
            "limit of open files",
            max_accepted,
            reserve,
        )


def _close_sockets() -> None:
    for system in all_systems():
        if system.broadcaster is not None:
            system.broadcaster.close(system.settings.close_timeout)


def worker_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """Commit the accepted events and end the threads of a worker that ends, by max_requests too.

    Args:
        server: gunicorn's arbiter.
        worker: gunicorn's worker.
    """
    for system in all_systems():
        system.close()


def child_exit(server: Any, worker: Any) -> None:  # noqa: ARG001
    """Remove the gauges of a worker that has ended. In the master process.

    Args:
        server: gunicorn's arbiter.
        worker: gunicorn's worker, which has ended.
    """
    if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
        from prometheus_client.multiprocess import mark_process_dead  # noqa: PLC0415  # an extra

        mark_process_dead(worker.pid)  # type: ignore[no-untyped-call]
