"""All channels of one hub, those that are watched and those that somebody may come back to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from .channel import Channel

if TYPE_CHECKING:
    from ..host import Host


class Channels:
    """Changed on the reactor's thread alone. Actors look into it: is anyone interested in this key?"""

    def __init__(self, host: Host) -> None:
        self._host = host
        self._channels: dict[tuple[str, str], Channel] = {}

    def find(self, name: str, key: str) -> Channel | None:
        """Return the channel of a key if there is one. From any thread."""
        return self._channels.get((name, key))

    def get(self, name: str, key: str) -> Channel:
        """Return the channel of a key, made if need be."""
        channel = self._channels.get((name, key))
        if channel is None:
            channel = self._channels[name, key] = Channel(name, key, self._host)
            self._host.cross_process_sync.watch(channel)
        return channel

    def sweep(self) -> None:
        """Let quiet channels beat, and forget those whose deltas nobody can need any more."""
        now, settings = self._host.clock(), self._host.settings
        idle: list[Channel] = []
        quiet: list[Channel] = []
        held = 0
        for channel in list(self._channels.values()):
            recent_deltas = channel.recent_deltas
            if recent_deltas is not None:
                recent_deltas.trim(now)
                held += recent_deltas.size
            if not channel.is_needed:
                idle.append(channel)
            elif channel.is_watched and now - channel.quiet_since >= settings.heartbeat_seconds:
                channel.quiet_since = now
                quiet.append(channel)
        self._host.rows.compare(quiet, same=Channel.tell_position, differs=Channel.beat)
        idle.sort(key=lambda channel: channel.quiet_since)
        too_many = len(idle) - settings.idle_channels
        for slot, channel in enumerate(idle):
            if slot < too_many or channel.recent_deltas is None or not channel.recent_deltas.size:
                del self._channels[channel.name, channel.key]
                self._host.cross_process_sync.unwatch(channel)
        if held > settings.rings_bytes:
            self._shrink(held - settings.rings_bytes)

    def _shrink(self, surplus: int) -> None:
        """Empty the rings in which nothing has happened for longest."""
        for channel in sorted(self._channels.values(), key=lambda channel: channel.quiet_since):
            if surplus > 0 and channel.recent_deltas is not None:
                surplus -= channel.recent_deltas.size
                channel.recent_deltas.clear()

    def by_projection(self) -> Counter[str]:
        """Return how many subscriptions each projection has. From any thread."""
        subscriptions: Counter[str] = Counter()
        for channel in list(self._channels.copy().values()):
            subscriptions[channel.name] += len(channel.live) + len(channel.ahead) + len(channel.waiting)
        return subscriptions

    def subscribers(self, name: str, key: str) -> int:
        """Return how many watch a key. From any thread."""
        channel = self.find(name, key)
        return 0 if channel is None else len(channel.live) + len(channel.ahead) + len(channel.waiting)

    def stats(self) -> dict[str, Any]:
        """Return what is watched now. From any thread."""
        channels = list(self._channels.copy().values())
        return {
            "channels": len(channels),
            "subscriptions": sum(len(c.live) + len(c.ahead) + len(c.waiting) for c in channels),
            "buffering": sum(len(c.waiting) for c in channels),
            "ring_bytes": sum(c.recent_deltas.size for c in channels if c.recent_deltas is not None),
        }
