"""Positions as clients write them: ``epoch:version``."""

from __future__ import annotations

import re

from ....store import Position

_POSITION = re.compile(r"([\w-]{0,64}):(\d{1,18})", re.ASCII)


def parse_position(text: str) -> Position:
    """Return the position of ``since=`` or ``Last-Event-ID``. Raises ValueError."""
    found = _POSITION.fullmatch(text)
    if found is None:
        msg = f"a position is 'epoch:version', not {text[:100]!r}"
        raise ValueError(msg)
    return Position(found[1], int(found[2]))
