"""The common part of all senders: they read orders, and answer with JSON."""

from __future__ import annotations

import json
import resource
import sys
import time
from collections.abc import Callable
from typing import Any

PAYLOAD = json.dumps({
    "type": "delta", "channel": "projection.bench.counter.a", "epoch": "abcdefghijkl", "prev": 123456,
    "version": 123457, "event": "delta", "data": {"sku": "apple", "total": 4711},
}, separators=(",", ":"))  # fmt: skip
"""The message of the other servers for one delta, as long as Keyfold's."""


def answer(value: Any) -> None:
    """Print one line of JSON."""
    sys.stdout.write(json.dumps(value) + "\n")
    sys.stdout.flush()


def serve_orders(port: int, fan_out: Callable[[int, int], None]) -> None:
    """Print the port; then for each line ``rounds burst`` run fan_out and print its seconds."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    answer(port)
    for line in sys.stdin:
        rounds, burst = map(int, line.split())
        started = time.perf_counter()
        fan_out(rounds, burst)
        answer(time.perf_counter() - started)
