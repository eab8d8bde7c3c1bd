"""Signals of what happens (https://blinker.readthedocs.io): the sender is the Flask app.

Receivers run after the fact, on Keyfold's own threads and outside of any app context; keep them short.
What they raise is logged.
"""

from __future__ import annotations

from functools import partial
from typing import TYPE_CHECKING, Any

from blinker import Namespace

from ..actors import Observer

if TYPE_CHECKING:
    from flask import Flask

    from ..actors import ProjectionError
    from ..actors.broadcaster import Committed
    from .live.hub import Hub

_signals = Namespace()

projection_applied = _signals.signal(
    "keyfold-projection-applied",
    doc="A turn is committed: ``projection``, ``key``, ``epoch``, ``version``, ``events`` (how many).",
)
projection_failed = _signals.signal(
    "keyfold-projection-failed",
    doc="An event could not be folded: ``projection``, ``key``, ``event``, ``error``.",
)
subscriber_connected = _signals.signal(
    "keyfold-subscriber-connected",
    doc="Somebody watches: ``projection`` and ``key`` (None for a socket that names its keys later), ``user``.",
)


class SignalObserver(Observer):
    """Sends the signals of one app, if anybody receives them."""

    def __init__(self, app: Flask, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    def applied(self, turn: Committed, seconds: float) -> None:  # noqa: ARG002
        if projection_applied.receivers:
            facts: dict[str, Any] = {"epoch": turn.epoch, "version": turn.version, "events": len(turn.deltas)}
            projection_applied.send(self._app, projection=turn.projection, key=turn.key, **facts)

    def failed(self, error: ProjectionError, event: object) -> None:
        if projection_failed.receivers:
            key = error.key
            projection_failed.send(self._app, projection=error.projection, key=key, event=event, error=error)

    def connected(self, projection: str | None, key: str | None, user: str | None) -> None:
        """Say that a connection is open, on the thread for that: the caller's is the reactor's."""
        if subscriber_connected.receivers:
            send = partial(subscriber_connected.send, self._app, projection=projection, key=key, user=user)
            self._hub.aside(send)
