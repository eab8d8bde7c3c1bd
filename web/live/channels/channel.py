"""One channel: its recent deltas, and the subscriptions to it."""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from enum import Enum
from typing import TYPE_CHECKING

from ....actors.broadcaster import channel_of
from ....store import Position
from ....store.rows import Head
from .batch import Batch
from .deltas import NO_COMMIT, NOWHERE, Deltas, Inbox, Notice, RecentDeltas, ReorderBuffer, Replaced

if TYPE_CHECKING:
    from ....store.rows import Row
    from ..backplane.cross_process_sync import CrossProcessSync
    from ..connections.subscription import Subscription
    from ..log_throttle import LogThrottle
    from ..reactor import Reactor
    from ..row_reader import RowReader
    from ..settings import LiveSettings
    from ..sources import Source

_logger = logging.getLogger("keyfold.channel")

_READ_AGAIN_SECONDS = 1.0
_MAX_FORMER_EPOCHS = 8


@dataclass(frozen=True, slots=True)
class ChannelContext:
    """The collaborators that all channels of one hub share."""

    settings: LiveSettings
    clock: Callable[[], float]
    """Returns the time in seconds."""
    reactor: Reactor
    row_reader: RowReader
    cross_process_sync: CrossProcessSync
    counts: Counter[str]
    """The counters of the hub's stats."""
    resyncs: Counter[str]
    """By projection, the snapshots that were sent because deltas would not do."""
    gone_back_log: LogThrottle


class _Place(Enum):
    """The set of a channel that a subscription is in."""

    LIVE = "live"
    AHEAD = "ahead"
    WAITING = "waiting"


class _Read:
    """The read of the row that is under way."""

    __slots__ = ("changes", "head", "lost", "subscriptions")

    def __init__(
        self, subscriptions: dict[Subscription, str], changes: int, head: Head | None, lost: Head | None
    ) -> None:
        self.subscriptions = subscriptions
        """The subscriptions that get the row, and the reason for each."""
        self.changes = changes
        """The number of notices that had come when the read began."""
        self.head = head
        """The commit of the newest delta at that time."""
        self.lost = lost
        """A commit that the row may have lost: if it has, it gets a new epoch before it is read."""


