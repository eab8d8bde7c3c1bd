"""How an event that can't be folded becomes a dead letter."""

from __future__ import annotations

import logging
import traceback
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, NamedTuple

from ..store import DeadLetter, Position, ProjectionError, StoreError
from .errors import ApplyError
from .receipt import Delivery

if TYPE_CHECKING:
    from .commands import Command
    from .counters import InFlight
    from .props import Props

_logger = logging.getLogger("keyfold.dead_letters")

_MOST_CHARACTERS = 20_000


class Burial(NamedTuple):
    """A dead letter on its way to the database, and the Receipt that is told once it is there."""

    delivery: Delivery
    letter: DeadLetter
    error: Exception


def letter_of(
    props: Props, key: str, delivery: Delivery, error: Exception, *, parked: bool = False
) -> Burial:
    """Make the dead letter of an event. ``error`` is what its Receipt will raise; its cause is kept with it.

    Never raises: what has no JSON is kept as its repr, what has no repr as the name of its type.
    """
    event = delivery.event
    try:
        text = props.encode_event(event).decode()
    except Exception:
        try:
            text = repr(event)
        except Exception as no_repr:
            text = f"<{type(event).__qualname__} whose repr raises {no_repr!r}>"
    cause = error.__cause__ or error
    letter = DeadLetter(
        name=props.projection,
        key=key,
        event_type=f"{type(event).__module__}.{type(event).__qualname__}",
        event=_storable(text),
        error=_storable(f"{type(cause).__qualname__}: {cause}"),
        traceback=_storable("".join(traceback.format_exception(cause))),
        parked=parked,
    )
    return Burial(delivery, letter, error)


def settle_burials(buried: Sequence[Burial], in_flight: InFlight) -> None:
    """Tell the Receipts of events that are dead letters now."""
    for burial in buried:
        burial.delivery.fail(burial.error)
    in_flight.settle(len(buried))


def fail_all(pending: Iterable[Delivery | Command], error: Exception, in_flight: InFlight) -> None:
    """Tell everyone who waits for one of these messages that nothing will come of it."""
    deliveries = 0
    for message in pending:
        if isinstance(message, Delivery):
            message.fail(error)
            deliveries += 1
        else:
            message.fail(error)
    in_flight.settle(deliveries)


def apply_error(
    projection: str, key: str, version: int, event: object, cause: BaseException, *, kept: bool = True
) -> ApplyError:
    """Say which event of which key could not be folded, and why, and whether it is kept as a dead letter."""
    error = ApplyError(
        f"{projection}: {type(event).__qualname__} could not be folded into key {key!r}: "
        f"{type(cause).__qualname__}: {cause}" + (". It is kept as a dead letter" if kept else ""),
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
        f"{cause}. The row is untouched; repair or rebuild the key",
        projection=projection,
        key=key,
    )
    error.__cause__ = cause
    return error


def crash_error(projection: str, key: str, cause: BaseException) -> ProjectionError:
    """Say whose actor failed by a defect of the library, and how."""
    msg = f"{projection}: the actor of key {key!r} failed: {cause!r}"
    error = ProjectionError(msg, projection=projection, key=key)
    error.__cause__ = cause
    return error


def _storable(text: str) -> str:
    """Return text without what a database refuses (NUL, lone surrogates), cut to a bounded length."""
    if len(text) > _MOST_CHARACTERS:
        half = _MOST_CHARACTERS // 2
        text = f"{text[:half]}\n[... {len(text) - 2 * half} characters left out ...]\n{text[-half:]}"
    return text.replace("\x00", "\\x00").encode(errors="backslashreplace").decode()
