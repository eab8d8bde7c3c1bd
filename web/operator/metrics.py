"""The numbers of the stats in the text format of Prometheus. Needs the extra ``metrics``.

Under gunicorn with several workers set PROMETHEUS_MULTIPROC_DIR, as
https://prometheus.github.io/client_python/multiprocess/ says: then a scrape of any worker tells the sum of all.
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
    "turns": "Turns committed: one row written each, for one or more events.",
    "conflicts": "Writes refused because another process had written the row.",
    "gone_back": "Rows that an actor found behind what it had committed; those that had lost it got a new epoch.",
    "dead_letters": "Events that became dead letters.",
    "parked": "Events parked for halted keys.",
    "halts": "Times that a key was halted.",
    "retried": "Dead letters folded after all.",
    "refused": "Events not accepted, for want of room.",
    "broadcast_errors": "Committed changes that could not be shown.",
    "hook_errors": "on_applied hooks that raised.",
    "loads": "Rows loaded by actors.",
    "spawned": "Actors spawned.",
    "retired": "Actors retired.",
}
_NOW = {
    "live": ("Actors alive.", "livesum"),
    "mailbox_depth": ("Events waiting in mailboxes.", "livesum"),
    "oldest_seconds": ("Seconds that the oldest event in a mailbox has waited, at most.", "livemax"),
    # Several processes know the same key: the most that one of them knows is the nearest to the truth.
    "degraded": ("Keys whose rows do not load, at least.", "livemax"),
}
_WRITER = {
    "commits": "Transactions committed.",
    "rows": "Rows written.",
    "commit_seconds": "Seconds spent in transactions.",
    "retries": "Attempts to write that failed and were repeated.",
}
_SOCKETS = {
    "opened": "Connections taken over.",
    "closed": "Connections ended.",
    "slow": "Times that a connection lost frames for being slow.",
    "gone_back": "Rows found behind what was shown of them; those that had lost it got a new epoch.",
    "stalled": "Connections closed for taking nothing, or not the answers that they had asked for.",
    "late": "Connections closed because nobody could be asked in time whether they may go on.",
    "refused": "Connections refused by a limit.",
}
_CHECKS = {
    "checks_waiting": "Subscriptions waiting for authorize.",
    "checks_running": "Calls of authorize for new subscriptions that have not returned.",
    "rechecks_waiting": "Open subscriptions about which authorize is to be asked again.",
    "rechecks_running": "Calls of authorize about open subscriptions that have not returned.",
}
_BACKPLANE = {
    "published": "Messages sent to other processes.",
    "received": "Messages of other processes received.",
    "dropped": "Messages that could not be sent; those who missed them read the row.",
    "reconnects": "Times that the connection to Redis was lost and came back.",
}


class Metrics:
    """Mirrors the stats of one system into metrics of its own registry; counters by what they grew since."""

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
            "keyfold_waiting_rows", "Rows deferred because they alone are locked or refused.", "livesum"
        )
        self._sockets = {
            word: self._counter(f"keyfold_sockets_{word}", text) for word, text in _SOCKETS.items()
        }
        self._checks = {
            word: self._gauge(f"keyfold_{word}", text, "livesum") for word, text in _CHECKS.items()
        }
        self._signals_dropped = self._counter(
            "keyfold_signals_dropped",
            "Signals of connections that were not sent: their receivers are too slow.",
        )
        self._backplane = {
            word: self._counter(f"keyfold_backplane_{word}", text) for word, text in _BACKPLANE.items()
        }
        self._connected = self._gauge(
            "keyfold_backplane_connected", "1 while Redis can be reached, from all processes.", "livemin"
        )
        self._unsent = self._gauge("keyfold_backplane_waiting", "Messages waiting for Redis.", "livesum")
        self._open = self._gauge("keyfold_sockets_open", "Connections open.", "livesum")
        self._subscribers = self._gauge("keyfold_subscribers", "Subscriptions.", "livesum", by)
        self._resyncs = self._counter("keyfold_resyncs", "Snapshots sent because deltas would not do.", by)

    def _counter(self, name: str, text: str, labels: list[str] | None = None) -> Counter:
        return Counter(name, text, labels or (), registry=self._registry)

    def _gauge(self, name: str, text: str, mode: Any, labels: list[str] | None = None) -> Gauge:
        return Gauge(name, text, labels or (), registry=self._registry, multiprocess_mode=mode)

    def mirror(self, stats: dict[str, Any]) -> None:
        """Bring the metrics to these stats. In multi-process mode this writes the process's file."""
        with self._lock:
            for name, facts in stats["projections"].items():
                for word, counter in self._totals.items():
                    self._grow(counter.labels(name), word, name, facts[word])
                for word, gauge in self._now.items():
                    gauge.labels(name).set(facts[word])
            for word, counter in self._writer.items():
                self._grow(counter, f"writer {word}", "", stats["writer"].get(word, 0))
            self._waiting.set(stats["writer"].get("waiting", 0))
            self._mirror_sockets(stats["sockets"])

    def _mirror_sockets(self, sockets: dict[str, Any]) -> None:
        for word, counter in self._sockets.items():
            self._grow(counter, f"sockets {word}", "", sockets.get(word, 0))
        for word, gauge in self._checks.items():
            gauge.set(sockets.get(word, 0))
        self._grow(self._signals_dropped, "signals_dropped", "", sockets.get("signals_dropped", 0))
        if (backplane := sockets.get("backplane")) is not None:
            for word, counter in self._backplane.items():
                self._grow(counter, f"backplane {word}", "", backplane[word])
            self._connected.set(backplane["trouble"] is None)
            self._unsent.set(backplane["waiting"])
        self._open.set(sockets.get("open", 0))
        for name, facts in sockets.get("projections", {}).items():
            self._subscribers.labels(name).set(facts["subscribers"])
            self._grow(self._resyncs.labels(name), "resyncs", name, facts["resyncs"])

    def _grow(self, counter: Any, word: str, name: str, value: float) -> None:
        grown = value - self._seen.get((word, name), 0)
        # Stats of a report may come behind newer ones of a scrape: they bring nothing, and forget nothing.
        if grown > 0:
            counter.inc(grown)
            self._seen[word, name] = value

    def text(self) -> bytes:
        """Return all metrics; in multi-process mode those of all processes."""
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
