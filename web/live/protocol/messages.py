"""The messages of the hub: JSON text, built around states and deltas that are encoded already."""

from __future__ import annotations

import re

import msgspec
from msgspec import json

from ....store import Position

PONG = b'{"type":"pong"}'

_POSITION = re.compile(r"([\w-]{0,64}):(\d{1,18})", re.ASCII)
_MAX_QUOTED = 100
_skim = json.Decoder(msgspec.Raw).decode


def delta_messages(
    channel: str, event: str, epoch: str, base_version: int, deltas: list[bytes]
) -> list[bytes]:
    """Return the messages for the deltas of one commit.

    Args:
        channel: The name of the channel, ``projection.<name>.<key>``.
        event: The name of the event, as the projection gives it.
        epoch: The epoch of the row.
        base_version: The version that the first delta follows. Each delta is one version.
        deltas: The deltas, each as JSON.
    """
    head = _delta_head(channel, epoch)
    middle = b',"event":%b,"data":' % _text(event)
    return [
        b'%b%d,"version":%d%b%b}' % (head, version - 1, version, middle, delta)
        for version, delta in enumerate(deltas, base_version + 1)
    ]


def are_delta_messages(channel: str, epoch: str, base_version: int, payloads: list[bytes]) -> bool:
    """Return whether ``delta_messages`` can have made these payloads, with any event and any deltas."""
    head = _delta_head(channel, epoch)
    return all(
        payload.startswith(b'%b%d,"version":%d,"event":' % (head, version - 1, version)) and _is_json(payload)
        for version, payload in enumerate(payloads, base_version + 1)
    )


def snapshot_message(channel: str, position: Position, state: bytes, reason: str) -> bytes:
    """Return the message that replaces the whole state at a client. ``state`` is JSON."""
    return b'{"type":"snapshot","channel":%b,"epoch":%b,"version":%d,"state":%b,"reason":%b}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
        state,
        _text(reason),
    )


def resumed_message(channel: str, position: Position, since_version: int) -> bytes:
    """Return the message which says that nothing is missing: the deltas up to ``position`` follow."""
    return b'{"type":"resumed","channel":%b,"epoch":%b,"version":%d,"from":%d}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
        since_version,
    )


def heartbeat_message(channel: str, position: Position) -> bytes:
    """Return the message that gives the position of a channel after a silence."""
    return b'{"type":"heartbeat","channel":%b,"epoch":%b,"version":%d}' % (
        _text(channel),
        _text(position.epoch),
        position.version,
    )


def subscribed_message(channel: str) -> bytes:
    """Return the message that accepts a subscription. The messages of the channel follow."""
    return b'{"type":"subscribed","channel":%b}' % _text(channel)


def unsubscribed_message(channel: str) -> bytes:
    """Return the message that ends a subscription. No message of the channel follows."""
    return b'{"type":"unsubscribed","channel":%b}' % _text(channel)


def error_message(code: str, message: str, channel: str | None = None) -> bytes:
    """Return the message that reports an error in a client's message, or in one of its channels."""
    about = {} if channel is None else {"channel": channel}
    return json.encode({"type": "error", "code": code, "message": message, **about})


def parse_position(text: str) -> Position:
    """Return the position that a client gives in ``since`` or ``Last-Event-ID``.

    Args:
        text: ``epoch:version``.

    Raises:
        ValueError: The text is no position.
    """
    found = _POSITION.fullmatch(text)
    if found is None:
        msg = f"a position is 'epoch:version', not {text[:_MAX_QUOTED]!r}"
        raise ValueError(msg)
    return Position(found[1], int(found[2]))


def _delta_head(channel: str, epoch: str) -> bytes:
    return b'{"type":"delta","channel":%b,"epoch":%b,"prev":' % (_text(channel), _text(epoch))


def _is_json(payload: bytes) -> bool:
    try:
        _skim(payload)
        payload.decode()
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def _text(value: str) -> bytes:
    return json.encode(value)
