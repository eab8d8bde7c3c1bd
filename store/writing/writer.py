"""The one actor that writes: every turn that waits, in one transaction."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any

import pykka

from ..backoff import backoff
from ..errors import CommitInDoubt, StatementRefused, StoreError, StoreRejected
from .deferrals import Deferrals
from .ledger import Ledger
from .writer_inbox import Retry, WriterInbox
from .writer_messages import KINDS, Amend, Answer, Load, Message, Rejected, Write, answers_to, size_of
from .writer_stats import WriterStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ..rows import Amendment, DeadLetter, Row, RowKey, Save
    from ..snapshot_store import SnapshotStore

_logger = logging.getLogger("keyfold.writer")

_MOST_BYTES = 8 * 1024 * 1024
_LOCK_SECONDS = 0.3
"""How long a commit waits for rows that others have locked; other processes write them for milliseconds."""
_SHORT_LOCK_SECONDS = 0.05
"""... while it is sought which of them are in the way, or some are known to be."""
_SEARCH_SECONDS = 0.5
"""How long guilty messages are sought at a time, before other messages have their turn."""


class SnapshotWriter(pykka.ThreadingActor):
    """Group commit: takes all messages that are waiting, and answers each after one commit.

    It never gives up on an unavailable database: it keeps its group and tries again, until
    ``give_up`` is set. Where the database refuses a group, the messages at fault are found, and the others go
    on: data that is refused for good is answered Rejected, and a message that can't be done now, since its row
    is locked for instance, is deferred and tried again by itself until it can. Each message that was taken is
    answered, whatever happens.
    """

    use_daemon_thread = True

    actor_inbox: WriterInbox

    def __init__(
        self, store: SnapshotStore, *, commit_limit: int, give_up: threading.Event, facts: WriterStats
    ) -> None:
        super().__init__()
        self._store = store
        self._commit_limit = commit_limit
        self._give_up = give_up
        self._facts = facts
        self._ledger = Ledger()
        # The groups that are still to be done, the next one last. All that was taken and is not answered is in one
        # of them, or is deferred.
        self._groups: list[deque[Message]] = []
        self._deferrals = Deferrals(facts)
        self._lock_seconds = _LOCK_SECONDS
        self._search_ends: float | None = None

    @staticmethod
    def _create_actor_inbox() -> Any:
        return WriterInbox()

    def on_start(self) -> None:
        self._facts.thread = threading.current_thread()
        self._store.keep_connection()

    def on_stop(self) -> None:
        # Pykka drops the messages behind a stop.
        self._groups.append(deque(self.actor_inbox.take_all(KINDS)))
        self._fail_all("the writer has stopped")
        if not self._facts.trouble:
            try:
                self._store.remove_writer(self._ledger)
            except StoreError:
                _logger.info("the ledger row stays behind; a later writer removes it", exc_info=True)
        self._store.disconnect()

    def on_failure(self, *_failure: object) -> None:
        self.on_stop()

    def on_receive(self, message: Message | Retry) -> None:
        self._facts.busy_since = monotonic()
        stop = None
        try:
            if isinstance(message, Retry):
                self._take_deferred()
            else:
                stop = self._take(message)
            self._work()
        except BaseException as error:
            _logger.exception("the writer failed; what it had taken is not committed, or its answer is lost")
            self._fail_all(f"the writer failed: {type(error).__name__}: {error}", deferred=False)
        self.actor_inbox.wake_at = self._deferrals.look_at()
        self._facts.busy_since = None
        if stop is not None:
            # Not a matter of the group: back to where Pykka's own loop finds it next.
            self.actor_inbox.put(stop)

    # -- taking

    def _take(self, first: Message) -> Any:
        """Make a group of all messages that wait, within the limits of a commit; return what ended the taking."""
        group = deque((first,))
        self._groups.append(group)
        size = size_of(first)
        get = self.actor_inbox.get_nowait
        try:
            while len(group) < self._commit_limit and size < _MOST_BYTES:
                envelope = get()
                message = envelope.message
                if not isinstance(message, KINDS):
                    return envelope
                group.append(message)
                size += size_of(message)
        except queue.Empty:
            pass
        return None

    def _take_deferred(self) -> None:
        """Make a group of the deferred messages that are due; all are answered once the system closes."""
        if self._give_up.is_set():
            self._fail_all("the system closes")
            return
        group = deque(self._deferrals.due(self._commit_limit, _MOST_BYTES))
        if group:
            self._groups.append(group)

    # -- committing and answering

    def _work(self) -> None:
        """Commit and answer all groups, those that a group is split into as well."""
        self._lock_seconds = _SHORT_LOCK_SECONDS if self._deferrals else _LOCK_SECONDS
        self._search_ends = None
        groups = self._groups
        while groups:
            try:
                answers = self._persist(group := groups[-1])
            except StoreRejected as error:
                if len(group) > 1:
                    self._halve()
                    continue
                self._facts.rejected += 1
                answers = [Rejected(error)]
            except StatementRefused as error:
                self._isolate(group, error)
                continue
            except StoreError as error:
                answers = [Rejected(error)] * len(group)
            self._answer(group, answers)
            groups.pop()

    def _answer(self, group: deque[Message], answers: Iterable[Answer]) -> None:
        for answer in answers:
            message = group[0]
            try:
                message.reply(answer)
            except Exception:
                _logger.exception("an answer to %r could not be delivered", message)
            group.popleft()
            if self._deferrals:
                self._deferrals.forget(message)

    def _fail_all(self, reason: str, *, deferred: bool = True) -> None:
        """Answer everything that was taken, and what is deferred."""
        rejected = Rejected(StoreError(reason))
        while self._groups:
            group = self._groups[-1]
            self._answer(group, [rejected] * len(group))
            self._groups.pop()
        if deferred and self._deferrals:
            waiting = deque(self._deferrals.messages())
            self._answer(waiting, [rejected] * len(waiting))

    def _persist(self, group: Collection[Message]) -> list[Answer]:
        """Return the answers to a group, after as many attempts as it takes.

        Raises:
            StoreRejected: Something in the group is refused for good.
            StatementRefused: Something in the group can't be done now.
            StoreError: The database is not usable, and ``give_up`` is set.
        """
        writes = [message.save for message in group if type(message) is Write]
        loads = [message for message in group if type(message) is Load]
        amendments = [message.amendment for message in group if type(message) is Amend]
        letters = [letter for load in loads for letter in load.letters]
        failures = 0
        rows: dict[RowKey, Row] | None = None
        doubt: CommitInDoubt | None = None
        written: list[bool] | None = None
        while written is None:
            try:
                if doubt is not None:
                    written, doubt = self._store.resolve(doubt, self._ledger), None
                if rows is None:
                    # Before the commit: what is refused here was then not committed either, and the
                    # group may be split. No key is in a group twice, so the order shows nowhere.
                    rows = self._store.rows([load.row_key for load in loads])
                if written is None:
                    written = self._commit(writes, letters, amendments)
            except StoreError as error:
                if doubt is None and isinstance(error, (StoreRejected, StatementRefused)):
                    raise
                doubt = error if isinstance(error, CommitInDoubt) else doubt
                self._note_trouble(error)
                self._facts.retries += 1
                if self._give_up.wait(backoff(failures)):
                    raise doubt or error from error.__cause__
                failures += 1
        if writes or letters or amendments or not self._deferrals:
            self._note_recovery()
        return answers_to(group, written, rows or {})

    def _commit(
        self, writes: list[Save], letters: list[DeadLetter], amendments: list[Amendment]
    ) -> list[bool]:
        started = monotonic()
        written = self._store.commit(
            writes, letters, self._ledger, amendments, lock_seconds=self._lock_seconds
        )
        if written or letters:
            self._facts.committed(written, monotonic() - started)
        return written

    # -- seeking what is in the way

    def _isolate(self, group: deque[Message], error: StatementRefused) -> None:
        """Defer the messages that are in the way, or split the group in which they are."""
        now = self._facts.busy_since = monotonic()
        self._lock_seconds = _SHORT_LOCK_SECONDS
        if self._give_up.is_set():
            self._answer(group, [Rejected(error)] * len(group))
            self._groups.pop()
            return
        if self._search_ends is None:
            self._search_ends = now + _SEARCH_SECONDS
        locked: set[RowKey] = set()
        if error.locked:
            # Otherwise they are found by halving, or the next attempt meets the same outage.
            with contextlib.suppress(StoreError):
                locked = self._store.locked([message.row_key for message in group])
        if locked:
            self._defer(
                [message for message in group if message.row_key in locked], error, row_is_locked=True
            )
        elif len(group) == 1:
            self._defer(list(group), error)
        elif now < self._search_ends:
            self._halve()
        else:
            self._defer(list(group), error, guilty=False)

    def _defer(
        self,
        messages: Sequence[Message],
        error: StatementRefused,
        *,
        guilty: bool = True,
        row_is_locked: bool = False,
    ) -> None:
        """Move messages from the last group to those that are tried again later."""
        group = self._groups[-1]
        for message in messages:
            self._deferrals.add(message, error, guilty=guilty, row_is_locked=row_is_locked)
            group.remove(message)
        if not group:
            self._groups.pop()
        if self._deferrals.nothing_goes_on():
            self._note_trouble(error)

    def _halve(self) -> None:
        """Put two groups in the place of the last one; the earlier half comes first."""
        group = self._groups[-1]
        middle = len(group) // 2
        messages = list(group)
        self._groups[-1:] = [deque(messages[middle:]), deque(messages[:middle])]

    def _note_trouble(self, error: StoreError) -> None:
        if not self._facts.trouble:
            facts = {"database": self._store.describe()}
            _logger.error("nothing can be written; trying again until it can: %s", error, extra=facts)
        self._facts.trouble = str(error)
        self._facts.busy_since = monotonic()  # each attempt is a step of its own: it does not hang

    def _note_recovery(self) -> None:
        self._deferrals.others_go_on()
        if self._facts.trouble:
            self._facts.trouble = ""
            _logger.warning("the database takes writes again", extra={"database": self._store.describe()})
