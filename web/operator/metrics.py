"""The stats in the text format of Prometheus. Needs the extra ``metrics``.

Under gunicorn with several workers, set PROMETHEUS_MULTIPROC_DIR as described at
https://prometheus.github.io/client_python/multiprocess/: then a scrape of any worker returns the sum of all.
"""

from __future__ import annotations

import os
import threading
from typing import Any

from prometheus_client import CONTENT_TYPE_LATEST, CollectorRegistry, Counter, Gauge, generate_latest
from prometheus_client.multiprocess import MultiProcessCollector

CONTENT_TYPE = CONTENT_TYPE_LATEST

_TOTALS = {
    "events": "Events folded and committed.",
    "turns": "Commits of keys: each writes one row, for one or more events.",
    "conflicts": "Writes refused because another process had written the row.",
    "gone_back": (
        "Rows that an actor found at an earlier version than it had committed; "
        "rows that had lost commits got a new epoch."
    ),
    "dead_letters": "Events that became dead letters.",
    "parked": "Events parked for halted keys.",
    "halts": "Times that a key was halted.",
    "retried": "Dead letters folded by a retry.",
    "refused": "Events refused because a mailbox or the system was full.",
    "broadcast_errors": "Commits that could not be broadcast.",
    "hook_errors": "Errors raised by on_applied hooks.",
    "loads": "Rows loaded by actors.",
    "spawned": "Actors spawned.",
    "retired": "Actors retired.",
}
_NOW = {
    "live": ("Actors alive.", "livesum"),
    "mailbox_depth": ("Events waiting in mailboxes.", "livesum"),
    "oldest_seconds": ("Seconds that the oldest event in a mailbox has waited.", "livemax"),
    # Several processes may know the same key, so a sum would count it twice: the maximum is a lower bound.
    "degraded": ("Keys whose rows do not load (a lower bound).", "livemax"),
}
_WRITER = {
    "commits": "Transactions committed.",
    "rows": "Rows written.",
    "commit_seconds": "Seconds spent in transactions.",
    "retries": "Failed writes that were repeated.",
}
_SOCKETS = {
    "opened": "Connections opened.",
    "closed": "Connections closed.",
    "slow": "Times that a slow connection skipped messages.",
    "gone_back": (
        "Rows found at an earlier version than subscribers had seen; "
        "rows that had lost commits got a new epoch."
    ),
    "stalled": "Connections closed because the client read nothing, or not the answers to its requests.",
    "late": "Connections closed because they could not be authorized again in time.",
    "refused": "Connections refused by a limit.",
}
_CHECKS = {
    "checks_waiting": "Subscriptions waiting for authorize.",
    "checks_running": "Calls of authorize for new subscriptions that have not returned.",
    "rechecks_waiting": "Open subscriptions waiting to be authorized again.",
    "rechecks_running": "Calls of authorize for open subscriptions that have not returned.",
}
_BACKPLANE = {
    "published": "Messages sent to other processes.",
    "received": "Messages received from other processes.",
    "dropped": "Messages that could not be sent; the other processes read the row instead.",
    "reconnects": "Times that the connection to Redis was lost and came back.",
}


