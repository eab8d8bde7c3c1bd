"""The counters of the SnapshotWriter, readable from any thread."""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Sequence
from typing import Any

_RECENT = 512


class WriterStats:
    """The counters and the state of one writer.

    Only the writer's thread changes them, attribute by attribute; reading them takes no lock. It has more
    than twelve attributes, as each is one number of the public stats.
    """

    def __init__(self) -> None:
        self.commits = 0
        self.rows = 0
        self.commit_seconds = 0.0
        self.conflicts = 0
        self.rejected = 0
        self.retries = 0
        self.trouble = ""
        """Why nothing can be written at the moment; empty if the database works."""
        self.waiting = 0
        """How many messages are deferred: their rows can't be written now, while others go on."""
        self.waiting_reason = ""
        """Why one of them waits, with its row; empty if none is known to be at fault."""
        self.thread: threading.Thread | None = None
        """The writer's thread, once it runs."""
        self.busy_since: float | None = None
        """When the current step began, as monotonic time; None while the writer waits for messages."""
        self._sizes: deque[int] = deque(maxlen=_RECENT)
        self._seconds: deque[float] = deque(maxlen=_RECENT)

    def count_commit(self, written: list[bool], seconds: float) -> None:
        """Count one transaction: its rows, its conflicts and how long it took."""
        self.commits += 1
        self.commit_seconds += seconds
        self.rows += sum(written)
        self.conflicts += len(written) - sum(written)
        self._sizes.append(len(written))
        self._seconds.append(seconds)

    def as_dict(self) -> dict[str, Any]:
        """Return the numbers as JSON-able values; percentiles are over the last 512 commits."""
        seconds, sizes = sorted(self._seconds.copy()), sorted(self._sizes.copy())
        return {
            "commits": self.commits,
            "rows": self.rows,
            "commit_seconds": round(self.commit_seconds, 6),
            "conflicts": self.conflicts,
            "rejected": self.rejected,
            "retries": self.retries,
            "trouble": self.trouble or None,
            "waiting": self.waiting,
            "waiting_reason": self.waiting_reason or None,
            "commit_size_p50": quantile(sizes, 0.5),
            "commit_size_p95": quantile(sizes, 0.95),
            "commit_ms_p50": round(1000 * quantile(seconds, 0.5), 3),
            "commit_ms_p95": round(1000 * quantile(seconds, 0.95), 3),
        }


def quantile(ordered: Sequence[Any], fraction: float) -> Any:
    """Return the value that a fraction (0 to 1) of ordered values lies below; 0 if there are no values."""
    return ordered[min(len(ordered) - 1, int(fraction * len(ordered)))] if ordered else 0
