"""Signals (https://blinker.readthedocs.io) that an app can receive. Their sender is the Flask app.

Receivers are called after the event, on Keyfold's own threads and outside of any app context. Keep them
short. An error that a receiver raises is logged.
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
    doc="A commit of a key: ``projection``, ``key``, ``epoch``, ``version``, ``events`` (their number).",
)
projection_failed = _signals.signal(
    "keyfold-projection-failed",
    doc="An event could not be folded: ``projection``, ``key``, ``event``, ``error``.",
)
subscriber_connected = _signals.signal(
    "keyfold-subscriber-connected",
    doc="A new connection: ``projection`` and ``key`` (None if it will name its keys later), ``user``.",
)


class SignalObserver(Observer):
    """Sends the signals of one app, if they have receivers."""

    def __init__(self, app: Flask, hub: Hub) -> None:
        self._app = app
        self._hub = hub

    def applied(self, turn: Committed, seconds: float) -> None:  # noqa: ARG002
        if projection_applied.receivers:
            position: dict[str, Any] = {"epoch": turn.epoch, "version": turn.version}
            projection_applied.send(
                self._app, projection=turn.projection, key=turn.key, **position, events=len(turn.deltas)
            )

    def failed(self, error: ProjectionError, event: object) -> None:
        if projection_failed.receivers:
            key = error.key
            projection_failed.send(self._app, projection=error.projection, key=key, event=event, error=error)

    def connected(self, projection: str | None, key: str | None, user: str | None) -> None:
        """Send ``subscriber_connected`` on the thread for background jobs: the caller runs on the reactor."""
        if subscriber_connected.receivers:
            send = partial(subscriber_connected.send, self._app, projection=projection, key=key, user=user)
            self._hub.run_in_background(send)
