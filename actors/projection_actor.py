"""The actor that owns one key of one projection."""

from __future__ import annotations

import logging
import sys
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..store import (
    Conflict,
    Load,
    Loaded,
    Position,
    ProjectionError,
    Rejected,
    Row,
    Save,
    Saved,
    StoreError,
    StoreRejected,
    Write,
    new_epoch,
)
from .announcement import announce, announce_replacement, settle_deliveries
from .broadcaster import Committed
from .burial import Burial, apply_error, bury, crash_error, fail_all, settle_burials, undecodable_row
from .fold import first_replacement, fold
from .pooled_actor import PooledActor
from .props import Props, Replacement, Retire

if TYPE_CHECKING:
    from .errors import ApplyError
    from .receipt import Delivery

_logger = logging.getLogger("keyfold.actor")

_COLD, _LOADING, _READY, _SAVING = range(4)


class ProjectionActor(PooledActor):
    """Folds the events of one key, one at a time, and has the result saved a batch at a time.

    A turn folds everything in the mailbox, hands the new state to the SnapshotWriter and rests
    suspended until it is answered; what arrives meanwhile is the next turn. Nothing here waits.

    There is one way back from trouble. A poison event, a conflict and a refused row all do the same:
    put the events that are not committed back in front of the mailbox, drop the state, load the row.
    """

    __slots__ = (
        "_base",
        "_buried",
        "_deliveries",
        "_encoded",
        "_most",
        "_props",
        "_replacement",
        "_stage",
        "_state",
        "_turn",
        "expects_replacement",
        "key",
        "last_turn",
    )

    def __init__(self, key: str, props: Props) -> None:
        super().__init__(dispatcher=props.dispatcher, mailbox_limit=props.mailbox_limit)
        self.key = key
        self.last_turn = monotonic()
        self.expects_replacement = False
        self._props = props
        self._stage = _COLD
        # Where the row stands, None for no row; what it holds (encoded until the first fold needs it).
        self._base: Position | None = None
        self._encoded: bytes | None = None
        self._state: Any = None
        # The turn that the writer has, with its deliveries, or the replacement that it has. (Empty
        # sequences are tuples here: a list of its own would cost each idle actor 56 bytes.)
        self._turn: Committed | None = None
        self._deliveries: Sequence[Any] = ()
        self._replacement: Replacement | None = None
        # How many events the next turn may fold; 0 for no such limit. Small while a guilty one is sought.
        self._most = 0
        self._buried: tuple[Burial, ...] = ()

    def run_turn(self) -> None:
        """Take the answers, then fold what is waiting, unless an answer is still due."""
        mailbox = self.actor_inbox
        try:
            for signal in mailbox.take_signals():
                self._on_signal(signal)
            if mailbox.sealed:
                return
            if self._stage == _READY:
                self._fold_next()
            elif self._stage == _COLD and (self._buried or not mailbox.empty()):
                self._load()
        except BaseException as error:
            self._crash(error)
            raise
        self.last_turn = monotonic()
        if mailbox.rest(suspended=self._stage in (_LOADING, _SAVING)):
            self.dispatcher.submit(self)

    def _on_signal(self, signal: Any) -> None:
        match signal:
            case Saved():
                self._on_saved()
            case Loaded(row):
                self._on_loaded(row)
            case Conflict():
                self._props.counters.add(conflicts=1)
                self._reload(self._take_pending())
            case Rejected(error):
                self._on_rejected(error)
            case Retire():
                self._retire()

    def _retire(self) -> None:
        at_rest = self._stage in (_COLD, _READY) and not self._buried
        # The seal is the linearisation point of retirement: a sender that comes later asks for a new
        # actor, and the load of that one can only see what this one has committed.
        if at_rest and self.actor_inbox.seal_if_empty():
            self._props.retired(self)

    # -- load

    def _load(self) -> None:
        self._stage = _LOADING
        letters = tuple(burial.letter for burial in self._buried)
        address = (self._props.projection, self.key)
        self._props.tell_writer(Load(address, letters, self.actor_inbox.put_signal))

    def _on_loaded(self, row: Row | None) -> None:
        self._stage, self._state = _READY, None
        self._base = None if row is None else Position(row.epoch, row.version)
        self._encoded = None if row is None or row.is_tombstone else row.state
        self._props.counters.add(loads=1, dead_letters=len(self._buried))
        if self._buried:
            self._settle_burials()

    def _settle_burials(self) -> None:
        buried, self._buried = self._buried, ()
        settle_burials(buried, self._props.in_flight)

    def _reload(self, pending: Sequence[Any]) -> None:
        """The one way back: keep what is not committed and load the row, which drops the state."""
        self._take_pending()
        self.actor_inbox.put_back(pending)
        self._load()

    def _take_pending(self) -> Sequence[Any]:
        """Return what was taken from the mailbox and is not committed, and hold it no more."""
        pending = self._deliveries if self._replacement is None else (self._replacement,)
        self._deliveries, self._turn, self._replacement = (), None, None
        return pending

    # -- fold and save

    def _fold_next(self) -> None:
        most = self.dispatcher.turn_limit
        batch = self.actor_inbox.take(min(most, self._most) if self._most else most)
        self._deliveries = batch  # from here on they are this actor's to settle, whatever happens
        if self.expects_replacement and (here := first_replacement(batch)) < len(batch):
            # It gets a turn of its own, after the events in front of it.
            self.actor_inbox.put_back(batch[max(here, 1) :])
            if here == 0:
                self._save_replacement(batch[0])
                return
            del batch[here:]
        if batch and self._has_state(batch):
            self._fold(batch)

    def _has_state(self, batch: list[Delivery]) -> bool:
        """Decode the state if that is still to be done. False: it can't be, and the batch is buried."""
        if self._state is None:
            try:
                self._state = self._props.state_of(self._encoded)
            except Exception as cause:
                error = undecodable_row(self._props.projection, self.key, self._base, cause)
                for delivery in batch:
                    self._bury(delivery, error)
                self._reload(())
                return False
            self._encoded = None
        return True

    def _fold(self, batch: list[Delivery]) -> None:
        props, state = self._props, self._state
        turn_ends = monotonic() + self.dispatcher.turn_seconds
        deltas, error = fold(props.apply, props.encode_delta, state, batch, turn_ends)
        if error is not None:
            self._poisoned(batch, len(deltas), error)
            return
        if len(deltas) < len(batch):
            self.actor_inbox.put_back(batch[len(deltas) :])
            del batch[len(deltas) :]
        try:
            encoded = props.encode_state(state)
        except Exception as cause:
            self._narrow(batch, cause)
            return
        base = self._base
        epoch, version = base or (new_epoch(), 0)
        self._turn = Committed(
            props.projection, self.key, epoch, version, deltas, props.event_name, props.decode_delta
        )
        self._save(Save(props.projection, self.key, base, epoch, version + len(deltas), encoded))

    def _save(self, save: Save) -> None:
        self._stage = _SAVING
        self._props.tell_writer(Write(save, self.actor_inbox.put_signal))

    def _on_saved(self) -> None:
        if self._replacement is not None:
            self._on_replaced(self._replacement)
            return
        turn, deliveries, props = self._turn, self._deliveries, self._props
        assert turn is not None  # noqa: S101  # Saved only ever answers a turn
        self._stage, self._most = _READY, 0
        self._base = Position(turn.epoch, turn.version)
        failure = announce(props, turn, self._state)
        props.counters.add(events=len(deliveries), turns=1)
        settle_deliveries(deliveries, turn, failure)
        self._deliveries, self._turn = (), None
        props.in_flight.settle(len(deliveries))

    # -- rebuild and wipe

    def _save_replacement(self, replacement: Replacement) -> None:
        self._deliveries, self._replacement = (), replacement
        epoch, version = replacement.position
        self._save(Save(self._props.projection, self.key, self._base, epoch, version, replacement.state))

    def _on_replaced(self, replacement: Replacement) -> None:
        self._replacement, self._stage = None, _READY
        self._base = replacement.position
        self._state = None
        self._encoded = replacement.state if replacement.position.version else None
        announce_replacement(self._props, self.key, replacement)

    # -- trouble

    def _poisoned(self, batch: list[Delivery], index: int, cause: BaseException) -> None:
        """``apply`` raised for batch[index], and may have left the state half changed."""
        self._bury(batch[index], self._apply_error(batch[index], index, cause))
        # The good events before it are folded again as a turn of their own, so that many poison
        # events in one batch cost two folds each and not a fold of the whole batch each.
        self._most = index
        self._reload(batch[:index] + batch[index + 1 :])

    def _narrow(self, batch: Sequence[Delivery], cause: Exception) -> None:
        """The batch makes a state that can't be stored: halve it until the guilty event stands alone."""
        self._most = len(batch) // 2
        if self._most == 0:
            self._bury(batch[0], self._apply_error(batch[0], 0, cause))
        self._reload(batch if self._most else ())

    def _bury(self, delivery: Delivery, error: Exception) -> None:
        self._buried += (bury(self._props, self.key, delivery, error),)

    def _apply_error(self, delivery: Delivery, index: int, cause: BaseException) -> ApplyError:
        version = (self._base.version if self._base else 0) + index + 1
        return apply_error(self._props.projection, self.key, version, delivery.event, cause)

    def _on_rejected(self, error: StoreError) -> None:
        for_good = isinstance(error, StoreRejected)
        if self._stage == _LOADING:
            if for_good and self._buried:
                _logger.error("dead letters of key %r are lost but for this log: %s", self.key, error)
                self._settle_burials()
                self._load()
            else:
                self._give_up(error)
        elif not for_good:
            self._give_up(error)
        elif self._replacement is not None:
            self._replacement.done.set_exception(error)
            self._reload(())
        else:
            self._narrow(self._deliveries, error)

    def _give_up(self, error: ProjectionError) -> None:
        """Fail all that is not committed: the system closes, and the database did not come back."""
        pending = [*self._take_pending(), *self.actor_inbox.take(sys.maxsize)]
        self._stage, self._state, self._encoded = _COLD, None, None
        self._settle_burials()
        fail_all(pending, error, self._props.in_flight)

    def _crash(self, cause: BaseException) -> None:
        """A defect of the library: let this actor end, so that the next event starts a fresh one."""
        pending = [*self._take_pending(), *self.actor_inbox.seal()]
        self._settle_burials()
        self._props.retired(self)
        fail_all(pending, crash_error(self._props.projection, self.key, cause), self._props.in_flight)
