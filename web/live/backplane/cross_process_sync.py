"""The hub's side of the backplane: notices of other processes, and reads that miss none."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ....actors.broadcaster import Committed, channel_of
from ..channels.deltas import Deltas, Missed, Notice
from ..log_throttle import LogThrottle
from ..protocol.messages import are_delta_messages
from ..protocol.websocket_frames import text_frame
from ..row_reader import compare_with_rows
from .backplane import EMPTY_STATS, Backplane, connect

if TYPE_CHECKING:
    from ....actors import ProjectionSystem
    from ....actors.pool.threads import ThreadHealth
    from ..channels.channel import Channel
    from ..reactor import Reactor
    from ..settings import LiveSettings

_logger = logging.getLogger("keyfold.backplane")

_DELTAS, _MISSED = range(2)
"""The kinds of messages between processes."""
_REASONS = ("gap", "rebuild")
_MAX_VERSION = 2**63 - 1
_MAX_ID_LENGTH = 64
_MAX_LOOKS = 12
_READ_ANYWAY_SECONDS = 0.5
_COMPARE_AFTER_SECONDS = 0.02


def notice_of(channel: str, content: list[Any] | None) -> Notice | None:
    """Return the notice in a message of another process.

    Nothing in it is trusted: anyone with access to the Redis may have written it.

    Args:
        channel: The name of the channel that the message came on.
        content: The message, or None for one that could not be decoded.

    Returns:
        The notice, or None for a message that is invalid or of a release with another format.
    """
    match content:
        case [int(kind), str(epoch), int(base_version), list(payloads)]:  # a release without commit ids
            ids = (None, None)
        case [int(kind), str(epoch), int(base_version), list(payloads), one, other]:
            ids = (one, other)
        case [int(kind), str(reason)] if kind == _MISSED and type(kind) is int and reason in _REASONS:
            return Missed(reason)
        case _:
            return None
    if (
        (type(kind), kind, type(base_version)) != (int, _DELTAS, int)
        or not 0 < len(epoch) <= _MAX_ID_LENGTH
        or not 0 <= base_version <= _MAX_VERSION - len(payloads)
        or not payloads
        or not all(type(payload) is bytes for payload in payloads)
        or not all(one is None or (type(one) is str and len(one) <= _MAX_ID_LENGTH) for one in ids)
        or not are_delta_messages(channel, epoch, base_version, payloads)
    ):
        return None
    return Deltas(epoch, base_version, [text_frame(payload) for payload in payloads], *ids)


class CrossProcessSync:
    """Joins one hub to the hubs of other processes. Without ``KEYFOLD_REDIS`` every method does nothing.

    A row is read once this process receives the messages on its channel. A later commit then comes as a
    message, and an earlier one is in the row. Whenever a message may have been lost, the rows of the channels
    concerned are compared with the deltas that were sent, in one query.

    It has many attributes because it is used from three sides: actors publish, the backplane's thread
    receives, and the reactor's thread watches and reads.
    """

    def __init__(
        self,
        settings: LiveSettings,
        system: ProjectionSystem,
        reactor: Reactor,
        clock: Callable[[], float],
    ) -> None:
        """Raises ProjectionError if the setting ``redis`` is no URL of Redis, or without redis-py."""
        if settings.redis is not None:
            connect(settings.redis)  # an app learns of a wrong URL at its start
        self._settings = settings
        self._system = system
        self._reactor = reactor
        self._lock = threading.Lock()
        self._backplane: Backplane | None = None
        self._closed = False
        self._looks_left, self._first_look = _MAX_LOOKS, 0.0
        self._channels: dict[str, Channel] = {}
        self._waiting: dict[str, Callable[[], None]] = {}
        self._confirmed: set[str] = set()
        self._to_compare: set[str] = set()
        self._garbage, self._garbage_log = 0, LogThrottle(clock)

    @property
    def backplane(self) -> Backplane | None:
        """The backplane of this process, made at the first use; None without KEYFOLD_REDIS."""
        settings = self._settings
        if self._backplane is None and settings.redis is not None and not self._closed:
            with self._lock:
                if self._backplane is None and not self._closed:
                    self._backplane = Backplane(
                        settings.redis,
                        settings.redis_prefix,
                        received=self._received,
                        confirmed=lambda name: self._reactor.call(self._confirm, name),
                    )
        return self._backplane

    # -- to other processes, from the actors' threads

    def publish(self, committed: Committed, payloads: list[bytes]) -> None:
        """Send the deltas of a commit to the other processes, as messages for clients."""
        if (backplane := self.backplane) is not None:
            message = [_DELTAS, committed.epoch, committed.base_version, payloads]
            ids = (committed.base_commit_id, committed.commit_id)
            backplane.publish(committed.channel, message, details=ids)

    def invalidate(self, name: str, key: str, reason: str) -> None:
        """Have the other processes read a row.

        A replaced state is not sent itself, since two of them may overtake each other on the way.
        """
        if (backplane := self.backplane) is not None:
            backplane.publish(channel_of(name, key), [_MISSED, reason])

    def hint(self, channel: str) -> None:
        """Have the other processes compare the deltas they sent on a channel with the row."""
        if (backplane := self.backplane) is not None:
            backplane.publish(channel, [])

    # -- from other processes, on the backplane's thread

    def _received(self, name: str, content: list[Any] | None) -> None:
        channel = self._channels.get(name)
        if channel is None:
            return
        if content == []:
            self._reactor.call(self._compare_soon, name)
        elif (notice := notice_of(name, content)) is not None:
            channel.notify(notice)
        else:
            self._note_garbage(name)

    def _note_garbage(self, name: str) -> None:
        """Count an invalid message, and log one per minute, as there may be many."""
        self._garbage += 1
        if self._garbage_log.is_due():
            _logger.warning(
                "an invalid message on %s is ignored, as are others (%d so far): another release or another "
                "program publishes there; the changes that they stand for come with the next heartbeat",
                name,
                self._garbage,
            )

    # -- the channels that this process receives, on the reactor's thread

    def watch(self, channel: Channel) -> None:
        """Receive the commits of other processes for a channel."""
        if channel.source.is_published and (backplane := self.backplane) is not None:
            self._channels[channel.text] = channel
            backplane.watch(channel.text)

    def unwatch(self, channel: Channel) -> None:
        """Receive them no more."""
        if self._backplane is not None and self._channels.pop(channel.text, None) is not None:
            self._backplane.unwatch(channel.text)
            self._confirmed.discard(channel.text)

    def call_when_listening(self, channel: Channel, function: Callable[[], None]) -> None:
        """Call a function once no commit of another process can be missed.

        After half a second it is called in any case, since Redis may be away.
        """
        name = channel.text
        if (
            self._backplane is None
            or name in self._confirmed
            or name not in self._channels
            or self._backplane.trouble
        ):
            function()
            return
        self._waiting[name] = function
        self._reactor.call_later(_READ_ANYWAY_SECONDS, lambda: self._call_waiting(name))

    def _call_waiting(self, name: str) -> None:
        function = self._waiting.pop(name, None)
        if function is not None:
            function()

    def _confirm(self, name: str) -> None:
        if name not in self._channels:
            return
        self._confirmed.add(name)
        if name in self._waiting:
            self._call_waiting(name)
        else:
            # The row was read without waiting, or the connection was lost in between.
            self._compare_soon(name)

    def _compare_soon(self, name: str) -> None:
        if not self._to_compare:
            self._reactor.call_later(_COMPARE_AFTER_SECONDS, self._compare)
        self._to_compare.add(name)

    def _compare(self) -> None:
        names, self._to_compare = list(self._to_compare), set()
        channels = [channel for name in names if (channel := self._channels.get(name)) is not None]
        compare_with_rows(
            channels, self._system, self._reactor, same=lambda _channel: None, differs=_read_again
        )

    def look_around(self, others: Callable[[], list[dict[str, Any]]]) -> None:
        """Warn once, in the first minute, if other processes use the database and there is no Redis.

        Args:
            others: Returns the stats of the other processes. Called on the caller's thread.
        """
        if self._settings.redis is not None or not self._looks_left:
            return
        self._looks_left -= 1
        now = monotonic()
        self._first_look = self._first_look or now
        # A process that reported only before that may have been killed, and this one replaces it.
        if count := sum(stats["reported_ago"] < now - self._first_look for stats in others()):
            self._looks_left = 0
            _logger.warning(
                "%d other process%s on this database and KEYFOLD_REDIS is not set: sockets of this process "
                "see their commits at the next heartbeat, up to %g s later",
                count,
                " works" if count == 1 else "es work",
                self._settings.heartbeat_seconds,
            )

    # -- the end, and stats

    def close(self, timeout: float) -> None:
        """Send the messages that wait, within so many seconds, and disconnect."""
        with self._lock:
            self._closed = True
        if self._backplane is not None:
            self._backplane.close(timeout)

    def loops(self) -> list[ThreadHealth]:
        """Return the health of the backplane's threads."""
        return [] if self._backplane is None else self._backplane.loops()

    def stats(self) -> dict[str, Any] | None:
        """Return the counts of the backplane, zeros before its first use; None without KEYFOLD_REDIS."""
        if self._settings.redis is None:
            return None
        stats = dict(EMPTY_STATS) if self._backplane is None else self._backplane.stats()
        return {**stats, "garbage": self._garbage}

    @property
    def patience(self) -> float:
        """Seconds that a commit may wait for the one before it, which another process committed."""
        return 0.0 if self._backplane is None else self._settings.redis_patience_seconds


def _read_again(channel: Channel) -> None:
    if channel.is_watched:
        channel.notify(Missed())
