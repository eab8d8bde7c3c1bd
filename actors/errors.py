"""The errors of the actors. Their root, ProjectionError, is in the store."""

from __future__ import annotations

from pykka import ActorDeadError

from ..store import Position, ProjectionError, StoreError
from ..store.errors import describe


class NotStarted(ProjectionError):
    """There is no running system: none was made for this app, or there is no app context."""


class Closed(ProjectionError):
    """The system is closed: nothing was accepted."""


class AlreadyRegistered(ProjectionError):
    """The projection already listens on this bus: every event would be folded twice."""


class UnknownProjection(ProjectionError):
    """No projection of this name is registered."""


class InvalidProjection(ProjectionError):
    """The Projection class is not usable as it stands; the message names the change to make."""


class InvalidEvent(ProjectionError):
    """The dispatched object is no event, can't be kept, or a projection's ``key`` could not make a key of it.

    ``event`` is the object.
    """

    def __init__(
        self, message: str, *, event: object, projection: str | None = None, key: str | None = None
    ) -> None:
        super().__init__(message, projection=projection, key=key)
        self.event = event


class InvalidState(ProjectionError):
    """The JSON given to ``repair`` is no state of the projection. Nothing was written.

    ``data`` is the JSON as it was given; ``__cause__`` names the field that does not fit.
    """

    def __init__(self, message: str, *, data: str | bytes, projection: str, key: str) -> None:
        super().__init__(message, projection=projection, key=key)
        self.data = data


class ApplyError(ProjectionError):
    """``apply`` raised, or made a state or delta that can't be stored. The event is a dead letter now.

    ``__cause__`` is the original exception, ``event`` the event, ``version`` the version that it would have
    made.
    """

    def __init__(
        self, message: str, *, projection: str, key: str, event: object, version: int | None
    ) -> None:
        super().__init__(message, projection=projection, key=key)
        self.event = event
        self.version = version


class BroadcastError(ProjectionError):
    """The change is committed, but could not be shown. Subscribers get a snapshot instead."""

    def __init__(self, message: str, *, projection: str, key: str, version: int) -> None:
        super().__init__(message, projection=projection, key=key)
        self.version = version


class KeyHalted(ProjectionError):
    """An event before this one could not be folded, and the key waits for an operator.

    This one is parked behind it as a dead letter, and is folded after it when the key is resumed.
    ``position`` is the position of the key, None if it has no row.
    """

    def __init__(self, message: str, *, projection: str, key: str, position: Position | None) -> None:
        super().__init__(message, projection=projection, key=key)
        self.position = position


class LetterNotFound(ProjectionError):
    """There is no such dead letter, it is parked behind another one, or another process has dealt with it."""


class NewerRow(StoreError):
    """A newer release has written the row, in a shape that this one does not know. It is left alone.

    In a rolling release a process of the newer release can answer.
    """


class StateNotFound(ProjectionError):
    """The key has no row, or was wiped."""


class MailboxFull(ProjectionError):
    """There was no room for the event within the dispatch timeout: it was not accepted.

    Slow down, or try again later; if the database is not available, the message says so. ``limit`` is the
    bound that was reached.
    """

    def __init__(self, message: str, *, projection: str | None, key: str | None, limit: int) -> None:
        super().__init__(message, projection=projection, key=key)
        self.limit = limit


class MailboxSealed(ActorDeadError):
    """The actor has ended, perhaps since it was looked up. The message was not taken."""


class WouldDeadlock(ProjectionError):
    """A dispatcher thread was about to wait for work that only dispatcher threads can do."""

    def __init__(self, attempt: str, *, projection: str | None = None, key: str | None = None) -> None:
        super().__init__(
            f"{attempt} inside apply or on_applied would wait for this very thread; "
            "use add_done_callback, or dispatch without waiting",
            projection=projection,
            key=key,
        )


# -- errors that are made in several places


def apply_error(
    projection: str, key: str, version: int, event: object, cause: BaseException, *, is_letter: bool = True
) -> ApplyError:
    """Return the error of an event that could not be folded. ``is_letter``: it is a dead letter now."""
    error = ApplyError(
        f"{projection}: {type(event).__qualname__} could not be folded into key {key!r}: "
        + describe(cause)
        + (". It is kept as a dead letter" if is_letter else ""),
        projection=projection,
        key=key,
        event=event,
        version=version,
    )
    error.__cause__ = cause
    return error


def undecodable_row(projection: str, key: str, position: Position | None, cause: Exception) -> StoreError:
    """Return the error of a row that does not decode into the state type."""
    error = StoreError(
        f"{projection}: the row of key {key!r} at {position} does not decode into the state type: "
        f"{describe(cause)}. The row is untouched; repair or rebuild the key",
        projection=projection,
        key=key,
    )
    error.__cause__ = cause
    return error


def newer_row(projection: str, key: str | None, found: int, known: int) -> NewerRow:
    """Return the error of a row that a newer release has written. This process leaves it alone."""
    msg = (
        f"{projection}: the row{f' of key {key!r}' if key else ''} has schema {found}, this process knows "
        f"{known} at most: a newer release has written it. The row is untouched; run the newer release"
    )
    return NewerRow(msg, projection=projection, key=key)


def crash_error(projection: str, key: str, cause: BaseException) -> ProjectionError:
    """Return the error of the events whose actor failed by a defect of the library."""
    msg = f"{projection}: the actor of key {key!r} failed: {describe(cause)}"
    error = ProjectionError(msg, projection=projection, key=key)
    error.__cause__ = cause
    return error


def key_halted(projection: str, key: str, position: Position | None) -> KeyHalted:
    """Return the error of an event that is parked for a halted key."""
    msg = (
        f"{projection}: key {key!r} is halted at {position or 'its beginning'}; the event is parked as a "
        f"dead letter, and folded when an operator resumes the key"
    )
    return KeyHalted(msg, projection=projection, key=key, position=position)
