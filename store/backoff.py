"""How long to wait before the next attempt."""

from __future__ import annotations

import random

_MAX_DOUBLINGS = 30


def backoff(attempt: int, *, first: float = 0.05, maximum: float = 2.0) -> float:
    """Return the seconds to wait after a failed attempt: twice as long after each one, with jitter.

    Args:
        attempt: How many attempts failed before this one; 0 after the first failure.
        first: The seconds after the first failure, before the jitter.
        maximum: The most seconds to wait.

    Returns:
        Between half and all of the doubled time, at random, so that many processes do not come back at once.
    """
    # Bounded: a float can't hold two to the power of the attempts of a day.
    seconds = min(maximum, first * 2.0 ** min(attempt, _MAX_DOUBLINGS))
    return seconds * random.uniform(0.5, 1.0)  # noqa: S311  # jitter
