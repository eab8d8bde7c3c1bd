"""An actor that owns one row: loads it, writes over it, and retires when nobody needs it."""

from __future__ import annotations

import sys
from abc import abstractmethod
from time import monotonic
from typing import TYPE_CHECKING, Any

from pykka import ActorDeadError

from ...store import Position, StoreError
from ...store.rows import Head, Row
from ...store.writing.writer_messages import Amend, Conflict, Load, Loaded, Rejected, Saved, Write
from ..pool.pooled_actor import PooledActor
from .actor_context import GoOn, Retire
from .dead_lettering import Burial, fail_all, newer_row, settle_burials, undecodable_row

if TYPE_CHECKING:
    from .actor_context import ActorContext

COLD, LOADING, READY, SAVING, PAUSED = range(5)
_MAX_EPOCHS_LEFT = 8


class RowActor(PooledActor):
    """What is the same whatever is done with the row. Nothing here waits: each order to the writer ends a turn.

    ``base`` is where the row stands (None: there is none), ``commit_id`` the commit that it holds (None: it is not
    known), ``halted`` whether events are parked for it; as of the last load or commit, which is all that a write
    over them needs. ``epochs_left`` are those that the row had before: none of them comes back, but by a restore.
    """

    __slots__ = (
        "_buried",
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
        self.stage = COLD
        self.base: Position | None = None
        self.commit_id: str | None = None
        self.epochs_left: tuple[str, ...] = ()
        self.halted = False
        # What the row holds: the row itself until the first fold needs it decoded.
        self._row: Row | None = None
        self.state: Any = None
        # Dead letters that are kept by the next load. (Empty sequences are tuples: a list of its own would
        # cost each idle actor 56 bytes.)
        self._buried: tuple[Burial, ...] = ()

    # -- what is done with the row

    @abstractmethod
    def work(self) -> None:
        """Take messages and give the writer its next order; the row is loaded."""

    @abstractmethod
    def on_saved(self) -> None:
        """The order is committed."""

    @abstractmethod
    def on_conflict(self) -> None:
        """The row was no longer at ``base``."""

    @abstractmethod
    def on_gone_back(self, lost: Head) -> None:
        """The row that was loaded has lost what this actor knows to be committed: a backup was restored, for instance."""

    @abstractmethod
    def on_rejected(self, error: StoreError) -> None:
        """The database refuses the order for good, or the system closes without it."""

    @abstractmethod
    def on_crash(self, error: BaseException) -> None:
        """Settle everything: a defect of the library ends this actor."""

    # -- a turn

    def run_turn(self) -> None:
        """Take the answers, then work on what is waiting, unless an answer is still due."""
        mailbox = self.actor_inbox
        try:
            if not mailbox.begin_turn():
                return
            for signal in mailbox.take_signals():
                self._on_signal(signal)
            if mailbox.sealed:
                return
            if self.context.given_up is not None:
                # What the writer has is answered yet, or ended by the close; all else will not be begun.
                fail_all(mailbox.take(sys.maxsize), self.context.given_up, self.context.in_flight)
            elif self.stage == READY:
                self.work()
            elif self.stage == COLD and (self._buried or not mailbox.empty()):
                self.load()
            self.last_turn = monotonic()
            if mailbox.rest(suspended=self.stage in (LOADING, SAVING, PAUSED)):
                self.dispatcher.submit(self)
        except BaseException as error:
            self.on_crash(error)
            raise

    def _on_signal(self, signal: Any) -> None:
        match signal:
            case Saved():
                self.on_saved()
            case Loaded(row):
                self._on_loaded(row)
            case Conflict():
                self.context.counters.add(conflicts=1)
                self.on_conflict()
            case Rejected(error):
                self.on_rejected(error)
            case Retire():
                self._retire()
            case GoOn():
                self.stage = READY

    def _retire(self) -> None:
        at_rest = self.stage in (COLD, READY) and not self._buried
        # The seal is the linearisation point of retirement: a sender that comes later asks for a new
        # actor, and the load of that one can only see what this one has committed.
        if at_rest and self.actor_inbox.seal_if_empty():
            self.context.retired(self)

    # -- the row

    def load(self) -> None:
        """Read the row, after the buried letters are kept."""
        self.stage = LOADING
        letters = tuple(burial.letter for burial in self._buried)
        self.order(Load((self.context.projection, self.key), letters, self.actor_inbox.put_signal))

    def order(self, message: Load | Write | Amend) -> None:
        """Tell the writer; it answers by a signal, unless it has ended: then the close ends what waits for it."""
        try:
            self.context.tell_writer(message)
        except ActorDeadError:
            if self.context.given_up is None:
                raise

    def _on_loaded(self, row: Row | None) -> None:
        self.stage, self.state = READY, None
        known = None if self.base is None else Head(*self.base, self.commit_id)
        self.base, self.commit_id = (None, None) if row is None else (row.position, row.commit_id)
        self.halted = row is not None and row.halted
        self._row = None if row is None or row.is_tombstone else row
        self.context.counters.add(loads=1, dead_letters=len(self._buried))
        if known is not None and row is not None:
            lost = self._lost(known, row.head)
            if lost is not None:
                self.on_gone_back(
                    lost
                )  # first: who is told of a letter, and settles then, waits for this too
        if self._buried:
            self.settle_buried()
        if self.context.degraded and self.actor_inbox.empty():
            # It was read for the letters alone, and may not load. By the next event another process may have
            # repaired it.
            self.forget()

    def _lost(self, known: Head, head: Head) -> Head | None:
        """Return the commit that the row has lost since this actor knew it to be committed; None: it has lost none."""
        if head.epoch in self.epochs_left:
            return Head.end_of(head.epoch)
        if known.epoch != head.epoch:
            self.epochs_left = (*self.epochs_left, known.epoch)[-_MAX_EPOCHS_LEFT:]
        return known if known.is_gone_from(head) else None

    def load_state(self) -> Any:
        """Return the state, decoded by now. Raises StoreError if the row does not decode."""
        if self.state is None:
            context = self.context
            try:
                self.state = context.state_of(self._row)
            except StoreError as error:
                context.degraded.note(self.key, error)
                raise
            except Exception as cause:
                # No local name for the error: it would be in a cycle with its own traceback.
                raise context.degraded.note(
                    self.key, undecodable_row(context.projection, self.key, self.base, cause)
                ) from cause
            self._row = None
            context.degraded.clear(self.key)
        return self.state

    def newer_schema(self) -> StoreError | None:
        """Return an error that says so if a newer release has written the row; None if this one knows its shape."""
        row, known = self._row, self.context.schema_version
        if row is None or row.schema_version <= known:
            return None
        return newer_row(self.context.projection, self.key, row.schema_version, known)

    def forget(self) -> None:
        """Know nothing of the row any more: the next message loads it."""
        self.stage, self.state, self._row = COLD, None, None

    def settle_buried(self, error: Exception | None = None) -> None:
        """Tell the Receipts of buried events that they are kept; or, with ``error``, that they are not."""
        buried, self._buried = self._buried, ()
        settle_burials(buried, self.context.in_flight, error)
