"""The limits and intervals of the live part: the hub, its channels and connections, and the backplane."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any

from ...actors import ProjectionError, check_setting


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings:
    """The settings that the live part reads. ``WebSettings`` adds those that only Flask needs."""

    heartbeat_seconds: float = 25.0
    """After so long without a change a channel is compared with its row, and tells its position."""
    ping_seconds: float = 25.0
    """How often a connection is pinged."""
    silence_seconds: float = 60.0
    """A WebSocket that says nothing for so long, not even a pong, is closed with 4102."""
    stall_seconds: float = 20.0
    """A client that takes nothing for so long is closed with 4101."""
    reauthorize_seconds: float = 300.0
    """For so long an answer of ``authorize`` holds. It is asked again before that. A ticket's channel ends then. 0: never."""
    outbox_frames: int = 64
    """Frames that may wait for one connection; over it, they are replaced by the newest snapshot."""
    outbox_bytes: int = 256 * 1024
    """Bytes that may wait for one connection, likewise; and as many bytes of answers, over which it is closed."""
    ring_frames: int = 128
    """Deltas that a channel keeps for clients that come back."""
    ring_bytes: int = 256 * 1024
    """Bytes of them, likewise."""
    ring_seconds: float = 300.0
    """And how long they are kept."""
    rings_bytes: int = 64 * 1024 * 1024
    """Bytes that all channels keep together, looked after every few seconds."""
    idle_channels: int = 1_000
    """Channels that nobody watches any more and that still keep deltas."""
    max_sockets: int = 10_000
    """Open connections in this process, streams included; further ones get 429."""
    max_sockets_per_address: int = 100
    """Open connections from one client address; further ones get 429. Loopback is a proxy, and not counted."""
    max_sockets_per_user: int = 50
    """Open connections of one user, as ``identify`` or a ticket names them; further ones get 429, or ``limit``."""
    max_channels_per_socket: int = 100
    """Channels that one WebSocket may watch."""
    redis: str | None = None
    """The URL of a Redis through which processes tell each other's sockets what they commit. It may come and go."""
    redis_prefix: str = "keyfold:"
    """What the channels in Redis begin with: apps that share a Redis need one each."""
    redis_patience_seconds: float = 0.25
    """How long a change may wait for the one before it, which another process has on its way."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_live_setting(field.name, field.type, getattr(self, field.name))


def check_live_setting(name: str, kind: Any, value: object) -> None:
    """Raise ProjectionError, naming the setting, unless value is one that the setting may have."""
    if name == "redis":
        if value is not None and (not isinstance(value, str) or not value):
            _malformed(name, value, "a string that is not empty")
    elif name == "redis_prefix":
        if not isinstance(value, str):
            _malformed(name, value, "a string")
    else:
        check_setting(name, kind, value)


def _malformed(name: str, value: object, expected: str) -> None:
    msg = f"the setting {name} must be {expected}, not {value!r}"
    raise ProjectionError(msg)