class Channel:
    """Sends every subscription the state of the row, and then each change.

    The invariant: a subscription is in one place. It is ``live``, at the head of the recent deltas; or it
    waits for the committed row, in ``waiting`` or in the read under way; or it is ``ahead``, with a row newer
    than the deltas that have come so far. A row may be old when it arrives. The recent deltas have taken
    every delta that came in between, and lead from the row to the head.

    A row older than the head was when the read began has gone back: a backup was restored, or a replica that
    lagged was promoted. It gets a new epoch, so that no client is resumed from the lost history, and every
    subscription gets a snapshot of it.

    All but ``notify`` runs on the reactor's thread, so nothing is locked. The many attributes are one state
    machine: each transition needs most of them.
    """

    def __init__(self, name: str, key: str, source: Source, context: ChannelContext) -> None:
        self.name, self.key = name, key
        self.text = channel_of(name, key)
        self.source = source
        self.recent_deltas: RecentDeltas | None = None
        """None until a row or a delta gives the position of the channel."""
        self.live: dict[Subscription, None] = {}
        self.ahead: dict[Subscription, Position] = {}
        self.waiting: dict[Subscription, str] = {}
        self.quiet_since = context.clock()
        self._context = context
        self._inbox = Inbox()
        self._reorder_buffer = ReorderBuffer()
        self._notices = 0
        self._unsent: list[bytes] = []
        self._read: _Read | None = None
        self._heartbeat_due = False
        self._lost: Head | None = None
        """A commit that the row seems to have lost, for the next read."""
        self._last_row = NO_COMMIT
        """The commit of the row that was read last."""
        self._former_epochs: tuple[str, ...] = ()
        """The epochs that rows had before. None of them comes back."""

    # -- from the actors' threads, and the backplane's

    def notify(self, notice: Notice) -> None:
        """Take a notice, in the order of commits. From any thread; never blocks."""
        if self._inbox.offer(notice):
            self._context.reactor.call(self.take_notices)

    # -- notices

    def take_notices(self) -> None:
        """Send the commits in the inbox to the live subscriptions, joined."""
        try:
            self._take_all()
        except Exception:
            self._move_all_to_waiting()
            raise
        finally:
            self._read_row()

    def _move_all_to_waiting(self) -> None:
        """Bring all subscriptions back by the row, since it is unknown which frames each has got."""
        self._unsent.clear()
        self._move_to_waiting([*self.live, *self.ahead])

    def _take_all(self) -> None:
        for notice in self._inbox.take():
            self._notices += 1
            if isinstance(notice, Deltas):
                self._take_deltas(notice)
            elif isinstance(notice, Replaced):
                self._take_replacement(notice)
            else:
                self._send_unsent()
                self._move_to_waiting([*self.live, *self.ahead], notice.reason)
        self._send_unsent()

    def _take_deltas(self, deltas: Deltas, *, may_wait: bool = True) -> None:
        """Take the deltas of one commit.

        The cases, in the order of the code:

        1. The position of the channel is unknown: it starts at the commit.
        2. Versions before the commit are missing. If another process may have sent them, the commit waits for
           them in the reorder buffer; else the channel starts over at the commit.
        3. The commit belongs to another history of the same epoch: the row went back.
        4. The deltas are known already, from a read of the row or from another process.
        5. The deltas follow the head: they are sent to the live subscriptions.
        """
        recent_deltas = self.recent_deltas
        if recent_deltas is None:
            recent_deltas = self.recent_deltas = RecentDeltas(deltas.base, self._context.settings)
        elif not recent_deltas.continues(deltas.epoch, deltas.base_version):
            is_same_epoch = deltas.epoch == recent_deltas.epoch or recent_deltas.head == NOWHERE
            if may_wait and is_same_epoch and self._reorder(deltas):
                return
            self._send_unsent()
            recent_deltas = self._start_over(deltas.base)
        if recent_deltas.epoch == deltas.epoch and recent_deltas.contradicts(deltas):
            self._leave_history(Head.end_of(deltas.epoch))
            return
        if deltas.base_version < recent_deltas.version:
            return
        recent_deltas.extend(deltas, self._context.clock())
        self._unsent += deltas.frames
        if self.ahead:
            self._send_unsent()
            self._advance_ahead()
        for early in self._reorder_buffer.take(recent_deltas.version):
            self._take_deltas(early, may_wait=False)

    def _reorder(self, deltas: Deltas) -> bool:
        """Let a commit wait for the commit before it. Returns False if there is nothing to wait for."""
        context = self._context
        patience = context.cross_process_sync.patience
        if patience and self._reorder_buffer.add(deltas, context.clock()):
            context.reactor.call_later(patience, self._flush_reorder_buffer)
            return True
        return False

    def _flush_reorder_buffer(self) -> None:
        """Take the commits whose predecessors did not come in time."""
        context = self._context
        if not self._reorder_buffer.has_waited(context.cross_process_sync.patience, context.clock()):
            return
        try:
            for deltas in self._reorder_buffer.take():
                self._take_deltas(deltas, may_wait=False)
            self._send_unsent()
        except Exception:
            self._move_all_to_waiting()
            raise
        finally:
            self._read_row()

    def _take_replacement(self, replaced: Replaced) -> None:
        self._send_unsent()
        position, recent_deltas = replaced.position, self.recent_deltas
        if (
            recent_deltas is not None
            and recent_deltas.epoch == position.epoch
            and recent_deltas.version >= position.version
        ):
            return  # known from a read of the row
        self.recent_deltas = RecentDeltas(Head(*position), self._context.settings)
        batch = Batch.snapshot(self.text, position, replaced.state, replaced.reason)
        for subscription in (*self.live, *self.ahead):
            self.live[subscription] = None
            subscription.connection.deliver(batch, subscription)
        self.ahead.clear()
        self.quiet_since = self._context.clock()
        if self._context.cross_process_sync.patience > 0:
            self._heartbeat_due = True  # another process may have replaced the state again already

    def _start_over(self, head: Head) -> RecentDeltas:
        """Start at a commit after a gap: the versions before it were lost, or another process has them."""
        self._move_to_waiting([*self.live])
        self.recent_deltas = RecentDeltas(head, self._context.settings)
        return self.recent_deltas

    def _leave_history(self, lost: Head) -> None:
        """Handle a row that went back: it gets a new epoch, unless it has the commit after all."""
        context = self._context
        context.counts["gone_back"] += 1
        if context.gone_back_log.is_due():
            _logger.warning(
                "the row of %s is behind the state that was shown, as are other rows (%d so far): its "
                "subscribers get a snapshot, and the row a new epoch if that state is lost, as after a "
                "restored backup",
                self.text,
                context.counts["gone_back"],
                extra={"projection": self.name, "key": self.key},
            )
        self._lost = lost
        self._reorder_buffer.take()
        self._move_all_to_waiting()
        self.recent_deltas = None

    def _advance_ahead(self) -> None:
        """Make the subscriptions live whose row the deltas have reached."""
        recent_deltas = self.recent_deltas
        assert recent_deltas is not None  # noqa: S101
        for subscription, position in list(self.ahead.items()):
            frames = recent_deltas.since(position)
            if frames is not None:
                del self.ahead[subscription]
                self.live[subscription] = None
                if frames:
                    subscription.connection.deliver(Batch("delta", frames, recent_deltas.head), subscription)
            elif position.epoch != recent_deltas.epoch or position.version < recent_deltas.version:
                self._move_to_waiting([subscription])

    def _send_unsent(self) -> None:
        if not self._unsent or self.recent_deltas is None:
            return
        batch, self._unsent = Batch("delta", self._unsent, self.recent_deltas.head), []
        for subscription in tuple(self.live):
            subscription.connection.deliver(batch, subscription)
        self.quiet_since = self._context.clock()

    # -- subscriptions

    @property
    def subscribers(self) -> int:
        """The number of subscriptions, without those of the read under way. From any thread."""
        return len(self.live) + len(self.ahead) + len(self.waiting)

    @property
    def is_watched(self) -> bool:
        """Whether there is a subscription."""
        return bool(
            self.live or self.ahead or self.waiting or (self._read is not None and self._read.subscriptions)
        )

    @property
    def is_needed(self) -> bool:
        """Whether there is a subscription, or the row still has to leave an epoch.

        No other channel or process may know that the row went back.
        """
        return (
            self.is_watched
            or self._lost is not None
            or (self._read is not None and self._read.lost is not None)
        )

    def request_row(self, subscription: Subscription, reason: str) -> None:
        """Send a subscription the committed row, and then each change.

        Args:
            subscription: A new subscription, or one that lost frames.
            reason: The reason that a snapshot gives.
        """
        self.leave(subscription)
        self.waiting[subscription] = reason
        self._read_row()

    def leave(self, subscription: Subscription) -> None:
        """Send a subscription nothing more."""
        self.live.pop(subscription, None)
        self.ahead.pop(subscription, None)
        self.waiting.pop(subscription, None)
        if self._read is not None:
            self._read.subscriptions.pop(subscription, None)

    def heartbeat(self) -> None:
        """Compare with the row, which another process may have changed, then send the position."""
        self._heartbeat_due = True
        self._read_row()

    def send_heartbeat(self) -> None:
        """Send the live subscriptions the position that they should have by now."""
        if self.recent_deltas is not None:
            batch = Batch.heartbeat(self.text, self.recent_deltas.head)
            for subscription in tuple(self.live):
                subscription.connection.deliver(batch, subscription)
        self.quiet_since = self._context.clock()

    def _move_to_waiting(self, subscriptions: Iterable[Subscription], reason: str = "gap") -> None:
        for subscription in subscriptions:
            self.leave(subscription)
            self.waiting[subscription] = reason
            self._context.counts["gap"] += reason == "gap"

    # -- the row

    def _read_row(self) -> None:
        """Read the row once for all that wait. Later subscriptions wait for a read that begins after them."""
        if self._read is None and (self.waiting or self._heartbeat_due or self._lost is not None):
            head = None if self.recent_deltas is None else self.recent_deltas.commit
            lost, self._lost = self._lost, None
            self._read = _Read(self.waiting, self._notices, head, lost)
            self.waiting = {}
            self._context.row_reader.read(self, lost)

    def no_row_came(self, error: BaseException) -> None:
        """Handle a failed read: the database is away, and is tried again later."""
        _logger.warning(
            "%s could not be read and will be tried again: %s",
            self.text,
            error,
            extra={"projection": self.name, "key": self.key},
        )
        if self._lost is None and self._read is not None:
            self._lost = self._read.lost
        self._finish_read()
        self._context.reactor.call_later(_READ_AGAIN_SECONDS, self._read_row)
        is_heartbeat, self._heartbeat_due = self._heartbeat_due, False
        if is_heartbeat:
            self.send_heartbeat()

    def _finish_read(self) -> None:
        """Put the subscriptions that did not get the row back among those that wait."""
        if self._read is not None:
            self.waiting, self._read = self._read.subscriptions | self.waiting, None

    def row_came(self, row: Row | None) -> None:
        """Handle the answer of a read."""
        read = self._read
        assert read is not None  # noqa: S101
        try:
            self._take_row(read, row)
        except Exception:
            self._move_all_to_waiting()
            self.recent_deltas = None
            self._finish_read()
            self._context.reactor.call_later(_READ_AGAIN_SECONDS, self._read_row)
            raise
        self._finish_read()
        self._read_row()

    def _take_row(self, read: _Read, row: Row | None) -> None:
        """Send the row to the subscriptions of the read.

        The cases, in the order of the code:

        1. The row has lost a commit that was shown. It has to leave its epoch, and is read again.
        2. The channel's position is unknown, or the row is gone: all subscriptions start at this row.
        3. The recent deltas lead from the row to the head: they are sent too, and the subscriptions are live.
        4. The row is newer than the head, and the deltas between are on their way to live subscriptions: the
           subscriptions of the read are ahead until these deltas come.
        5. The row is newer in any other way: all subscriptions start at this row.
        6. The row is older than the recent deltas reach. It is better than nothing: the subscriptions get it,
           and wait for a newer one.

        After each case a subscription is in one place still: see the class.
        """
        is_heartbeat, self._heartbeat_due = self._heartbeat_due, False
        head = NO_COMMIT if row is None else row.head
        position = head.position
        state = b"null" if row is None or row.is_tombstone else row.state
        lost = self._find_lost_commit(read, head)
        if lost is not None:
            self._heartbeat_due = is_heartbeat
            self._leave_history(lost)
            return
        if self._has_vanished(read, head):
            self.recent_deltas = None
        recent_deltas = self.recent_deltas or self._start_at(read, head)
        missing = recent_deltas.since(position)
        if missing is not None:
            self._send_row(read, position, state, missing, _Place.LIVE)
        elif self._is_newer(read, position):
            is_ahead = position.epoch == recent_deltas.epoch and position.version > recent_deltas.version
            if is_ahead and self.live and not is_heartbeat:
                self._send_row(read, position, state, (), _Place.AHEAD)
                return
            self._start_at(read, head)
            self._send_row(read, position, state, (), _Place.LIVE)
        else:
            self._send_row(read, position, state, (), _Place.WAITING)
        if is_heartbeat:
            self.send_heartbeat()

    def _start_at(self, read: _Read, head: Head) -> RecentDeltas:
        """Start at a row, with all subscriptions: those elsewhere get the row too."""
        read.subscriptions |= dict.fromkeys((*self.live, *self.ahead), "gap")
        self.live.clear()
        self.ahead.clear()
        self.recent_deltas = RecentDeltas(head, self._context.settings)
        return self.recent_deltas

    def _find_lost_commit(self, read: _Read, head: Head) -> Head | None:
        """Return a commit that came before the read and that the row has lost, or None.

        If the row is back in an epoch that it had left, the answer is the end of that epoch.
        """
        tried, read.lost = read.lost, None
        last_row, self._last_row = self._last_row, head
        is_former_epoch = head.epoch in self._former_epochs
        if last_row.epoch not in ("", head.epoch):
            self._former_epochs = (*self._former_epochs, last_row.epoch)[-_MAX_FORMER_EPOCHS:]
        if not head.epoch or (tried is not None and tried.epoch == head.epoch):
            # There is no row; or it lost nothing, and reads lag; or the database can't give it a new epoch.
            return None
        if is_former_epoch:
            return Head.end_of(head.epoch)
        known = (last_row, self._head_at_read(read) or NO_COMMIT)
        lost = [commit for commit in known if commit.is_gone_from(head)]
        return max(lost, key=lambda commit: commit.version, default=None)

    def _has_vanished(self, read: _Read, head: Head) -> bool:
        """Return whether the row of the recent deltas is gone. The next row begins a new epoch."""
        return head == NO_COMMIT and self._head_at_read(read) is not None

    def _head_at_read(self, read: _Read) -> Head | None:
        """Return the commit that the recent deltas had reached when the read began.

        None if they were replaced since, or had not reached any commit.
        """
        recent_deltas, head = self.recent_deltas, read.head
        if recent_deltas is None or head is None or not head.epoch or recent_deltas.epoch != head.epoch:
            return None
        return head

    def _is_newer(self, read: _Read, position: Position) -> bool:
        """Return whether a row that the recent deltas do not continue is newer than they are."""
        recent_deltas = self.recent_deltas
        if recent_deltas is None or self._notices == read.changes:
            return True  # nothing was published since the read began, and the row has all that was before
        return position.epoch == recent_deltas.epoch and position.version > recent_deltas.version

    def _send_row(
        self, read: _Read, position: Position, state: bytes, missing: Sequence[bytes], place: _Place
    ) -> None:
        """Send a row and the frames that follow it to the subscriptions of a read, and put them in a place.

        A client that can go on from its own position gets ``resumed`` instead of the snapshot.
        """
        context, recent_deltas = self._context, self.recent_deltas
        assert recent_deltas is not None  # noqa: S101
        snapshots: dict[str, Batch] = {}
        for subscription in list(read.subscriptions):
            # One by one: after an error the others are still to be found in the read.
            reason = read.subscriptions.pop(subscription, None)
            if reason is None:
                continue  # it has left meanwhile
            since, subscription.since = subscription.since, None
            path = None if since is None else self._path(since, position, place)
            if since is not None:
                reason = "expired"
            if since is not None and path is not None:
                head = position if place is _Place.AHEAD else recent_deltas.head
                context.counts["resumed"] += 1
                batches = [Batch.resumed(self.text, since, head)]
                deltas: Sequence[bytes] = path
            else:
                if reason not in snapshots:
                    snapshots[reason] = Batch.snapshot(self.text, position, state, reason)
                context.resyncs[self.name] += reason not in ("initial", "rebuild")
                batches, deltas = [snapshots[reason]], missing
            if place is _Place.LIVE:
                self.live[subscription] = None
            elif place is _Place.AHEAD:
                self.ahead[subscription] = position
            else:
                self.waiting[subscription] = "gap"
            if deltas:
                batches.append(Batch("delta", list(deltas), recent_deltas.head))
            for batch in batches:
                subscription.connection.deliver(batch, subscription)

    def _path(self, since: Position, position: Position, place: _Place) -> list[bytes] | None:
        """Return the frames from a client's position to its new one, or None if it needs a snapshot."""
        if place is _Place.LIVE and self.recent_deltas is not None:
            return self.recent_deltas.since(since)
        return [] if place is _Place.AHEAD and since == position else None
