"""The fold itself: events into a state, and what of it can be told."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actor_context import ActorContext

_MAX_STRIDE = 32
_SLOW_SECONDS = 0.001


def fold(
    context: ActorContext, state: Any, batch: Sequence[Any], turn_ends: float
) -> tuple[list[bytes], BaseException | None]:
    """Apply the events of batch to state, in order, until the turn's time is over.

    The items of batch have their event as the attribute ``event``. Returns the encoded deltas of those that
    were folded, and what the next one raised, if one did: then the state may be half changed. Whatever is
    raised counts, SystemExit too; so does a delta that does not decode as it is annotated.
    """
    apply, encode = context.apply, context.encode_delta
    deltas: list[bytes] = []
    keep = deltas.append
    delta = nothing = object()
    # The clock is looked at after each event while events are slow, and after 32 of them once they are fast.
    start, stride, end, now = 0, 1, len(batch), monotonic()
    try:
        while start < end:
            for delivery in batch[start : start + stride]:
                delta = nothing
                delta = apply(state, delivery.event)
                # Encoded at once: the delta may be a part of the state that the next event changes.
                keep(encode(delta))
            start += stride
            before, now = now, monotonic()
            if now > turn_ends:
                break
            if now - before > _SLOW_SECONDS:
                stride = 1
            elif stride < _MAX_STRIDE:
                stride *= 2
    except BaseException as error:
        return deltas, error if delta is nothing else context.explain_delta(delta, error)
    bad = context.check_deltas(deltas)
    return (deltas, None) if bad is None else (deltas[: bad[0]], bad[1])
