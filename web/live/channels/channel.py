"""One channel: its newest deltas, and everyone who watches it."""

from __future__ import annotations

import logging
from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

from ....actors import channel_of
from ....store import Head, Position
from .batch import Batch
from .deltas import NO_COMMIT, NOWHERE, Inbox, Notice, RecentDeltas, ReorderBuffer, Replaced, Turn

if TYPE_CHECKING:
    from ....store import Row
    from ..connections.subscription import Subscription
    from ..host import Host

_logger = logging.getLogger("keyfold.channel")

_READ_AGAIN_SECONDS = 1.0
_MOST_EPOCHS_LEFT = 8
LIVE, AHEAD, WAITING = "live", "ahead", "waiting"


class Channel:
    """Brings every subscriber to the state of the row, and keeps it there.

    A subscriber stands in one of three sets: ``live``, at the head of the ring; ``waiting`` for the
    committed row; or ``ahead``, when the row that it got is newer than what was published here so
    far. All but ``offer`` runs on the reactor's thread, so nothing is locked. A row may be old when it
    arrives: the ring has taken every delta that came in between, and leads from the row to the head.

    A row that is older than the head was when the read began has gone back: a backup was restored, or a replica
    promoted that lagged behind. It is given a new epoch, so that nobody is resumed who stands in the history that
    was lost, and everyone is brought to it by a snapshot.
    """

    def __init__(self, name: str, key: str, host: Host) -> None:
        self.name, self.key = name, key
        self.text = channel_of(name, key)
        self.recent_deltas: RecentDeltas | None = None
        """None until a row or a turn says where the channel stands."""
        self.live: dict[Subscription, None] = {}
        self.ahead: dict[Subscription, Position] = {}
        self.waiting: dict[Subscription, str] = {}
        self.quiet_since = host.clock()
        self._host = host
        self._news = Inbox()
        self._reorder_buffer = ReorderBuffer()
        self._changes = 0
        self._unsent: list[bytes] = []
        self._asking: dict[Subscription, str] | None = None
        self._changes_when_asked = 0
        self._head_when_asked: Head | None = None
        self._beating = False
        self.leaving: Head | None = None
        """What the row may have lost: if it has, it is to leave its epoch before it is read."""
        self._to_leave: Head | None = None
        # What the row held when it was last read, and the epochs that it had before: none of them comes back.
        self._seen = NO_COMMIT
        self._epochs_left: tuple[str, ...] = ()

    # -- from the actors' threads

    def offer(self, item: Notice) -> bool:
        """Take news, in the order of commits. True: ``take_news`` is to be called on the reactor's thread."""
        return self._news.offer(item)

    # -- news

    def take_news(self) -> None:
        """Bring what the actors offered to those who are live, joined."""
        try:
            self._take_all()
        except Exception:
            self._lose_track()
            raise
        finally:
            self._ask()

    def _lose_track(self) -> None:
        """Who got what can't be said any more: all are brought back by the row."""
        self._unsent.clear()
        self._move_to_waiting([*self.live, *self.ahead])

    def _take_all(self) -> None:
        for item in self._news.take():
            self._changes += 1
            if isinstance(item, Turn):
                self._take_turn(item)
            elif isinstance(item, Replaced):
                self._take_replacement(item)
            else:
                self._send_unsent()
                self._move_to_waiting([*self.live, *self.ahead], item.reason)
        self._send_unsent()

    def _take_turn(self, turn: Turn, *, patient: bool = True) -> None:
        recent_deltas = self.recent_deltas
        if recent_deltas is None:
            recent_deltas = self.recent_deltas = RecentDeltas(turn.base, self._host.settings)
        elif not recent_deltas.continues(turn.epoch, turn.base_version):
            begun = turn.epoch == recent_deltas.epoch or recent_deltas.head == NOWHERE
            if patient and begun and self._wait_for_the_one_before(turn):
                return
            self._send_unsent()
            recent_deltas = self._start_over(turn.base)
        if recent_deltas.epoch == turn.epoch and recent_deltas.contradicts(turn):
            self._leave_history(Head.end_of(turn.epoch))
            return
        if turn.base_version < recent_deltas.version:
            return  # told already, by a read of the row or by another way
        recent_deltas.extend(turn, self._host.clock())
        self._unsent += turn.frames
        if self.ahead:
            self._send_unsent()
            self._let_ahead_join()
        for early in self._reorder_buffer.take(recent_deltas.version):
            self._take_turn(early, patient=False)

    def _wait_for_the_one_before(self, turn: Turn) -> bool:
        """Another process has committed it: it is on its way, or lost. False: there is nothing to wait for."""
        patience = self._host.cross_process_sync.patience
        if patience and self._reorder_buffer.keep(turn, self._host.clock()):
            self._host.later(patience, self._wait_no_more)
            return True
        return False

    def _wait_no_more(self) -> None:
        if not self._reorder_buffer.waited(self._host.cross_process_sync.patience, self._host.clock()):
            return
        try:
            for turn in self._reorder_buffer.take():
                self._take_turn(turn, patient=False)
            self._send_unsent()
        except Exception:
            self._lose_track()
            raise
        finally:
            self._ask()

    def _take_replacement(self, item: Replaced) -> None:
        self._send_unsent()
        recent_deltas = self.recent_deltas
        if (
            recent_deltas is not None
            and recent_deltas.epoch == item.position.epoch
            and recent_deltas.version >= item.position.version
        ):
            return  # known by a read of the row already
        self.recent_deltas = RecentDeltas(Head(*item.position), self._host.settings)
        batch = Batch.snapshot(self.text, item.position, item.state, item.reason)
        for subscription in (*self.live, *self.ahead):
            self.live[subscription] = None
            subscription.connection.deliver(batch, subscription)
        self.ahead.clear()
        self.quiet_since = self._host.clock()
        self._beating |= (
            self._host.cross_process_sync.patience > 0
        )  # or has another process replaced it again already?

    def _start_over(self, head: Head) -> RecentDeltas:
        """Versions are missing here: another process committed them, or a publish was lost."""
        self._move_to_waiting([*self.live])
        self.recent_deltas = RecentDeltas(head, self._host.settings)
        return self.recent_deltas

    def _leave_history(self, lost: Head) -> None:
        """The row went back: have it leave its epoch, unless it has the commit after all, and bring everyone to it."""
        self._host.counts["gone_back"] += 1
        if self._host.gone_back_log.is_due():
            _logger.warning(
                "the row of %s is behind what was shown, as were others like it (%d so far): all who watch it get a "
                "snapshot, and it a new epoch if that is lost, as after a restored backup, and does not just lag",
                self.text,
                self._host.counts["gone_back"],
                extra={"projection": self.name, "key": self.key},
            )
        self._to_leave = lost
        self._reorder_buffer.take()
        self._lose_track()
        self.recent_deltas = None

    def _let_ahead_join(self) -> None:
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
        self.quiet_since = self._host.clock()

    # -- subscribers

    @property
    def is_watched(self) -> bool:
        """Somebody watches it."""
        return bool(self.live or self.ahead or self.waiting or self._asking)

    @property
    def is_needed(self) -> bool:
        """Somebody watches it, or its row is still to leave an epoch: nobody else may know that it went back."""
        return self.is_watched or self._to_leave is not None or self.leaving is not None

    def ask(self, subscription: Subscription, reason: str) -> None:
        """Bring a subscription (a new one, or one that lost frames) to the state of the committed row."""
        self.leave(subscription)
        self.waiting[subscription] = reason
        self._ask()

    def leave(self, subscription: Subscription) -> None:
        """Send it nothing more."""
        self.live.pop(subscription, None)
        self.ahead.pop(subscription, None)
        self.waiting.pop(subscription, None)
        if self._asking:
            self._asking.pop(subscription, None)

    def beat(self) -> None:
        """Compare with the row, which another process may have changed, and tell everyone the position."""
        self._beating = True
        self._ask()

    def _move_to_waiting(self, subscriptions: Iterable[Subscription], reason: str = "gap") -> None:
        for subscription in subscriptions:
            self.leave(subscription)
            self.waiting[subscription] = reason
            self._host.counts["gap"] += reason == "gap"

    # -- the row

    def _ask(self) -> None:
        """Read the row, once for all who wait. Those who come later wait for a read that begins later."""
        if self._asking is None and (self.waiting or self._beating or self._to_leave is not None):
            self._asking, self.waiting = self.waiting, {}
            self._changes_when_asked = self._changes
            self._head_when_asked = None if self.recent_deltas is None else self.recent_deltas.commit
            self.leaving, self._to_leave = self._to_leave, None
            self._host.read(self)

    def no_row_came(self, error: BaseException) -> None:
        """Try again in a while: the database is away."""
        facts = {"projection": self.name, "key": self.key}
        _logger.warning("%s could not be read, and will be again: %s", self.text, error, extra=facts)
        self._put_back_asking()
        self._to_leave, self.leaving = self._to_leave or self.leaving, None
        self._host.later(_READ_AGAIN_SECONDS, self._ask)
        beating, self._beating = self._beating, False
        if beating:
            self.tell_position()

    def _put_back_asking(self) -> None:
        self.waiting, self._asking = (self._asking or {}) | self.waiting, None

    def row_came(self, row: Row | None) -> None:
        """Bring those who asked to this row, and on to the head."""
        try:
            self._take_row(row)
        except Exception:
            self._lose_track()
            self.recent_deltas = None
            self._put_back_asking()
            self._host.later(_READ_AGAIN_SECONDS, self._ask)
            raise
        self._put_back_asking()
        self._ask()

    def _take_row(self, row: Row | None) -> None:
        beating, self._beating = self._beating, False
        head = NO_COMMIT if row is None else row.head
        position = head.position
        state = b"null" if row is None or row.is_tombstone else row.state
        lost = self._lost_to(head)
        if lost is not None:
            self._beating = beating
            self._leave_history(lost)
            return
        if self._has_vanished(head):
            self.recent_deltas = None
        if self.recent_deltas is None:
            self._let_all_ask()
            self.recent_deltas = RecentDeltas(head, self._host.settings)
        recent_deltas = self.recent_deltas
        missing = recent_deltas.since(position)
        if missing is None and self._is_news(position):
            ahead = position.epoch == recent_deltas.epoch and position.version > recent_deltas.version
            if ahead and self.live and not beating:
                # What leads here from the head is on its way: those who are live will get it as deltas.
                self._send_row(position, state, (), then=AHEAD)
                return
            self._let_all_ask()
            self.recent_deltas = RecentDeltas(head, self._host.settings)
            missing = []
        if missing is None:
            # The ring no longer reaches back to this row. It is better than nothing; a newer one follows.
            self._send_row(position, state, (), then=WAITING)
        else:
            self._send_row(position, state, missing, then=LIVE)
        if beating:
            self.tell_position()

    def _lost_to(self, head: Head) -> Head | None:
        """Return what was committed before a row was read and is gone from it: all of an epoch that it had left before."""
        tried, self.leaving = self.leaving, None
        seen, self._seen = self._seen, head
        had_left = head.epoch in self._epochs_left
        if seen.epoch not in ("", head.epoch):
            self._epochs_left = (*self._epochs_left, seen.epoch)[-_MOST_EPOCHS_LEFT:]
        if not head.epoch or (tried is not None and tried.epoch == head.epoch):
            # There is none; or it has lost nothing, and reads lag; or the database gives it no other epoch.
            return None
        if had_left:
            return Head.end_of(head.epoch)
        known = (seen, self._head_of_this_ring_when_asked() or NO_COMMIT)
        gone = [commit for commit in known if commit.is_gone_from(head)]
        return max(gone, key=lambda commit: commit.version, default=None)

    def _has_vanished(self, head: Head) -> bool:
        """Say whether there is no row any more of what the ring leads on from. The next one begins in a new epoch."""
        return head == NO_COMMIT and self._head_of_this_ring_when_asked() is not None

    def _head_of_this_ring_when_asked(self) -> Head | None:
        """Return where the ring led when the row was asked for; None if it was replaced since, or led nowhere."""
        recent_deltas, asked = self.recent_deltas, self._head_when_asked
        if recent_deltas is None or asked is None or not asked.epoch or recent_deltas.epoch != asked.epoch:
            return None
        return asked

    def _let_all_ask(self) -> None:
        """Bring those to the row as well who stand elsewhere."""
        self._asking = (self._asking or {}) | dict.fromkeys((*self.live, *self.ahead), "gap")
        self.live.clear()
        self.ahead.clear()

    def _is_news(self, position: Position) -> bool:
        """Say whether a row that the ring does not lead on from is newer than the ring."""
        recent_deltas = self.recent_deltas
        if recent_deltas is None or self._changes == self._changes_when_asked:
            return True  # nothing was published meanwhile, and what was published before is in the row
        return position.epoch == recent_deltas.epoch and position.version > recent_deltas.version

    def _send_row(
        self,
        position: Position,
        state: bytes,
        missing: Sequence[bytes],
        *,
        then: str,
    ) -> None:
        recent_deltas, asking = self.recent_deltas, self._asking or {}
        assert recent_deltas is not None  # noqa: S101
        snapshots: dict[str, Batch] = {}
        for subscription in list(asking):
            wish = asking.pop(
                subscription, None
            )  # one by one: an error leaves the others where they can be found
            if wish is None:
                continue  # it has left meanwhile
            since, subscription.since = subscription.since, None
            path = None if since is None else self._path(since, position, then)
            reason = wish if since is None else "expired"
            if since is not None and path is not None:
                head = position if then == AHEAD else recent_deltas.head
                self._host.counts["resumed"] += 1
                batches = [Batch.resumed(self.text, since, head)]
                deltas: Sequence[bytes] = path
            else:
                if reason not in snapshots:
                    snapshots[reason] = Batch.snapshot(self.text, position, state, reason)
                self._host.snapshot_sent(self.name, reason)
                batches, deltas = [snapshots[reason]], missing
            if then == LIVE:
                self.live[subscription] = None
            elif then == AHEAD:
                self.ahead[subscription] = position
            else:
                self.waiting[subscription] = "gap"
            if deltas:
                batches.append(Batch("delta", list(deltas), recent_deltas.head))
            for batch in batches:
                subscription.connection.deliver(batch, subscription)

    def _path(self, since: Position, position: Position, then: str) -> list[bytes] | None:
        """Return the frames from where a client was to where it is brought, or None: it needs a snapshot."""
        if then == LIVE and self.recent_deltas is not None:
            return self.recent_deltas.since(since)
        return [] if then == AHEAD and since == position else None

    def tell_position(self) -> None:
        """Tell those who are live where they should stand by now."""
        if self.recent_deltas is not None:
            batch = Batch.heartbeat(self.text, self.recent_deltas.head)
            for subscription in tuple(self.live):
                subscription.connection.deliver(batch, subscription)
        self.quiet_since = self._host.clock()
