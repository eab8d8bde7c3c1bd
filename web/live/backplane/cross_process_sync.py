"""The hub's side of the backplane: news of other processes, and reads that wait until none can be missed."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ....actors import Committed, channel_of
from ....actors.pool.threads import ThreadHealth
from ..channels.deltas import Missed, Notice, Turn
from ..log_throttle import LogThrottle
from ..protocol.messages import are_delta_messages
from ..protocol.websocket_frames import text_frame
from .backplane import NOTHING, Backplane, connect

if TYPE_CHECKING:
    from ..channels.channel import Channel
    from ..hub import Hub

_logger = logging.getLogger("keyfold.backplane")

_TURN, _MISSED = range(2)
_LOOKS = 12
_READ_ANYWAY_SECONDS = 0.5
_COMPARE_AFTER_SECONDS = 0.02
_REASONS = ("gap", "rebuild")
_MOST_VERSION = 2**63 - 1
_MOST_EPOCH = 64


def notice_of(text: str, content: list[Any] | None) -> Notice | None:
    """Return the news that a message on a channel holds. None: it holds none, or is none of this release.

    Nothing is taken on trust: whatever comes from outside of this process may have been written by anybody.
    """
    match content:
        case [int(kind), str(epoch), int(base_version), list(payloads)]:  # a release without ids of commits
            ids = (None, None)
        case [int(kind), str(epoch), int(base_version), list(payloads), one, other]:
            ids = (one, other)
        case [int(kind), str(reason)] if kind == _MISSED and type(kind) is int and reason in _REASONS:
            return Missed(reason)
        case _:
            return None
    if (
        (type(kind), kind, type(base_version)) != (int, _TURN, int)
        or not 0 < len(epoch) <= _MOST_EPOCH
        or not 0 <= base_version <= _MOST_VERSION - len(payloads)
        or not payloads
        or not all(type(payload) is bytes for payload in payloads)
        or not all(one is None or (type(one) is str and len(one) <= _MOST_EPOCH) for one in ids)
        or not are_delta_messages(text, epoch, base_version, payloads)
    ):
        return None
    return Turn(epoch, base_version, [text_frame(payload) for payload in payloads], *ids)


class CrossProcessSync:
    """Joins one hub to the hubs of other processes. Without ``KEYFOLD_REDIS`` every method does nothing.

    A row is read once the channel is surely listened to: what is committed later then comes as a message,
    what was committed before is in the row. Whenever that certainty was lost, or another process says that what
    it published was, the rows of the channels concerned are compared with what was sent, in one query.
    """

    def __init__(self, hub: Hub) -> None:
        if hub.settings.redis is not None:
            connect(hub.settings.redis)  # a URL that is none is the app's to know at its start
        self._hub = hub
        self._lock = threading.Lock()
        self._backplane: Backplane | None = None
        self._closed = False
        self._looks, self._first_look = _LOOKS, 0.0
        self._channels: dict[str, Channel] = {}
        self._waiting: dict[str, Callable[[], None]] = {}
        self._confirmed: set[str] = set()
        self._to_compare: set[str] = set()
        self._garbage, self._garbage_log = 0, LogThrottle(hub.clock)

    @property
    def backplane(self) -> Backplane | None:
        """The connection of this process, made at the first use; None without KEYFOLD_REDIS."""
        settings = self._hub.settings
        if self._backplane is None and settings.redis is not None and not self._closed:
            with self._lock:
                if self._backplane is None and not self._closed:
                    self._backplane = Backplane(
                        settings.redis,
                        settings.redis_prefix,
                        received=self._received,
                        confirmed=lambda name: self._hub.reactor.call(self._confirm, name),
                    )
        return self._backplane

    # -- to other processes, from the actors' threads

    def publish(self, committed: Committed, payloads: list[bytes]) -> None:
        """Tell them the deltas of a turn, as they go on the wire."""
        if (backplane := self.backplane) is not None:
            message = [_TURN, committed.epoch, committed.base_version, payloads]
            ids = (committed.base_commit_id, committed.commit_id)
            backplane.publish(committed.channel, message, details=ids)

    def invalidate(self, name: str, key: str, reason: str) -> None:
        """Have them read the row. A new state is not sent: two of them may overtake each other on the way."""
        if (backplane := self.backplane) is not None:
            backplane.publish(channel_of(name, key), [_MISSED, reason])

    def hint(self, text: str) -> None:
        """Have them compare what they have shown on a channel with the row."""
        if (backplane := self.backplane) is not None:
            backplane.publish(text, [])

    # -- from other processes, on the backplane's thread

    def _received(self, text: str, content: list[Any] | None) -> None:
        channel = self._channels.get(text)
        if channel is None:
            return
        if content == []:
            self._hub.reactor.call(self._compare_soon, text)
        elif (news := notice_of(text, content)) is not None:
            self._hub.tell(channel, news)
        else:
            self._note_garbage(text)

    def _note_garbage(self, text: str) -> None:
        """Count a message that is none, and log one a minute: whoever sends them may send many."""
        self._garbage += 1
        if self._garbage_log.is_due():
            _logger.warning(
                "a message on %s is ignored, as are others like it (%d so far): another release, or somebody else, "
                "publishes there; what it should have told comes with the next heartbeat",
                text,
                self._garbage,
            )

    # -- which channels this process is interested in, on the reactor's thread

    def watch(self, channel: Channel) -> None:
        """Listen to what other processes commit for a key."""
        if (backplane := self.backplane) is not None and channel.name not in self._hub.sources:
            self._channels[channel.text] = channel
            backplane.watch(channel.text)

    def unwatch(self, channel: Channel) -> None:
        """Listen no more."""
        if self._backplane is not None and self._channels.pop(channel.text, None) is not None:
            self._backplane.unwatch(channel.text)
            self._confirmed.discard(channel.text)

    def before_read(self, channel: Channel, read: Callable[[], None]) -> None:
        """Call read once nothing can be missed; after half a second in any case: Redis may be away."""
        name = channel.text
        if (
            self._backplane is None
            or name in self._confirmed
            or name not in self._channels
            or self._backplane.trouble
        ):
            read()
            return
        self._waiting[name] = read
        self._hub.later(_READ_ANYWAY_SECONDS, lambda: self._read(name))

    def _read(self, name: str) -> None:
        read = self._waiting.pop(name, None)
        if read is not None:
            read()

    def _confirm(self, name: str) -> None:
        if name not in self._channels:
            return
        self._confirmed.add(name)
        if name in self._waiting:
            self._read(name)
        else:
            # It was read without waiting, or the connection was lost in between.
            self._compare_soon(name)

    def _compare_soon(self, name: str) -> None:
        if not self._to_compare:
            self._hub.later(_COMPARE_AFTER_SECONDS, self._compare)
        self._to_compare.add(name)

    def _compare(self) -> None:
        names, self._to_compare = list(self._to_compare), set()
        channels = [channel for name in names if (channel := self._channels.get(name)) is not None]
        self._hub.rows.compare(channels, same=lambda _channel: None, differs=self._read_again)

    def _read_again(self, channel: Channel) -> None:
        if channel.is_watched:
            self._hub.tell(channel, Missed())

    def look_around(self, others: Callable[[], list[dict[str, Any]]]) -> None:
        """Warn once, in the first minute, if other processes work on the database and there is no Redis to hear them."""
        if self._hub.settings.redis is not None or not self._looks:
            return
        self._looks -= 1
        now = monotonic()
        self._first_look = self._first_look or now
        # What reported only before that may be the process which was killed, and which this one replaces.
        if count := sum(facts["reported_ago"] < now - self._first_look for facts in others()):
            self._looks = 0
            _logger.warning(
                "%d other process%s on this database and KEYFOLD_REDIS is not set: sockets of this process see what "
                "others commit at their next heartbeat, up to %g s later",
                count,
                " works" if count == 1 else "es work",
                self._hub.settings.heartbeat_seconds,
            )

    # -- the end, and facts

    def close(self, timeout: float) -> None:
        """Send what waits, and disconnect."""
        with self._lock:
            self._closed = True
        if self._backplane is not None:
            self._backplane.close(timeout)

    def loops(self) -> list[ThreadHealth]:
        """Return how the backplane's threads fare."""
        return [] if self._backplane is None else self._backplane.loops()

    def stats(self) -> dict[str, Any] | None:
        """Return what the backplane counted, zeros before its first use; None without KEYFOLD_REDIS."""
        if self._hub.settings.redis is None:
            return None
        facts = dict(NOTHING) if self._backplane is None else self._backplane.stats()
        return {**facts, "garbage": self._garbage}

    @property
    def patience(self) -> float:
        """Seconds that a turn may wait for the one before it, which another process committed."""
        return 0.0 if self._backplane is None else self._hub.settings.redis_patience_seconds
