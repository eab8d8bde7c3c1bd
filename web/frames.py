"""The frames of the wire: JSON text, built around states and deltas that are encoded already."""

from __future__ import annotations

from msgspec import json

from ..store import Position


def delta_frames(
    channel: str, event: str, epoch: str, base_version: int, deltas: list[bytes]
) -> list[tuple[int, bytes]]:
    """Return (version, frame) of each delta of one turn."""
    head = b'{"type":"delta","channel":%b,"epoch":%b,"prev":' % (_text(channel), _text(epoch))
    middle = b',"event":%b,"data":' % _text(event)
    return [
        (version, b'%b%d,"version":%d%b%b}' % (head, version - 1, version, middle, delta))
        for version, delta in enumerate(deltas, base_version + 1)
    ]


def snapshot_frame(channel: str, position: Position, state: bytes, reason: str) -> bytes:
    """Return the frame that replaces all a subscriber has. ``state`` is JSON."""
    return b'{"type":"snapshot","channel":%b,"epoch":%b,"version":%d,"state":%b,"reason":%b}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
        state,
        _text(reason),
    )


def heartbeat_frame(channel: str, position: Position) -> bytes:
    """Return the frame that says, after a silence, where the channel stands."""
    return b'{"type":"heartbeat","channel":%b,"epoch":%b,"version":%d}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
    )


def error_frame(code: str, message: str) -> bytes:
    """Return the frame that tells a client what was wrong with its own."""
    return json.encode({"type": "error", "code": code, "message": message})


PONG = b'{"type":"pong"}'


def _text(value: str) -> bytes:
    return json.encode(value)
