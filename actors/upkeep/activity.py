"""The recent activity of a projection's actors; the totals since the process began are Counters."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from time import monotonic
from typing import Any

from ...store.writing.writer_stats import quantile

SECONDS = 60
"""For how many seconds back the events of each second are known."""

_RATE_SECONDS = 10
_MAX_SAMPLES = 256
_MAX_KEYS = 256


class Activity:
    """Is updated once per commit, never once per event. Safe from any thread."""

    def __init__(self, clock: Callable[[], float] = monotonic) -> None:
        self._clock = clock
        self._lock = threading.Lock()
        self._seconds: deque[tuple[int, int]] = deque(maxlen=SECONDS)
        self._commits: deque[float] = deque(maxlen=_MAX_SAMPLES)
        self._events: deque[int] = deque(maxlen=_MAX_SAMPLES)
        self._bytes: deque[int] = deque(maxlen=_MAX_SAMPLES)
        self._keys: dict[str, int] = {}

    def encoded(self, size: int) -> None:
        """Note the bytes of a state that is about to be committed."""
        self._bytes.append(size)

    def committed(self, key: str, events: int, seconds: float) -> None:
        """Note a commit: how many events it has, and for how many seconds the actor waited for it."""
        second = int(self._clock())
        with self._lock:
            if self._seconds and self._seconds[-1][0] == second:
                self._seconds[-1] = (second, self._seconds[-1][1] + events)
            else:
                self._seconds.append((second, events))
            self._commits.append(seconds)
            self._events.append(events)
            self._keys[key] = self._keys.get(key, 0) + events
            if len(self._keys) > _MAX_KEYS:
                # The less busy half is dropped: a key of it that is busy again is counted from then on.
                busiest = sorted(self._keys.items(), key=lambda item: -item[1])[: _MAX_KEYS // 2]
                self._keys = dict(busiest)

    def busiest(self, count: int) -> list[tuple[str, int]]:
        """Return up to ``count`` keys with most events since the process began, and about how many events."""
        with self._lock:
            ordered = sorted(self._keys.items(), key=lambda item: -item[1])
        return [(str(key), events) for key, events in ordered[:count]]

    def stats(self) -> dict[str, Any]:
        """Return the numbers of the last minute, JSON-able."""
        now = int(self._clock())
        with self._lock:
            by_second = dict(self._seconds)
            commits, events, sizes = sorted(self._commits), sorted(self._events), sorted(self._bytes.copy())
        recent = [by_second.get(second, 0) for second in range(now - SECONDS + 1, now + 1)]
        return {
            "events_per_second": sum(recent[-_RATE_SECONDS - 1 : -1]) / _RATE_SECONDS,
            "recent": recent,
            "commit_events_p50": quantile(events, 0.5),
            "commit_events_p95": quantile(events, 0.95),
            "commit_ms_p50": round(1000 * quantile(commits, 0.5), 3),
            "commit_ms_p95": round(1000 * quantile(commits, 0.95), 3),
            "snapshot_bytes_p50": quantile(sizes, 0.5),
            "snapshot_bytes_p95": quantile(sizes, 0.95),
        }
