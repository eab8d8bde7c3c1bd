"""The frames of the wire: JSON text, built around states and deltas that are encoded already."""

from __future__ import annotations

import re

import msgspec
from msgspec import json

from ....store import Position


def delta_messages(
    channel: str, event: str, epoch: str, base_version: int, deltas: list[bytes]
) -> list[bytes]:
    """Return the frames of the deltas of one turn."""
    head = b'{"type":"delta","channel":%b,"epoch":%b,"prev":' % (_text(channel), _text(epoch))
    middle = b',"event":%b,"data":' % _text(event)
    return [
        b'%b%d,"version":%d%b%b}' % (head, version - 1, version, middle, delta)
        for version, delta in enumerate(deltas, base_version + 1)
    ]


def are_delta_messages(channel: str, epoch: str, base_version: int, payloads: list[bytes]) -> bool:
    """Say whether these are frames as ``delta_frames`` makes them, of whatever deltas."""
    head = b'{"type":"delta","channel":%b,"epoch":%b,"prev":' % (_text(channel), _text(epoch))
    return all(
        payload.startswith(b'%b%d,"version":%d,"event":' % (head, version - 1, version)) and _is_json(payload)
        for version, payload in enumerate(payloads, base_version + 1)
    )


def snapshot_message(channel: str, position: Position, state: bytes, reason: str) -> bytes:
    """Return the frame that replaces all a subscriber has. ``state`` is JSON."""
    return b'{"type":"snapshot","channel":%b,"epoch":%b,"version":%d,"state":%b,"reason":%b}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
        state,
        _text(reason),
    )


def resumed_message(channel: str, position: Position, since_version: int) -> bytes:
    """Return the frame that says: nothing is missing, the deltas up to this position follow."""
    return b'{"type":"resumed","channel":%b,"epoch":%b,"version":%d,"from":%d}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
        since_version,
    )


def heartbeat_message(channel: str, position: Position) -> bytes:
    """Return the frame that says, after a silence, where the channel stands."""
    return b'{"type":"heartbeat","channel":%b,"epoch":%b,"version":%d}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
    )


def subscribed_message(channel: str) -> bytes:
    """Return the frame that accepts a wish to subscribe; the channel's own frames follow."""
    return b'{"type":"subscribed","channel":%b}' % _text(channel)


def unsubscribed_message(channel: str) -> bytes:
    """Return the frame after which nothing more comes for a channel."""
    return b'{"type":"unsubscribed","channel":%b}' % _text(channel)


def error_message(code: str, message: str, channel: str | None = None) -> bytes:
    """Return the frame that tells a client what was wrong with its own, or with one of its channels."""
    about = {} if channel is None else {"channel": channel}
    return json.encode({"type": "error", "code": code, "message": message, **about})


PONG = b'{"type":"pong"}'


def _is_json(payload: bytes) -> bool:
    try:
        _skim(payload)
        payload.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


_skim = json.Decoder(msgspec.Raw).decode


def _text(value: str) -> bytes:
    return json.encode(value)


_POSITION = re.compile(r"([\w-]{0,64}):(\d{1,18})", re.ASCII)


def parse_position(text: str) -> Position:
    """Return the position of ``since=`` or ``Last-Event-ID``. Raises ValueError."""
    found = _POSITION.fullmatch(text)
    if found is None:
        msg = f"a position is 'epoch:version', not {text[:100]!r}"
        raise ValueError(msg)
    return Position(found[1], int(found[2]))
