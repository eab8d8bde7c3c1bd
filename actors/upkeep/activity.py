"""What a projection's actors are doing at the moment, as against the totals since the process began."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ...store.writing.writer_stats import quantile

SECONDS = 60
"""How far back the events of each second are known."""

_RATE_OVER = 10
_SAMPLES = 256
_BUSIEST = 256


class Activity:
    """Told once a turn, never once an event. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[tuple[int, int]] = deque(maxlen=SECONDS)
        self._commits: deque[float] = deque(maxlen=_SAMPLES)
        self._events: deque[int] = deque(maxlen=_SAMPLES)
        self._bytes: deque[int] = deque(maxlen=_SAMPLES)
        self._keys: dict[str, int] = {}

    def encoded(self, size: int) -> None:
        """Note the bytes of a state that is being saved."""
        self._bytes.append(size)

    def committed(self, key: str, events: int, seconds: float) -> None:
        """Note a turn: how many events, and how long the actor waited for its commit."""
        second = int(self._clock())
        with self._lock:
            if self._seconds and self._seconds[-1][0] == second:
                self._seconds[-1] = (second, self._seconds[-1][1] + events)
            else:
                self._seconds.append((second, events))
            self._commits.append(seconds)
            self._events.append(events)
            self._keys[key] = self._keys.get(key, 0) + events
            if len(self._keys) > _BUSIEST:
                # Half go, the less busy ones: a key that is busy again comes back and is counted from then on.
                kept = sorted(self._keys.items(), key=lambda item: -item[1])[: _BUSIEST // 2]
                self._keys = dict(kept)

    def busiest(self, most: int) -> list[tuple[str, int]]:
        """Return the keys (plain strings) with most events since the process began, and roughly how many, most first."""
        with self._lock:
            ordered = sorted(self._keys.items(), key=lambda item: -item[1])
        return [(str(key), events) for key, events in ordered[:most]]

    def stats(self) -> dict[str, Any]:
        """Return the numbers of the last minute, JSON-able."""
        now = int(self._clock())
        with self._lock:
            by_second = dict(self._seconds)
            commits, events, sizes = sorted(self._commits), sorted(self._events), sorted(self._bytes.copy())
        recent = [by_second.get(second, 0) for second in range(now - SECONDS + 1, now + 1)]
        return {
            "events_per_second": sum(recent[-_RATE_OVER - 1 : -1]) / _RATE_OVER,
            "recent": recent,
            "commit_events_p50": quantile(events, 0.5),
            "commit_events_p95": quantile(events, 0.95),
            "commit_ms_p50": round(1000 * quantile(commits, 0.5), 3),
            "commit_ms_p95": round(1000 * quantile(commits, 0.95), 3),
            "snapshot_bytes_p50": quantile(sizes, 0.5),
            "snapshot_bytes_p95": quantile(sizes, 0.95),
        }
