"""The settings of the live part: the hub, its channels and connections, and the backplane."""

from __future__ import annotations

from dataclasses import dataclass, field

from ...actors.settings import CheckedSettings, Count, NonEmptyText, Seconds, Text


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveTuning(CheckedSettings):
    """The tuning keys of the live part. Their names may change from one release to the next."""

    heartbeat_seconds: Seconds = 25.0
    """Seconds without a change after which a channel is compared with its row, and sends its position."""
    ping_seconds: Seconds = 25.0
    """Seconds between two pings of a connection."""
    silence_seconds: Seconds = 60.0
    """Seconds without any frame from a WebSocket, pongs included, before it is closed with 4102."""
    stall_seconds: Seconds = 20.0
    """Seconds that a client may take no bytes before it is closed with 4101."""
    outbox_frames: Count = 64
    """Messages that may wait for one connection. Above it the newest snapshot replaces them."""
    outbox_bytes: Count = 256 * 1024
    """Bytes of such messages. As many bytes of answers may wait besides; with more it is closed with 4101."""
    ring_frames: Count = 128
    """Recent deltas that a channel keeps, to resume clients that reconnect."""
    ring_bytes: Count = 256 * 1024
    """Bytes of these deltas, per channel."""
    ring_seconds: Seconds = 300.0
    """Seconds for which a channel keeps a delta."""
    rings_bytes: Count = 64 * 1024 * 1024
    """Bytes of the deltas of all channels; checked every few seconds."""
    idle_channels: Count = 1_000
    """Channels without subscribers that keep their deltas."""
    redis_patience_seconds: Seconds = 0.25
    """Seconds that a change from Redis waits for its predecessor, which another process is still sending."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LiveSettings(LiveTuning):
    """The settings that the live part reads. ``WebSettings`` adds those that only Flask needs."""

    reauthorize_seconds: Seconds = 300.0
    """Seconds between re-authorizations of open connections. A ticket's channel ends then. 0 disables."""
    max_sockets: Count = 10_000
    """Open connections of this process, streams included. Further ones get 429."""
    max_sockets_per_address: Count = 100
    """Open connections per client address. Further ones get 429. Loopback is a proxy, and not counted."""
    max_sockets_per_user: Count = 50
    """Open connections per user, named by ``identify`` or a ticket. Further ones get 429 or ``limit``."""
    max_channels_per_socket: Count = 100
    """Channels that one WebSocket may watch."""
    redis: NonEmptyText | None = field(default=None, repr=False)
    """The URL of the Redis over which processes exchange their changes. It may be away at times."""
    redis_prefix: Text = "keyfold:"
    """The start of each channel name in Redis. Apps that share a Redis need different ones."""
