"""The fold itself: events into a state, and their deltas."""

from __future__ import annotations

from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..projection_codec import ProjectionCodec

_MAX_STRIDE = 32
_SLOW_SECONDS = 0.001


def fold(
    codec: ProjectionCodec, state: Any, batch: Sequence[Any], turn_ends: float
) -> tuple[list[bytes], BaseException | None]:
    """Apply the events of batch to state, in order, until the time of the turn is over.

    Args:
        codec: Of the projection whose ``apply`` is called.
        state: Changed in place.
        batch: Items that have their event as the attribute ``event``.
        turn_ends: Monotonic time.

    Returns:
        The encoded deltas of the events that were folded, and the exception of the next event if it raised
        one: then the state may be half changed. Every exception counts, SystemExit too; so does a delta that
        does not decode as it is annotated.
    """
    apply, encode = codec.projection.apply, codec.delta.encode_part
    deltas: list[bytes] = []
    add = deltas.append
    delta = nothing = object()
    # The clock is read after each event while events are slow, and after 32 of them once they are fast.
    start, stride, end, now = 0, 1, len(batch), monotonic()
    try:
        while start < end:
            for delivery in batch[start : start + stride]:
                delta = nothing
                delta = apply(state, delivery.event)
                # Encoded at once: the delta may be a part of the state that the next event changes.
                add(encode(delta))
            start += stride
            before, now = now, monotonic()
            if now > turn_ends:
                break
            if now - before > _SLOW_SECONDS:
                stride = 1
            elif stride < _MAX_STRIDE:
                stride *= 2
    except BaseException as error:
        return deltas, error if delta is nothing else codec.delta.explain(delta, error)
    undecodable = codec.first_undecodable(deltas)
    return (deltas, None) if undecodable is None else (deltas[: undecodable[0]], undecodable[1])
