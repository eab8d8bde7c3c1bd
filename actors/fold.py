"""The fold itself: events into a state, and what of it can be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

_CLOCK_EVERY = 32


def fold(
    apply: Callable[[Any, Any], Any],
    encode: Callable[[Any], bytes],
    state: Any,
    batch: Sequence[Any],
    turn_ends: float,
) -> tuple[list[bytes], BaseException | None]:
    """Apply the events of batch to state, in order, until the turn's time is over.

    The items of batch have their event as the attribute ``event``. Returns the encoded deltas of those that
    were folded, and what the next one raised, if one did: then the state may be half changed. Whatever is
    raised counts, SystemExit too.
    """
    deltas: list[bytes] = []
    try:
        for start in range(0, len(batch), _CLOCK_EVERY):
            for delivery in batch[start : start + _CLOCK_EVERY]:
                # Encoded at once: the delta may be a part of the state that the next event changes.
                deltas.append(encode(apply(state, delivery.event)))  # noqa: PERF401  # those before an error count
            if monotonic() > turn_ends:
                break
    except BaseException as error:
        return deltas, error
    return deltas, None
