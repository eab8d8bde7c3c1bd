"""The root of every error that Keyfold raises, and the errors of the store."""

from __future__ import annotations


class ProjectionError(Exception):
    """The root of all errors that Keyfold raises.

    The message starts with ``projection: ``. The details are attributes.

    Attributes:
        projection: The name of the projection, or None if the error belongs to none.
        key: The key, or None if the error belongs to none.
    """

    def __init__(self, message: str, *, projection: str | None = None, key: str | None = None) -> None:
        super().__init__(f"projection: {message}")
        self.projection = projection
        self.key = key

    @property
    def facts(self) -> dict[str, object]:
        """The attributes that are strings, numbers or None, for the ``extra`` of a log record."""
        return {
            name: value
            for name, value in vars(self).items()
            if value is None or isinstance(value, (str, int, float))
        }


class StoreError(ProjectionError):
    """The database failed or refused, or a row does not decode."""


class StoreUnavailable(StoreError):
    """The database can't be reached, or can't write, at the moment. Trying again later is right."""


class StatementRefused(StoreUnavailable):
    """The connection works, but this statement can't be done now, because of some row in it.

    The row is locked, a policy or a missing privilege forbids it, or the statement took too long.

    Attributes:
        locked: The statement waited for a lock in vain.
    """

    def __init__(self, message: str, *, locked: bool = False) -> None:
        super().__init__(message)
        self.locked = locked


class StoreRejected(StoreError):
    """The database refuses this data for good. Trying again is useless."""


class VersionConflict(StoreError):
    """Another process wrote the row between the read and the write. Nothing was written.

    Attributes:
        expected: The position that the row was expected to have, as text.
    """

    def __init__(self, *, projection: str, key: str, expected: str) -> None:
        super().__init__(
            f"{projection}: the row of key {key!r} is no longer at {expected}",
            projection=projection,
            key=key,
        )
        self.expected = expected


class InvalidKey(ProjectionError):
    """A key is not valid: it is empty, has over 512 characters, is not a str, or is unprintable.

    Attributes:
        key: The key, or None if it is not a str.
        reason: The rule that it breaks.
    """

    def __init__(self, key: object, reason: str, *, projection: str | None = None) -> None:
        shown = repr(key)
        if len(shown) > 80:  # noqa: PLR2004
            shown = shown[:77] + "..."
        where = f"{projection}: " if projection else ""
        super().__init__(
            f"{where}{shown} is not a valid key: {reason}",
            projection=projection,
            key=key if isinstance(key, str) else None,
        )
        self.reason = reason


class CommitInDoubt(StoreUnavailable):
    """The connection broke between a COMMIT and its answer, so that it is not known whether it happened.

    Attributes:
        transaction_number: The number that the commit stamps on the writer's ledger; 0 without a ledger.
        written: The result of the commit, if it happened: for each row, whether its base was still there.
    """

    def __init__(self, message: str, *, transaction_number: int, written: list[bool]) -> None:
        super().__init__(message)
        self.transaction_number = transaction_number
        self.written = written


def describe(error: BaseException) -> str:
    """Return an exception as text, such as ``ValueError: text``. Never raises itself.

    Args:
        error: An exception of an app, a driver or a hook.

    Returns:
        The class and the text; the class alone if there is no text; or ``<Class whose str() raises>``.
    """
    name = type(error).__name__
    try:
        text = str(error)
    except BaseException:
        return f"<{name} whose str() raises>"
    return f"{name}: {text}" if text else name