class Metrics:
    """Mirrors the stats of one system into the metrics of its own registry, counters by their increase.

    It has more than 12 attributes: one per metric, or per group of metrics with the same labels.
    """

    def __init__(self) -> None:
        self._multiprocess = "PROMETHEUS_MULTIPROC_DIR" in os.environ
        self._registry = CollectorRegistry()
        self._lock = threading.Lock()
        self._seen: dict[tuple[str, str], float] = {}
        by = ["projection"]
        self._totals = {word: self._counter(f"keyfold_{word}", text, by) for word, text in _TOTALS.items()}
        self._now = {
            word: self._gauge(f"keyfold_{_gauge_name(word)}", text, mode, by)
            for word, (text, mode) in _NOW.items()
        }
        self._writer = {word: self._counter(f"keyfold_writer_{word}", text) for word, text in _WRITER.items()}
        self._waiting = self._gauge(
            "keyfold_waiting_rows", "Rows that wait because they alone are locked or refused.", "livesum"
        )
        self._sockets = {
            word: self._counter(f"keyfold_sockets_{word}", text) for word, text in _SOCKETS.items()
        }
        self._checks = {
            word: self._gauge(f"keyfold_{word}", text, "livesum") for word, text in _CHECKS.items()
        }
        self._signals_dropped = self._counter(
            "keyfold_signals_dropped",
            "Signals of connections that were dropped because their receivers are too slow.",
        )
        self._backplane = {
            word: self._counter(f"keyfold_backplane_{word}", text) for word, text in _BACKPLANE.items()
        }
        self._connected = self._gauge(
            "keyfold_backplane_connected", "1 while all processes can reach Redis, else 0.", "livemin"
        )
        self._unsent = self._gauge("keyfold_backplane_waiting", "Messages waiting for Redis.", "livesum")
        self._open = self._gauge("keyfold_sockets_open", "Connections open.", "livesum")
        self._subscribers = self._gauge("keyfold_subscribers", "Subscriptions.", "livesum", by)
        self._resyncs = self._counter(
            "keyfold_resyncs", "Snapshots sent to subscribers that could not follow by deltas.", by
        )

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or (), registry=self._registry)

    def _gauge(self, name: str, text: str, mode: Any, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or (), registry=self._registry, multiprocess_mode=mode)

    def mirror(self, stats: dict[str, Any]) -> None:
        """Set the metrics to these stats. In multi-process mode, this writes the file of the process."""
        with self._lock:
            for name, projection in stats["projections"].items():
                for word, counter in self._totals.items():
                    self._increase(counter.labels(name), word, name, projection[word])
                for word, gauge in self._now.items():
                    gauge.labels(name).set(projection[word])
            for word, counter in self._writer.items():
                self._increase(counter, f"writer {word}", "", stats["writer"].get(word, 0))
            self._waiting.set(stats["writer"].get("waiting", 0))
            self._mirror_sockets(stats["sockets"])

    def _mirror_sockets(self, sockets: dict[str, Any]) -> None:
        for word, counter in self._sockets.items():
            self._increase(counter, f"sockets {word}", "", sockets.get(word, 0))
        for word, gauge in self._checks.items():
            gauge.set(sockets.get(word, 0))
        self._increase(self._signals_dropped, "signals_dropped", "", sockets.get("signals_dropped", 0))
        if (backplane := sockets.get("backplane")) is not None:
            for word, counter in self._backplane.items():
                self._increase(counter, f"backplane {word}", "", backplane[word])
            self._connected.set(backplane["trouble"] is None)
            self._unsent.set(backplane["waiting"])
        self._open.set(sockets.get("open", 0))
        for name, projection in sockets.get("projections", {}).items():
            self._subscribers.labels(name).set(projection["subscribers"])
            self._increase(self._resyncs.labels(name), "resyncs", name, projection["resyncs"])

    def _increase(self, counter: Any, word: str, name: str, value: float) -> None:
        increase = value - self._seen.get((word, name), 0)
        # The stats of a report may be older than those of the last scrape: they change nothing.
        if increase > 0:
            counter.inc(increase)
            self._seen[word, name] = value

    def text(self) -> bytes:
        """Return all metrics, in multi-process mode those of all processes."""
        if not self._multiprocess:
            return generate_latest(self._registry)
        registry = CollectorRegistry()
        MultiProcessCollector(registry)  # type: ignore[no-untyped-call]
        return generate_latest(registry)


def _gauge_name(word: str) -> str:
    names = {
        "live": "actors_live",
        "oldest_seconds": "mailbox_oldest_seconds",
        "degraded": "degraded_keys",
    }
    return names.get(word, word)
