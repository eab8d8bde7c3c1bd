"""What the SnapshotWriter counted, readable from any thread."""

from __future__ import annotations

from collections import deque
from time import monotonic
from typing import Any

_RECENT = 512


class WriterFacts:
    """Numbers of one writer. Only its thread changes them; reading them takes no lock."""

    def __init__(self) -> None:
        self.commits = 0
        self.rows = 0
        self.conflicts = 0
        self.rejected = 0
        self.retries = 0
        self.trouble = ""
        """Why nothing can be written at the moment; empty when all is well."""
        self.heartbeat = monotonic()
        self._sizes: deque[int] = deque(maxlen=_RECENT)
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def committed(self, written: list[bool], seconds: float) -> None:
        """Count one transaction and how long it took."""
        self.commits += 1
        self.rows += sum(written)
        self.conflicts += len(written) - sum(written)
        self._sizes.append(len(written))
        self._seconds.append(seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values; latencies in milliseconds, over the recent commits."""
        seconds, sizes = sorted(self._seconds.copy()), sorted(self._sizes.copy())
        return {
            "commits": self.commits,
            "rows": self.rows,
            "conflicts": self.conflicts,
            "rejected": self.rejected,
            "retries": self.retries,
            "trouble": self.trouble or None,
            "commit_size_p50": _quantile(sizes, 0.5),
            "commit_size_p95": _quantile(sizes, 0.95),
            "commit_ms_p50": round(1000 * _quantile(seconds, 0.5), 3),
            "commit_ms_p95": round(1000 * _quantile(seconds, 0.95), 3),
            "heartbeat_age": round(monotonic() - self.heartbeat, 3),
        }


def _quantile(ordered: list[Any], share: float) -> Any:
    return ordered[min(len(ordered) - 1, int(share * len(ordered)))] if ordered else 0
