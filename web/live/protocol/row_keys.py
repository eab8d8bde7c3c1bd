"""From what a client says to the key that it means."""

from __future__ import annotations

from collections.abc import Collection

from ....actors import ProjectionKey
from ....actors.errors import UnknownProjection

_SHOWN = 200


def find_address(
    names: Collection[str], channel: str | None, projection: str | None, key: str | None
) -> tuple[str, str]:
    """Return (name, key) of a channel, or of the two given apart. Raises UnknownProjection, InvalidKey.

    Names and keys may both have dots: the longest of the names that fits is meant.
    """
    if projection is None or key is None:
        head, _, rest = (channel or "").partition("projection.")
        fitting = [name for name in names if not head and rest.startswith(f"{name}.")]
        projection = max(fitting, key=len, default=None)
        if projection is None:
            msg = f"no registered projection has the channel {(channel or '')[:_SHOWN]!r}"
            raise UnknownProjection(msg)
        key = rest[len(projection) + 1 :]
    elif projection not in names:
        msg = f"no projection is named {projection[:_SHOWN]!r}"
        raise UnknownProjection(msg, projection=projection)
    return projection, str(ProjectionKey(key))  # a plain str again, as JSON encoders want it
