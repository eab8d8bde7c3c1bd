"""The channels of one hub: those with subscribers, and those that clients may come back to."""

from __future__ import annotations

from collections import Counter
from typing import TYPE_CHECKING, Any

from ..row_reader import compare_with_rows
from .channel import Channel, ChannelContext

if TYPE_CHECKING:
    from ....actors import ProjectionSystem
    from ....store.rows import RowKey
    from ..sources import Sources


class Channels:
    """Changed on the reactor's thread alone. Actors look here whether clients watch a key."""

    def __init__(self, context: ChannelContext, sources: Sources, system: ProjectionSystem) -> None:
        self._context = context
        self._sources = sources
        self._system = system
        self._channels: dict[RowKey, Channel] = {}

    def find(self, name: str, key: str) -> Channel | None:
        """Return the channel of a key, or None. From any thread."""
        return self._channels.get((name, key))

    def get(self, name: str, key: str) -> Channel:
        """Return the channel of a key, and make it if there is none. Raises UnknownProjection."""
        channel = self._channels.get((name, key))
        if channel is None:
            channel = Channel(name, key, self._sources.get(name), self._context)
            self._channels[name, key] = channel
            self._context.cross_process_sync.watch(channel)
        return channel

    def sweep(self) -> None:
        """Send the heartbeats that are due, and forget idle channels over the bounds of the settings."""
        context = self._context
        now, settings = context.clock(), context.settings
        idle: list[Channel] = []
        quiet: list[Channel] = []
        held_bytes = 0
        for channel in list(self._channels.values()):
            recent_deltas = channel.recent_deltas
            if recent_deltas is not None:
                recent_deltas.trim(now)
                held_bytes += recent_deltas.size
            if not channel.is_needed:
                idle.append(channel)
            elif channel.is_watched and now - channel.quiet_since >= settings.heartbeat_seconds:
                channel.quiet_since = now
                quiet.append(channel)
        compare_with_rows(
            quiet, self._system, context.reactor, same=Channel.send_heartbeat, differs=Channel.heartbeat
        )
        idle.sort(key=lambda channel: channel.quiet_since)
        surplus = len(idle) - settings.idle_channels
        for index, channel in enumerate(idle):
            if index < surplus or channel.recent_deltas is None or not channel.recent_deltas.size:
                del self._channels[channel.name, channel.key]
                context.cross_process_sync.unwatch(channel)
        if held_bytes > settings.rings_bytes:
            self._shrink(held_bytes - settings.rings_bytes)

    def _shrink(self, surplus: int) -> None:
        """Drop at least so many bytes of recent deltas, those of the quietest channels first."""
        for channel in sorted(self._channels.values(), key=lambda channel: channel.quiet_since):
            if surplus > 0 and channel.recent_deltas is not None:
                surplus -= channel.recent_deltas.size
                channel.recent_deltas.clear()

    def by_projection(self) -> Counter[str]:
        """Return the number of subscriptions per projection. From any thread."""
        subscriptions: Counter[str] = Counter()
        for channel in list(self._channels.copy().values()):
            subscriptions[channel.name] += channel.subscribers
        return subscriptions

    def subscribers(self, name: str, key: str) -> int:
        """Return the number of subscriptions to a key. From any thread."""
        channel = self.find(name, key)
        return 0 if channel is None else channel.subscribers

    def stats(self) -> dict[str, Any]:
        """Return the numbers of channels and subscriptions, and the bytes held. From any thread."""
        channels = list(self._channels.copy().values())
        return {
            "channels": len(channels),
            "subscriptions": sum(channel.subscribers for channel in channels),
            "buffering": sum(len(channel.waiting) for channel in channels),
            "ring_bytes": sum(c.recent_deltas.size for c in channels if c.recent_deltas is not None),
        }
