"""The counters of the writer."""

from __future__ import annotations

import pytest
from keyfold.store.writing.writer_stats import WriterStats, quantile


@pytest.mark.parametrize(
    ("ordered", "fraction", "value"),
    [([], 0.5, 0), ([7], 0.0, 7), ([7], 1.0, 7), ([1, 2, 3, 4], 0.5, 3), (list(range(100)), 0.95, 95)],
)
def test_quantiles(ordered: list[int], fraction: float, value: int) -> None:
    """Of nothing, of one value, and at both ends."""
    assert quantile(ordered, fraction) == value


def test_a_commit_counts_rows_and_conflicts() -> None:
    """A commit of letters alone has no rows."""
    stats = WriterStats()
    stats.count_commit([True, False, True], 0.5)
    stats.count_commit([], 0.25)
    counted = stats.as_dict()
    assert (counted["commits"], counted["rows"], counted["conflicts"]) == (2, 2, 1)
    assert (counted["commit_seconds"], counted["commit_ms_p95"], counted["commit_size_p95"]) == (
        0.75,
        500.0,
        3,
    )
    assert counted["trouble"] is None
