"""The wait before the next attempt doubles, is jittered, and is bounded."""

from __future__ import annotations

import pytest
from keyfold.store.backoff import backoff


@pytest.mark.parametrize(("attempt", "longest"), [(0, 0.05), (1, 0.1), (5, 1.6), (6, 2.0), (100_000, 2.0)])
def test_it_doubles_up_to_the_maximum(attempt: int, longest: float) -> None:
    """Also after so many attempts that two to their power is no float."""
    waits = [backoff(attempt) for _ in range(50)]
    assert all(longest / 2 <= wait <= longest for wait in waits)
    assert len(set(waits)) > 1


def test_the_bounds_are_the_callers() -> None:
    """A second, then two, and never more than three."""
    assert [0.5 <= backoff(attempt, first=1.0, maximum=3.0) <= 3.0 for attempt in range(5)] == [True] * 5
