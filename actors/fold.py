"""The fold itself: events into a state, and what of it can be told."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from time import monotonic
from typing import Any

_MAX_STRIDE = 32
_SLOW_SECONDS = 0.001


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
    # The clock is looked at after each event while events are slow, and after 32 of them once they are fast.
    start, stride, end, now = 0, 1, len(batch), monotonic()
    try:
        while start < end:
            for delivery in batch[start : start + stride]:
                # Encoded at once: the delta may be a part of the state that the next event changes.
                deltas.append(encode(apply(state, delivery.event)))  # noqa: PERF401  # those before an error count
            start += stride
            before, now = now, monotonic()
            if now > turn_ends:
                break
            if now - before > _SLOW_SECONDS:
                stride = 1
            elif stride < _MAX_STRIDE:
                stride *= 2
    except BaseException as error:
        return deltas, error
    return deltas, None
