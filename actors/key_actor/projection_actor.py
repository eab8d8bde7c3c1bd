"""The actor that owns one key of one projection."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from ...store import Position, ProjectionError, StoreError, StoreRejected
from ...store.rows import Head, Save, new_commit_id, new_epoch
from ...store.writing.writer_messages import Write
from ..broadcaster import Committed
from ..observer import tell
from ..receipt import Delivery
from .actor_context import GO_ON
from .commands import Command, LeaveEpoch, Park, first_command
from .contention_backoff import ContentionBackoff
from .dead_lettering import apply_error, crash_error, fail_all, letter_of
from .fold import fold
from .publishing import publish, settle_deliveries
from .row_actor import LOADING, PAUSED, READY, SAVING, RowActor

if TYPE_CHECKING:
    from ..errors import ApplyError
    from .actor_context import ActorContext

_logger = logging.getLogger("keyfold.actor")


class ProjectionActor(RowActor):
    """Folds the events of one key, one at a time, and has the result saved a batch at a time.

    A turn folds everything in the mailbox, hands the new state to the SnapshotWriter and rests
    suspended until it is answered; what arrives meanwhile is the next turn. Nothing here waits.

    There is one way back from trouble. A poison event, a conflict and a refused row all do the same:
    put the events that are not committed back in front of the mailbox, drop the state, load the row.
    """

    __slots__ = ("_command", "_courtesy", "_deliveries", "_most", "_turn", "expects_command")

    def __init__(self, key: str, context: ActorContext) -> None:
        super().__init__(key, context)
        self.expects_command = False
        # The turn that the writer has, with its deliveries, or the command that it has.
        self._turn: Committed | None = None
        self._deliveries: Sequence[Any] = ()
        self._command: Command | None = None
        # How many events the next turn may fold; 0 for no such limit. Small while a guilty one is sought.
        self._most = 0
        # While other processes write the key as well.
        self._contention_backoff: ContentionBackoff | None = None

    def _reload(self, pending: Sequence[Any]) -> None:
        """The one way back: keep what is not committed and load the row, which drops the state."""
        self._take_pending()
        self.actor_inbox.put_back(pending)
        self.load()

    def _take_pending(self) -> Sequence[Any]:
        """Return what was taken from the mailbox and is not committed, and hold it no more."""
        pending = self._deliveries if self._command is None else (self._command,)
        self._deliveries, self._turn, self._command = (), None, None
        return pending

    def on_conflict(self) -> None:
        self._contention_backoff = ContentionBackoff()
        self._reload(self._deliveries if self._command is None else self._command.conflicted(self))

    def on_gone_back(self, lost: Head) -> None:
        base = self.base
        assert base is not None  # noqa: S101
        facts = {"projection": self.context.projection, "key": self.key, "version": base.version}
        _logger.warning(
            "%s: the row of key %r is back at version %d, before what this process committed: it gets a new epoch if "
            "that is lost, and does not just lag",
            self.context.projection,
            self.key,
            base.version,
            extra=facts,
        )
        self.context.counters.add(gone_back=1)
        # In front of what is pending: nothing more is committed in the epoch whose history is not the only one.
        self.expects_command = True
        command, in_flight = LeaveEpoch(lost), self.context.in_flight
        in_flight.open.add(command)  # a close waits for it
        command.done.add_done_callback(lambda _: in_flight.remove((command,)))
        self.actor_inbox.put_back((command,))

    # -- fold and save

    def work(self) -> None:
        if (
            self._contention_backoff is not None
            and not self.actor_inbox.empty()
            and self._steps_back(self._contention_backoff)
        ):
            return
        most = self.dispatcher.turn_limit
        batch = self.actor_inbox.take(min(most, self._most) if self._most else most)
        if not batch:
            return  # and keep no empty list: most actors are idle, and it has 56 bytes
        self._deliveries = batch  # from here on they are this actor's to settle, whatever happens
        if self.expects_command and (here := first_command(batch)) < len(batch):
            # It gets a turn of its own, after the events in front of it.
            self.actor_inbox.put_back(batch[max(here, 1) :])
            if here == 0:
                self._obey(batch[0])
                return
            del batch[here:]
        if batch and self.halted:
            self._obey(Park(batch, self.context.in_flight))
        elif batch and self._has_state(batch):
            self._fold(batch)

    def _steps_back(self, contention_backoff: ContentionBackoff) -> bool:
        """Rest suspended for a while, if that is owed: what comes meanwhile is folded in one turn."""
        pause = contention_backoff.pause()
        if pause > 0:
            self.stage = PAUSED
            self.context.later(pause, partial(self.actor_inbox.put_signal, GO_ON))
        return pause > 0

    def _has_state(self, batch: list[Delivery]) -> bool:
        """Decode the state if that is still to be done. False: it can't be, and the batch is buried."""
        if self.state is None:
            # A newer release has written the row, and folds it well: it must not find its key halted by this one.
            is_newer = self.newer_schema() is not None
            try:
                self.load_state()
            except StoreError as error:
                if self.context.halts and not is_newer:
                    self._obey(Park(batch, self.context.in_flight, error))
                    return False
                for delivery in batch:
                    self._bury(delivery, error)
                self._reload(())
                return False
        return True

    def _fold(self, batch: list[Delivery]) -> None:
        context, state = self.context, self.state
        turn_ends = monotonic() + self.dispatcher.turn_seconds
        deltas, error = fold(context, state, batch, turn_ends)
        if error is not None:
            self._poisoned(batch, len(deltas), error)
            return
        if len(deltas) < len(batch):
            self.actor_inbox.put_back(batch[len(deltas) :])
            del batch[len(deltas) :]
        try:
            encoded = context.encode_state(state)
        except Exception as cause:
            self._narrow(batch, cause)
            return
        context.activity.encoded(len(encoded))
        base = self.base
        epoch, version = base or (new_epoch(), 0)
        self.stage = SAVING  # first: READY and a turn mean that it is committed, see on_crash
        base_commit_id, commit_id = self.commit_id, new_commit_id()
        self._turn = Committed(
            context.projection,
            self.key,
            epoch,
            version,
            deltas,
            context.event_name,
            context.decode_delta,
            base_commit_id,
            commit_id,
        )
        version += len(deltas)
        save = Save(
            context.projection,
            self.key,
            base,
            epoch,
            version,
            encoded,
            context.schema_version,
            base_commit_id,
            commit_id,
        )
        self.order(Write(save, self.actor_inbox.put_signal))

    def on_saved(self) -> None:
        if self._command is not None:
            self._command.saved(self)
            self._command, self._deliveries = None, ()
            return
        turn, deliveries, context = self._turn, self._deliveries, self.context
        assert turn is not None  # noqa: S101  # Saved only ever answers a turn
        self.stage, self._most = READY, 0
        self.base, self.commit_id = Position(turn.epoch, turn.version), turn.commit_id
        failure = publish(context, turn, self.state)
        context.counters.add(events=len(deliveries), turns=1)
        seconds = monotonic() - self.last_turn
        context.activity.committed(self.key, len(deliveries), seconds)
        if context.observers:
            tell(context.observers, lambda observer: observer.applied(turn, seconds))
        settle_deliveries(deliveries, turn, failure)
        self._deliveries, self._turn = (), None
        context.in_flight.remove(deliveries)
        if self._contention_backoff is not None and not self._contention_backoff.committed(seconds):
            self._contention_backoff = None

    # -- commands

    def _obey(self, command: Command) -> None:
        self._deliveries, self._command = (), command
        order = command.begin(self)
        if order is None:  # it could not be done, and its state may be half changed
            self._command = None
            self.forget()
        else:
            self.stage = SAVING
            self.order(order)

    # -- trouble

    def _poisoned(self, batch: list[Delivery], index: int, cause: BaseException) -> None:
        """``apply`` raised for batch[index], and may have left the state half changed."""
        if self.context.halts:
            self._most = index
            if index:
                self._reload(batch)  # the good ones before it first, as a turn of their own
            else:
                self._obey(Park(batch, self.context.in_flight, self._apply_error(batch[0], 0, cause)))
            return
        self._bury(batch[index], self._apply_error(batch[index], index, cause))
        # The good events before it are folded again as a turn of their own, so that many poison
        # events in one batch cost two folds each and not a fold of the whole batch each.
        self._most = index
        self._reload(batch[:index] + batch[index + 1 :])

    def _narrow(self, batch: Sequence[Delivery], cause: Exception) -> None:
        """The batch makes a state that can't be stored: halve it until the guilty event stands alone."""
        self._most = len(batch) // 2
        if self._most:
            self._reload(batch)
        elif self.context.halts:
            self._obey(Park(batch, self.context.in_flight, self._apply_error(batch[0], 0, cause)))
        else:
            self._bury(batch[0], self._apply_error(batch[0], 0, cause))
            self._reload(())

    def _bury(self, delivery: Delivery, error: Exception) -> None:
        self._buried += (letter_of(self.context, self.key, delivery, error),)

    def _apply_error(self, delivery: Delivery, index: int, cause: BaseException) -> ApplyError:
        version = (self.base.version if self.base else 0) + index + 1
        error = apply_error(self.context.projection, self.key, version, delivery.event, cause)
        _logger.error("%s", error, exc_info=cause, extra=error.facts)
        tell(self.context.observers, lambda observer: observer.failed(error, delivery.event))
        return error

    def on_rejected(self, error: StoreError) -> None:
        for_good = isinstance(error, StoreRejected)
        if self.stage == LOADING:
            if for_good and self._buried:
                facts = {"projection": self.context.projection, "key": self.key}
                for burial in self._buried:
                    kept = burial.letter._asdict()
                    _logger.error("a dead letter is lost but for this log (%s): %s", error, kept, extra=facts)
                self.settle_buried()
                self.load()
            else:
                self._give_up(error)
        elif not for_good:
            self._give_up(error)
        elif self._command is not None:
            self._reload(self._command.rejected(error))
        else:
            self._narrow(self._deliveries, error)

    def _give_up(self, error: ProjectionError) -> None:
        """Fail all that is not committed: the system closes, and the database did not come back."""
        pending = [*self._take_pending(), *self.actor_inbox.take(sys.maxsize)]
        self.forget()
        self.settle_buried(error)
        fail_all(pending, error, self.context.in_flight)

    def on_crash(self, cause: BaseException) -> None:
        """A defect of the library: let this actor end, so that the next event starts a fresh one."""
        context, turn = self.context, self._turn
        is_committed = turn is not None and self.stage == READY
        pending, waiting = self._take_pending(), self.actor_inbox.seal()
        context.retired(self)
        if turn is not None and is_committed:
            Delivery.commit(pending, turn)
            context.in_flight.remove(pending)
            pending = ()
        error = crash_error(context.projection, self.key, cause)
        self.settle_buried(error)
        fail_all([*pending, *waiting], error, context.in_flight)
