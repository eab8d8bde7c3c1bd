"""OpenTelemetry spans of what is committed and what fails. Needs ``opentelemetry-api`` and a tracer of yours."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from .observer import Observer

if TYPE_CHECKING:
    from ..store import ProjectionError
    from .broadcaster import Committed

_NANOSECONDS = 1_000_000_000


class TracingObserver(Observer):
    """A span ``keyfold.commit`` for each committed turn, ``keyfold.fold`` with the exception for each failure.

    ``system.observe(TracingObserver(opentelemetry.trace.get_tracer("shop")))``. A turn may hold the events
    of many requests, so it is a trace of its own, with ``keyfold.projection``, ``keyfold.key``,
    ``keyfold.epoch``, ``keyfold.version`` and ``keyfold.events``.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def applied(self, turn: Committed, seconds: float) -> None:
        now = time_ns()
        facts = {
            "keyfold.projection": turn.projection,
            "keyfold.key": turn.key,
            "keyfold.epoch": turn.epoch,
            "keyfold.version": turn.version,
            "keyfold.events": len(turn.deltas),
        }
        start = now - int(seconds * _NANOSECONDS)
        self._tracer.start_span("keyfold.commit", attributes=facts, start_time=start).end(now)

    def failed(self, error: ProjectionError, event: object) -> None:
        facts = {
            "keyfold.projection": error.projection or "",
            "keyfold.key": error.key or "",
            "keyfold.event_type": type(event).__qualname__,
        }
        span = self._tracer.start_span("keyfold.fold", attributes=facts)
        span.record_exception(error.__cause__ or error)
        span.end()
