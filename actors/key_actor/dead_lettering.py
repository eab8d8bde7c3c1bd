"""How an event that can't be folded becomes a dead letter."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from types import FrameType
from typing import TYPE_CHECKING, NamedTuple

from ...store import Position, ProjectionError, StoreError
from ...store.errors import describe
from ...store.rows import DeadLetter
from ..errors import ApplyError, NewerRow
from ..receipt import Delivery

if TYPE_CHECKING:
    from ..upkeep.counters import InFlight
    from .actor_context import ActorContext
    from .commands import Command

_logger = logging.getLogger("keyfold.dead_letters")

_MOST_CHARACTERS = 20_000


class Burial(NamedTuple):
    """A dead letter on its way to the database, and the Receipt that is told once it is there."""

    delivery: Delivery
    letter: DeadLetter
    error: Exception


def letter_of(
    context: ActorContext, key: str, delivery: Delivery, error: Exception, *, parked: bool = False
) -> Burial:
    """Make the dead letter of an event. ``error`` is what its Receipt will raise; its cause is kept with it.

    Never raises. The event is kept whole, so that it can be folded later; an event without JSON is kept as its
    repr, which is for people only.
    """
    event = delivery.event
    try:
        text = context.encode_event(event).decode()
    except BaseException:  # an encode hook is code of the app
        text = _storable(_repr(event))
    cause = error.__cause__ or error
    letter = DeadLetter(
        name=context.projection,
        key=key,
        event_type=_storable(f"{type(event).__module__}.{type(event).__qualname__}"),
        event=text,
        error=_storable(describe(cause)),
        traceback=_storable(_traceback_of(cause)),
        parked=parked,
    )
    return Burial(delivery, letter, error)


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


def settle_burials(buried: Sequence[Burial], in_flight: InFlight, error: Exception | None = None) -> None:
    """Tell the Receipts of events that are dead letters now; or, with ``error``, that they could not be kept."""
    deliveries = [burial.delivery for burial in buried]
    for burial in buried:
        release_frames(burial.error)
        burial.delivery.fail(error or burial.error)
    in_flight.remove(deliveries)


def release_frames(error: BaseException) -> None:
    """Clear the local variables of the calls in which an error was raised, which have all ended by now.

    Its traceback would keep the half changed state, and all events of the batch, for as long as somebody keeps
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


def fail_all(pending: Iterable[Delivery | Command], error: Exception, in_flight: InFlight) -> None:
    """Tell everyone who waits for one of these messages that nothing will come of it."""
    ended = list(pending)
    for message in ended:
        message.fail(error)
    in_flight.remove(ended)


def apply_error(
    projection: str, key: str, version: int, event: object, cause: BaseException, *, kept: bool = True
) -> ApplyError:
    """Say which event of which key could not be folded, and why, and whether it is kept as a dead letter."""
    error = ApplyError(
        f"{projection}: {type(event).__qualname__} could not be folded into key {key!r}: "
        + describe(cause)
        + (". It is kept as a dead letter" if kept else ""),
        projection=projection,
        key=key,
        event=event,
        version=version,
    )
    error.__cause__ = cause
    return error


def undecodable_row(projection: str, key: str, position: Position | None, cause: Exception) -> StoreError:
    """Say which row does not decode into the state type, and why."""
    error = StoreError(
        f"{projection}: the row of key {key!r} at {position} does not decode into the state type: "
        f"{describe(cause)}. The row is untouched; repair or rebuild the key",
        projection=projection,
        key=key,
    )
    error.__cause__ = cause
    return error


def newer_row(projection: str, key: str | None, found: int, known: int) -> NewerRow:
    """Say that a newer release has written a row, which this one leaves alone: another process can be asked."""
    msg = (
        f"{projection}: the row{f' of key {key!r}' if key else ''} has schema {found}, this process knows {known} "
        "at most: a newer release has written it. The row is untouched; run the newer release"
    )
    return NewerRow(msg, projection=projection, key=key)


def crash_error(projection: str, key: str, cause: BaseException) -> ProjectionError:
    """Say whose actor failed by a defect of the library, and how."""
    msg = f"{projection}: the actor of key {key!r} failed: {describe(cause)}"
    error = ProjectionError(msg, projection=projection, key=key)
    error.__cause__ = cause
    return error


def _storable(text: str) -> str:
    """Return text without what a database refuses (NUL, lone surrogates), cut to a bounded length."""
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
