"""The URLs for monitoring: probes and metrics."""

from __future__ import annotations

from flask import Blueprint, Response, request
from msgspec import json
from werkzeug.exceptions import HTTPException

from ..app_registry import current_state


class NoMetrics(HTTPException):
    """The extra ``metrics`` is not installed."""

    code = 501
    description = "metrics need prometheus-client: pip install 'keyfold[metrics]'"


def add_probes(blueprint: Blueprint) -> None:
    """Add the URLs. The probes need no token: they name failing parts and degraded projections only."""
    rule = blueprint.add_url_rule
    rule("/keyfold/healthz", "healthz", _healthz, methods=["GET"])
    rule("/keyfold/readyz", "readyz", _readyz, methods=["GET"])
    rule("/keyfold/metrics", "metrics", _metrics, methods=["GET"])


def _healthz() -> Response:
    return _verdict(current_state().health.alive())


def _readyz() -> Response:
    health = current_state().health
    return _verdict(health.ready(), health.degraded())


def _verdict(failing: dict[str, str], degraded: dict[str, int] | None = None) -> Response:
    status = "failing" if failing else "degraded" if degraded else "ok"
    body = {"status": status, "failing": failing} | ({"degraded": degraded} if degraded else {})
    response = Response(json.encode(body), status=503 if failing else 200, mimetype="application/json")
    response.cache_control.no_store = True
    return response


def _metrics() -> Response:
    state = current_state()
    state.access.admin.check_metrics(request)
    try:
        from .metrics import CONTENT_TYPE  # noqa: PLC0415  # an extra
    except ImportError:
        raise NoMetrics from None
    metrics = state.metrics()
    metrics.mirror(state.system.stats())
    return Response(metrics.text(), content_type=CONTENT_TYPE)
