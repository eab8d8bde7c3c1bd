"""How an event that can't be folded becomes a dead letter."""

from __future__ import annotations

import traceback
from collections.abc import Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from ...store.errors import describe
from ...store.rows import DeadLetter
from ..receipt import Delivery

if TYPE_CHECKING:
    from ..upkeep.counters import InFlight
    from .actor_context import ActorContext

_MAX_CHARACTERS = 20_000


class PendingLetter(NamedTuple):
    """A dead letter on its way to the database, and the Receipt that is resolved once it is there."""

    delivery: Delivery
    letter: DeadLetter
    error: Exception


def make_letter(
    context: ActorContext, key: str, delivery: Delivery, error: Exception, *, parked: bool = False
) -> PendingLetter:
    """Make the dead letter of an event. Never raises.

    The event is kept whole, so that it can be folded later. An event without JSON is kept as its repr, which
    is for people only.

    Args:
        context: Of the projection.
        key: The key of the event.
        delivery: The event, and its Receipt.
        error: The error that the Receipt will raise; its cause is kept in the letter.
        parked: Whether the letter is an event of a halted key.
    """
    event = delivery.event
    try:
        text = context.codec.encode_event(event).decode()
    except BaseException:  # an encode hook is code of the app
        text = _storable(_repr(event))
    cause = error.__cause__ or error
    letter = DeadLetter(
        name=context.name,
        key=key,
        event_type=_storable(f"{type(event).__module__}.{type(event).__qualname__}"),
        event=text,
        error=_storable(describe(cause)),
        traceback=_storable(_traceback_of(cause)),
        parked=parked,
    )
    return PendingLetter(delivery, letter, error)


def _repr(event: object) -> str:
    try:
        return repr(event)
    except BaseException as no_repr:
        return f"<{type(event).__qualname__} whose repr raises {describe(no_repr)}>"


def _traceback_of(error: BaseException) -> str:
    try:
        return "".join(traceback.format_exception(error))
    except BaseException as unprintable:
        return f"{describe(error)}\n(its traceback can't be printed: {describe(unprintable)})"


def resolve_letters(
    letters: Sequence[PendingLetter], in_flight: InFlight, error: Exception | None = None
) -> None:
    """Resolve the Receipts of events that are dead letters now; with ``error``, that could not be kept."""
    deliveries = [pending.delivery for pending in letters]
    for pending in letters:
        release_frames(pending.error)
        pending.delivery.fail(error or pending.error)
    in_flight.remove(deliveries)


def release_frames(error: BaseException) -> None:
    """Clear the local variables of the calls in which an error was raised, which have all ended by now.

    Its traceback would keep the half changed state, and all events of the batch, for as long as the app keeps
    the error. Files, lines and names of functions stay.
    """
    waiting: list[BaseException | None] = [error]
    seen: set[int] = set()
    while waiting:
        one = waiting.pop()
        if one is None or id(one) in seen:
            continue
        seen.add(id(one))
        waiting += (one.__cause__, one.__context__)
        step = one.__traceback__
        frame = None if step is None else step.tb_frame.f_back
        while frame is not None:  # the callers of the first
            _clear(frame)
            frame = frame.f_back
        while step is not None:
            _clear(step.tb_frame)
            step = step.tb_next


def _clear(frame: FrameType) -> None:
    with suppress(RuntimeError):  # it is still running
        frame.clear()


def _storable(text: str) -> str:
    """Return text without characters that a database refuses (NUL, lone surrogates), and not too long."""
    if len(text) > _MAX_CHARACTERS:
        half = _MAX_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
