"""What the actors tell a channel."""

from __future__ import annotations

from typing import NamedTuple

from ..store import Position


class Turn(NamedTuple):
    """The WebSocket frames of the deltas of one committed turn, positions as in Committed."""

    epoch: str
    base_version: int
    frames: list[bytes]


class Replaced(NamedTuple):
    """A whole new state, as JSON: the key was rebuilt or wiped."""

    position: Position
    state: bytes
    reason: str


class Missed(NamedTuple):
    """Something could not be published: the row has to be read."""


News = Turn | Replaced | Missed
