"""OpenTelemetry spans of commits and failures. Needs ``opentelemetry-api`` and a tracer of the app."""

from __future__ import annotations

from time import time_ns
from typing import TYPE_CHECKING, Any

from .broadcaster import Observer

if TYPE_CHECKING:
    from ..store import ProjectionError
    from .broadcaster import Committed

_NANOSECONDS = 1_000_000_000


class TracingObserver(Observer):
    """Makes a span ``keyfold.commit`` per commit, and ``keyfold.fold`` with the exception per failure.

    A commit may hold the events of many requests, so its span is a trace of its own, with the attributes
    ``keyfold.projection``, ``keyfold.key``, ``keyfold.epoch``, ``keyfold.version`` and ``keyfold.events``::

        system.observe(TracingObserver(opentelemetry.trace.get_tracer("shop")))

    Args:
        tracer: An OpenTelemetry tracer.
    """

    def __init__(self, tracer: Any) -> None:
        self._tracer = tracer

    def applied(self, committed: Committed, seconds: float) -> None:
        now = time_ns()
        attributes = {
            "keyfold.projection": committed.projection,
            "keyfold.key": committed.key,
            "keyfold.epoch": committed.epoch,
            "keyfold.version": committed.version,
            "keyfold.events": len(committed.deltas),
        }
        start = now - int(seconds * _NANOSECONDS)
        self._tracer.start_span("keyfold.commit", attributes=attributes, start_time=start).end(now)

    def failed(self, error: ProjectionError, event: object) -> None:
        attributes = {
            "keyfold.projection": error.projection or "",
            "keyfold.key": error.key or "",
            "keyfold.event_type": type(event).__qualname__,
        }
        span = self._tracer.start_span("keyfold.fold", attributes=attributes)
        span.record_exception(error.__cause__ or error)
        span.end()
