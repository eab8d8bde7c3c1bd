"""The actor that owns one key of one projection."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from enum import Enum
from functools import partial
from time import monotonic
from typing import TYPE_CHECKING, Any

from pykka import ActorDeadError

from ...store import Position, ProjectionError, StoreError, StoreRejected
from ...store.rows import Head, Row, Save, new_commit_id, new_epoch
from ...store.writing.writer_messages import Amend, Conflict, Load, Loaded, Rejected, Saved, Write
from ..broadcaster import Committed
from ..errors import MailboxSealed, apply_error, crash_error, newer_row, undecodable_row
from ..pool.pooled_actor import PooledActor
from ..receipt import Delivery
from .commands import Command, LeaveEpoch, Park, first_command
from .contention_backoff import ContentionBackoff
from .dead_lettering import PendingLetter, make_letter, resolve_letters
from .fold import fold

if TYPE_CHECKING:
    from ..errors import ApplyError
    from .actor_context import ActorContext

_logger = logging.getLogger("keyfold.actor")

_MAX_EPOCHS_LEFT = 8


class Stage(Enum):
    """The stages of an actor. See KeyActor for the transitions."""

    COLD = "nothing is known of the row"
    LOADING = "the writer reads the row"
    READY = "the row is known, and the actor may fold"
    COMMITTING = "the writer has a commit or a command of this actor"
    PAUSED = "other processes write the key, too, and have their turn"


_SUSPENDED = (Stage.LOADING, Stage.COMMITTING, Stage.PAUSED)
"""The stages in which events wait, and only a signal wakes the actor."""


class Signal(Enum):
    """A message of the runtime itself. The answers of the writer are signals, too."""

    RETIRE = "end, if no message waits and nothing is under way"
    RESUME = "the pause is over"


class KeyActor(PooledActor):
    """Folds the events of one key, one at a time, and has the result committed a batch at a time.

    A turn folds everything in the mailbox, hands the new state to the SnapshotWriter and rests suspended
    until the writer answers; the events that arrive meanwhile are the next batch. Nothing here waits. The
    stages:

    ==========  ==========  ===============================================================================
    from        to          when
    ==========  ==========  ===============================================================================
    COLD        LOADING     a message waits, or dead letters have to be kept
    LOADING     READY       Loaded
    LOADING     LOADING     Rejected for good: the dead letters are logged, and the row is loaded without them
    LOADING     COLD        Rejected as the system closes; or the row was read for its dead letters alone
    READY       COMMITTING  a batch was folded, or a command has begun
    READY       LOADING     an event could not be folded, or the row does not decode
    READY       PAUSED      after a conflict, while other processes write the key as well
    READY       COLD        a command could not be carried out
    PAUSED      READY       Signal.RESUME
    COMMITTING  READY       Saved, after a batch
    COMMITTING  COLD        Saved, after a command; or Rejected as the system closes
    COMMITTING  LOADING     Conflict, or Rejected for good
    ==========  ==========  ===============================================================================

    Two conditions are no stages. *Halted* is a property of the row: its events are parked, each batch by a
    Park command. *Retired* is a sealed mailbox, which an actor enters from COLD or READY, or by a crash.

    There is one way back from trouble. An event that can't be folded, a conflict and a refused row all do the
    same: they put the events that are not committed back in front of the mailbox, drop the state, and load
    the row (``_reload``).

    It has many attributes, as it is the whole state machine of a key, and each of a million actors is one
    object.

    Attributes:
        base: The position of the row; None if there is none. As of the last load or commit, which is all that
            a version-checked write needs; so are the next two.
        commit_id: The commit that the row holds; None if it is not known.
        halted: Whether events are parked for the key.
        epochs_left: Epochs that the row had before. None of them comes back, except by a restored backup.
        last_turn: When the last turn ended, as monotonic time.
    """

    __slots__ = (
        "_batch_limit",
        "_command",
        "_commit",
        "_contention_backoff",
        "_deliveries",
        "_expects_command",
        "_letters",
        "_row",
        "base",
        "commit_id",
        "context",
        "epochs_left",
        "halted",
        "key",
        "last_turn",
        "stage",
        "state",
    )

    def __init__(self, key: str, context: ActorContext) -> None:
        super().__init__(dispatcher=context.dispatcher, mailbox_limit=context.mailbox_limit)
        self.key = key
        self.context = context
        self.last_turn = monotonic()
        self.stage = Stage.COLD
        self.base: Position | None = None
        self.commit_id: str | None = None
        self.epochs_left: tuple[str, ...] = ()
        self.halted = False
        # The content of the row: the row itself until the first fold needs the state.
        self._row: Row | None = None
        self.state: Any = None
        # The commit that the writer has, with its deliveries, or the command that it has. (Empty sequences
        # are tuples: a list of its own would cost each idle actor 56 bytes.)
        self._commit: Committed | None = None
        self._deliveries: Sequence[Any] = ()
        self._command: Command | None = None
        self._expects_command = False
        # Dead letters that the next load keeps.
        self._letters: tuple[PendingLetter, ...] = ()
        # How many events the next batch may have; 0 for no such limit. Small while a guilty event is sought.
        self._batch_limit = 0
        # Set while other processes write the key as well.
        self._contention_backoff: ContentionBackoff | None = None

    # -- from other threads

    def expect_command(self) -> None:
        """Look for commands among the messages from now on: one is about to be put into the mailbox."""
        self._expects_command = True

    def suggest_retirement(self) -> bool:
        """Ask the actor to retire if it is idle when the suggestion arrives. False: it has ended already."""
        try:
            self.actor_inbox.put_signal(Signal.RETIRE)
        except MailboxSealed:
            return False
        return True

    # -- a turn

    def run_turn(self) -> None:
        """Take the answers, then work on the messages that wait, unless an answer is still due."""
        mailbox = self.actor_inbox
        try:
            if not mailbox.begin_turn():
                return
            for signal in mailbox.take_signals():
                self._on_signal(signal)
            if mailbox.sealed:
                return
            given_up = self.context.population.given_up
            if given_up is not None:
                # The writer still answers its messages, or the close ends them; nothing else is begun.
                self.context.in_flight.fail(mailbox.take(sys.maxsize), given_up)
            elif self.stage is Stage.READY:
                self._work()
            elif self.stage is Stage.COLD and (self._letters or not mailbox.empty()):
                self._load()
            self.last_turn = monotonic()
            if mailbox.rest(suspended=self.stage in _SUSPENDED):
                self.dispatcher.submit(self)
        except BaseException as error:
            self._crash(error)
            raise

    def _on_signal(self, signal: Any) -> None:
        match signal:
            case Saved():
                self._on_saved()
            case Loaded(row):
                self._on_loaded(row)
            case Conflict():
                self._on_conflict()
            case Rejected(error):
                self._on_rejected(error)
            case Signal.RETIRE:
                self._retire()
            case Signal.RESUME:
                self.stage = Stage.READY

    def _retire(self) -> None:
        at_rest = self.stage in (Stage.COLD, Stage.READY) and not self._letters
        # The seal is the linearisation point of retirement: a sender that comes later asks for a new
        # actor, and its load sees everything that this one has committed.
        if at_rest and self.actor_inbox.seal_if_empty():
            self.context.population.remove(self)

    def _work(self) -> None:
        """Take the messages that wait and give the writer its next order; the row is loaded."""
        if (
            self._contention_backoff is not None
            and not self.actor_inbox.empty()
            and self._pauses(self._contention_backoff)
        ):
            return
        turn_limit = self.dispatcher.turn_limit
        batch = self.actor_inbox.take(min(turn_limit, self._batch_limit) if self._batch_limit else turn_limit)
        if not batch:
            return  # and keep no empty list: most actors are idle, and it has 56 bytes
        self._deliveries = batch  # from here on this actor resolves them, in every case
        if self._expects_command and (here := first_command(batch)) < len(batch):
            # The command gets a turn of its own, after the events in front of it.
            self.actor_inbox.put_back(batch[max(here, 1) :])
            if here == 0:
                self._begin(batch[0])
                return
            del batch[here:]
        if batch and self.halted:
            self._begin(Park(batch, self.context.in_flight))
        elif batch and self._has_state(batch):
            self._fold(batch)

    def _pauses(self, contention_backoff: ContentionBackoff) -> bool:
        """Rest suspended if a pause is due: the events that come meanwhile are folded in one turn."""
        pause = contention_backoff.pause()
        if pause > 0:
            self.stage = Stage.PAUSED
            self.context.timer.after(pause, partial(self.actor_inbox.put_signal, Signal.RESUME))
        return pause > 0

    # -- loading

    def _load(self) -> None:
        """Read the row, after the pending dead letters are kept."""
        self.stage = Stage.LOADING
        letters = tuple(pending.letter for pending in self._letters)
        self._order(Load((self.context.name, self.key), letters, self.actor_inbox.put_signal))

    def _order(self, message: Load | Write | Amend) -> None:
        """Tell the writer.

        It answers by a signal, unless it has ended: then the close fails the messages.
        """
        try:
            self.context.writer.tell(message)
        except ActorDeadError:
            if self.context.population.given_up is None:
                raise

    def _on_loaded(self, row: Row | None) -> None:
        self.stage, self.state = Stage.READY, None
        known = None if self.base is None else Head(*self.base, self.commit_id)
        self.base, self.commit_id = (None, None) if row is None else (row.position, row.commit_id)
        self.halted = row is not None and row.halted
        self._row = None if row is None or row.is_tombstone else row
        self.context.counters.add(loads=1, dead_letters=len(self._letters))
        if known is not None and row is not None:
            lost = self._lost(known, row.head)
            if lost is not None:
                # Before the letters: an app that waits for a Receipt, and then for settle(), waits for this
                # too.
                self._on_gone_back(lost)
        if self._letters:
            self._resolve_letters()
        if self.context.degraded and self.actor_inbox.empty():
            # It was read for the letters alone, and may not load. By the next event another process may have
            # repaired it.
            self.forget()

    def _lost(self, known: Head, head: Head) -> Head | None:
        """Return the commit that this actor knows and the row has lost; None if it has lost none."""
        if head.epoch in self.epochs_left:
            return Head.end_of(head.epoch)
        if known.epoch != head.epoch:
            self.epochs_left = (*self.epochs_left, known.epoch)[-_MAX_EPOCHS_LEFT:]
        return known if known.is_gone_from(head) else None

    def _on_gone_back(self, lost: Head) -> None:
        """The loaded row has lost a commit that this actor knows: a backup was restored, for instance."""
        base = self.base
        assert base is not None  # noqa: S101
        details = {"projection": self.context.name, "key": self.key, "version": base.version}
        _logger.warning(
            "%s: the row of key %r is back at version %d, before a commit of this process: "
            "it gets a new epoch if that commit is lost, and does not just lag",
            self.context.name,
            self.key,
            base.version,
            extra=details,
        )
        self.context.counters.add(gone_back=1)
        # In front of the pending events: nothing more is committed in an epoch that has two histories.
        self.expect_command()
        command, in_flight = LeaveEpoch(lost), self.context.in_flight
        in_flight.open.add(command)  # a close waits for it
        command.done.add_done_callback(lambda _: in_flight.remove((command,)))
        self.actor_inbox.put_back((command,))

    def load_state(self) -> Any:
        """Return the state, decoded by now. Raises StoreError if the row does not decode."""
        if self.state is None:
            context = self.context
            try:
                self.state = context.codec.state_of(self._row)
            except StoreError as error:
                context.degraded.note(self.key, error)
                raise
            except Exception as cause:
                # No local name for the error: it would be in a cycle with its own traceback.
                raise context.degraded.note(
                    self.key, undecodable_row(context.name, self.key, self.base, cause)
                ) from cause
            self._row = None
            context.degraded.clear(self.key)
        return self.state

    def newer_schema(self) -> StoreError | None:
        """Return the error for a row that a newer release has written; None if this one knows its shape."""
        row, known = self._row, self.context.codec.schema_version
        if row is None or row.schema_version <= known:
            return None
        return newer_row(self.context.name, self.key, row.schema_version, known)

    def forget(self) -> None:
        """Know nothing of the row any more: the next message loads it."""
        self.stage, self.state, self._row = Stage.COLD, None, None

    # -- folding and committing

    def _has_state(self, batch: list[Delivery]) -> bool:
        """Decode the state if that is still to be done.

        False: the row does not decode, and the batch is dealt with.
        """
        if self.state is None:
            # A newer release that has written the row folds it well: it must not find its key halted by this
            # one.
            is_newer = self.newer_schema() is not None
            try:
                self.load_state()
            except StoreError as error:
                if self.context.halts and not is_newer:
                    self._begin(Park(batch, self.context.in_flight, error))
                    return False
                for delivery in batch:
                    self._dead_letter(delivery, error)
                self._reload(())
                return False
        return True

    def _fold(self, batch: list[Delivery]) -> None:
        context, state = self.context, self.state
        turn_ends = monotonic() + self.dispatcher.turn_seconds
        deltas, error = fold(context.codec, state, batch, turn_ends)
        if error is not None:
            self._poisoned(batch, len(deltas), error)
            return
        if len(deltas) < len(batch):
            self.actor_inbox.put_back(batch[len(deltas) :])
            del batch[len(deltas) :]
        try:
            encoded = context.codec.encode_state(state)
        except Exception as cause:
            self._narrow(batch, cause)
            return
        context.activity.encoded(len(encoded))
        base = self.base
        epoch, version = base or (new_epoch(), 0)
        self.stage = Stage.COMMITTING  # first: READY and a commit mean that it is committed, see _crash
        base_commit_id, commit_id = self.commit_id, new_commit_id()
        codec = context.codec
        self._commit = Committed(
            context.name,
            self.key,
            epoch,
            version,
            deltas,
            codec.projection.broadcast_event_name,
            codec.delta.decode_fast,
            base_commit_id,
            commit_id,
        )
        version += len(deltas)
        save = Save(
            context.name,
            self.key,
            base,
            epoch,
            version,
            encoded,
            codec.schema_version,
            base_commit_id,
            commit_id,
        )
        self._order(Write(save, self.actor_inbox.put_signal))

    def _begin(self, command: Command) -> None:
        """Carry out a command: give its order to the writer."""
        self._deliveries, self._command = (), command
        order = command.begin(self)
        if order is None:  # it could not be done, and its state may be half changed
            self._command = None
            self.forget()
        else:
            self.stage = Stage.COMMITTING
            self._order(order)

    def _on_saved(self) -> None:
        if self._command is not None:
            self._command.saved(self)
            self._command, self._deliveries = None, ()
            return
        commit, deliveries, context = self._commit, self._deliveries, self.context
        assert commit is not None  # noqa: S101  # Saved only ever answers a commit
        self.stage, self._batch_limit = Stage.READY, 0
        self.base, self.commit_id = Position(commit.epoch, commit.version), commit.commit_id
        failure = context.publisher.publish(commit, self.state)
        context.counters.add(events=len(deliveries), turns=1)
        seconds = monotonic() - self.last_turn
        context.activity.committed(self.key, len(deliveries), seconds)
        context.publisher.notify_applied(commit, seconds)
        if failure is None:
            Delivery.commit(deliveries, commit)
        else:
            for delivery in deliveries:
                delivery.fail(failure)
        self._deliveries, self._commit = (), None
        context.in_flight.remove(deliveries)
        if self._contention_backoff is not None and not self._contention_backoff.committed(seconds):
            self._contention_backoff = None

    # -- trouble

    def _reload(self, pending: Sequence[Any]) -> None:
        """The one way back: put the pending messages back and load the row, which drops the state."""
        self._take_pending()
        self.actor_inbox.put_back(pending)
        self._load()

    def _take_pending(self) -> Sequence[Any]:
        """Return the messages that were taken and are not committed, and hold them no more."""
        pending = self._deliveries if self._command is None else (self._command,)
        self._deliveries, self._commit, self._command = (), None, None
        return pending

    def _on_conflict(self) -> None:
        """The row was no longer at ``base``."""
        self.context.counters.add(conflicts=1)
        self._contention_backoff = ContentionBackoff()
        self._reload(self._deliveries if self._command is None else self._command.conflicted(self))

    def _poisoned(self, batch: list[Delivery], index: int, cause: BaseException) -> None:
        """``apply`` raised for batch[index], and may have left the state half changed."""
        if self.context.halts:
            self._batch_limit = index
            if index:
                self._reload(batch)  # the good ones before it first, as a commit of their own
            else:
                self._begin(Park(batch, self.context.in_flight, self._apply_error(batch[0], 0, cause)))
            return
        self._dead_letter(batch[index], self._apply_error(batch[index], index, cause))
        # The good events before it are folded again as a commit of their own, so that many poison
        # events in one batch cost two folds each and not a fold of the whole batch each.
        self._batch_limit = index
        self._reload(batch[:index] + batch[index + 1 :])

    def _narrow(self, batch: Sequence[Delivery], cause: Exception) -> None:
        """The batch makes a state that can't be stored: halve it until the guilty event stands alone."""
        self._batch_limit = len(batch) // 2
        if self._batch_limit:
            self._reload(batch)
        elif self.context.halts:
            self._begin(Park(batch, self.context.in_flight, self._apply_error(batch[0], 0, cause)))
        else:
            self._dead_letter(batch[0], self._apply_error(batch[0], 0, cause))
            self._reload(())

    def _dead_letter(self, delivery: Delivery, error: Exception) -> None:
        self._letters += (make_letter(self.context, self.key, delivery, error),)

    def _apply_error(self, delivery: Delivery, index: int, cause: BaseException) -> ApplyError:
        version = (self.base.version if self.base else 0) + index + 1
        error = apply_error(self.context.name, self.key, version, delivery.event, cause)
        _logger.error("%s", error, exc_info=cause, extra=error.facts)
        self.context.publisher.notify_failed(error, delivery.event)
        return error

    def _resolve_letters(self, error: Exception | None = None) -> None:
        """Resolve the Receipts of the dead letters: they are kept; or, with ``error``, they are not."""
        letters, self._letters = self._letters, ()
        resolve_letters(letters, self.context.in_flight, error)

    def _on_rejected(self, error: StoreError) -> None:
        """The database refuses the order for good, or the system closes without it."""
        for_good = isinstance(error, StoreRejected)
        if self.stage is Stage.LOADING:
            if for_good and self._letters:
                details = {"projection": self.context.name, "key": self.key}
                for pending in self._letters:
                    letter = pending.letter._asdict()
                    _logger.error(
                        "a dead letter is lost but for this log (%s): %s", error, letter, extra=details
                    )
                self._resolve_letters()
                self._load()
            else:
                self._give_up(error)
        elif not for_good:
            self._give_up(error)
        elif self._command is not None:
            self._reload(self._command.rejected(error))
        else:
            self._narrow(self._deliveries, error)

    def _give_up(self, error: ProjectionError) -> None:
        """Fail everything that is not committed: the system closes, and the database did not come back."""
        pending = [*self._take_pending(), *self.actor_inbox.take(sys.maxsize)]
        self.forget()
        self._resolve_letters(error)
        self.context.in_flight.fail(pending, error)

    def _crash(self, cause: BaseException) -> None:
        """A defect of the library: let this actor end, so that the next event starts a fresh one."""
        context, commit = self.context, self._commit
        is_committed = commit is not None and self.stage is Stage.READY
        pending, waiting = self._take_pending(), self.actor_inbox.seal()
        context.population.remove(self)
        if commit is not None and is_committed:
            Delivery.commit(pending, commit)
            context.in_flight.remove(pending)
            pending = ()
        error = crash_error(context.name, self.key, cause)
        self._resolve_letters(error)
        context.in_flight.fail([*pending, *waiting], error)
