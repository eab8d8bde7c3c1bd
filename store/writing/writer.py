"""The one actor that writes, and its inbox: all messages that wait go into one transaction."""

from __future__ import annotations

import contextlib
import logging
import queue
import threading
from collections import deque
from time import monotonic
from typing import TYPE_CHECKING, Any, Final, NamedTuple

import pykka

from ..backoff import backoff
from ..errors import CommitInDoubt, StatementRefused, StoreError, StoreRejected
from .deferrals import Deferrals
from .ledger import Ledger
from .writer_messages import (
    MESSAGE_TYPES,
    Amend,
    Answer,
    Load,
    Rejected,
    Write,
    WriterMessage,
    answers_to,
    size_of,
)
from .writer_stats import WriterStats

if TYPE_CHECKING:
    from collections.abc import Collection, Iterable, Sequence

    from ..rows import Amendment, DeadLetter, Row, RowKey, Save
    from ..snapshot_store import SnapshotStore

_logger = logging.getLogger("keyfold.writer")

_MAX_BYTES = 8 * 1024 * 1024
"""The size of the states from which a commit takes no further message."""
_LOCK_SECONDS = 0.3
"""How long a commit waits for locked rows. Other processes lock them for milliseconds only."""
_SHORT_LOCK_SECONDS = 0.05
"""The same while the writer searches for the locked rows, or while messages are deferred."""
_SEARCH_SECONDS = 0.5
"""How long the messages at fault are searched for at a time, before other messages are taken."""


class SnapshotWriter(pykka.ThreadingActor):
    """Group commit: takes all actor messages that wait, and answers each of them after one commit.

    The cases of a commit, in the order in which ``_work`` has them:

    - It succeeds. Each message is answered, by Conflict if its row has changed.
    - The database refuses the data of some message for good. The group is halved until that message stands
      alone, and it is answered Rejected; the others go on.
    - Some message can't be done now, for instance since its row is locked. It is found, deferred, and tried
      again on its own until it succeeds; the others go on.
    - The database is unavailable. The writer keeps the group and tries again, until ``give_up`` is set.
    - The answer to a COMMIT was lost. The ledger tells whether it happened.

    Each message that was taken is answered, also when the writer fails or stops.

    Args:
        store: The store to write to. The writer's thread keeps a connection.
        commit_limit: The maximal number of messages per commit.
        give_up: Once it is set, messages that can't be committed are answered Rejected.
        stats: Counters to fill. Only the writer's thread changes them.
    """

    use_daemon_thread = True

    actor_inbox: WriterInbox

    def __init__(
        self, store: SnapshotStore, *, commit_limit: int, give_up: threading.Event, stats: WriterStats
    ) -> None:
        super().__init__()
        self._store = store
        self._commit_limit = commit_limit
        self._give_up = give_up
        self._stats = stats
        self._ledger = Ledger()
        # The groups that are still to be done, the next one last. Each message that was taken and is not
        # answered is in one of them, or is deferred.
        self._groups: list[deque[WriterMessage]] = []
        self._deferrals = Deferrals()
        self._lock_seconds = _LOCK_SECONDS
        self._search_ends: float | None = None

    @staticmethod
    def _create_actor_inbox() -> Any:
        return WriterInbox()

    def on_start(self) -> None:
        self._stats.thread = threading.current_thread()
        self._store.keep_connection()

    def on_stop(self) -> None:
        # Pykka drops the messages behind a stop.
        self._groups.append(deque(self.actor_inbox.take_all(MESSAGE_TYPES)))
        self._fail_all("the writer has stopped")
        if not self._stats.trouble:
            try:
                self._store.remove_writer(self._ledger)
            except StoreError:
                _logger.info("the ledger's row stays; a later writer removes it", exc_info=True)
        self._store.disconnect()

    def on_failure(self, *_failure: object) -> None:
        self.on_stop()

    def on_receive(self, message: WriterMessage | _Retry) -> None:
        self._stats.busy_since = monotonic()
        stop = None
        try:
            if isinstance(message, _Retry):
                self._take_deferred()
            else:
                stop = self._take(message)
            self._work()
        except BaseException as error:
            _logger.exception("the writer failed; its messages are not committed, or their answers are lost")
            self._fail_all(f"the writer failed: {type(error).__name__}: {error}", deferred=False)
        self.actor_inbox.wake_at(self._deferrals.next_check_at())
        self._stats.busy_since = None
        if stop is not None:
            # It does not belong to the group: it goes back to the inbox, where Pykka's loop finds it next.
            self.actor_inbox.put(stop)

    # -- taking

    def _take(self, first: WriterMessage) -> Any:
        """Make a group of all messages that wait, within the limits of a commit.

        Returns:
            The envelope of a message of Pykka's own, a stop for instance, that ended the group; or None.
        """
        group = deque((first,))
        self._groups.append(group)
        size = size_of(first)
        get = self.actor_inbox.get_nowait
        try:
            while len(group) < self._commit_limit and size < _MAX_BYTES:
                envelope = get()
                message = envelope.message
                if not isinstance(message, MESSAGE_TYPES):
                    return envelope
                group.append(message)
                size += size_of(message)
        except queue.Empty:
            pass
        return None

    def _take_deferred(self) -> None:
        """Make a group of the deferred messages that are due; once the system closes, answer all of them."""
        if self._give_up.is_set():
            self._fail_all("the system closes")
            return
        group = deque(self._deferrals.due(self._commit_limit, _MAX_BYTES))
        if group:
            self._groups.append(group)

    # -- committing and answering

    def _work(self) -> None:
        """Commit and answer all groups, including those that a group is split into."""
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
                self._stats.rejected += 1
                answers = [Rejected(error)]
            except StatementRefused as error:
                self._isolate(group, error)
                continue
            except StoreError as error:
                answers = [Rejected(error)] * len(group)
            self._answer(group, answers)
            groups.pop()

    def _answer(self, group: deque[WriterMessage], answers: Iterable[Answer]) -> None:
        for answer in answers:
            message = group[0]
            try:
                message.reply(answer)
            except Exception:
                _logger.exception("an answer to %r could not be delivered", message)
            group.popleft()
            if self._deferrals and self._deferrals.remove(message):
                self._count_deferrals()

    def _fail_all(self, reason: str, *, deferred: bool = True) -> None:
        """Answer all messages that were taken and, with ``deferred``, those that are deferred."""
        rejected = Rejected(StoreError(reason))
        while self._groups:
            group = self._groups[-1]
            self._answer(group, [rejected] * len(group))
            self._groups.pop()
        if deferred and self._deferrals:
            waiting = deque(self._deferrals.messages())
            self._answer(waiting, [rejected] * len(waiting))

    def _persist(self, group: Collection[WriterMessage]) -> list[Answer]:
        """Commit a group, after as many attempts as it takes, and return the answers to its messages.

        Raises:
            StoreRejected: A message in the group is refused for good.
            StatementRefused: A message in the group can't be done now.
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
                    # Before the commit: if the database refuses the read, nothing is committed yet, and the
                    # group may be split. No key is in a group twice, so that the order makes no difference.
                    rows = self._store.rows([load.row_key for load in loads])
                if written is None:
                    written = self._commit(writes, letters, amendments)
            except StoreError as error:
                if doubt is None and isinstance(error, (StoreRejected, StatementRefused)):
                    raise
                doubt = error if isinstance(error, CommitInDoubt) else doubt
                self._note_trouble(error)
                self._stats.retries += 1
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
            self._stats.count_commit(written, monotonic() - started)
        return written

    # -- searching for the messages at fault

    def _isolate(self, group: deque[WriterMessage], error: StatementRefused) -> None:
        """Defer the messages at fault, or split the group that they are in."""
        now = self._stats.busy_since = monotonic()
        self._lock_seconds = _SHORT_LOCK_SECONDS
        if self._give_up.is_set():
            self._answer(group, [Rejected(error)] * len(group))
            self._groups.pop()
            return
        if self._search_ends is None:
            self._search_ends = now + _SEARCH_SECONDS
        locked: set[RowKey] = set()
        if error.locked:
            # If this fails, halving finds them, or the next attempt meets the same outage.
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
            self._defer(list(group), error, at_fault=False)

    def _defer(
        self,
        messages: Sequence[WriterMessage],
        error: StatementRefused,
        *,
        at_fault: bool = True,
        row_is_locked: bool = False,
    ) -> None:
        """Move messages from the last group to those that are tried again later."""
        group = self._groups[-1]
        for message in messages:
            self._deferrals.add(message, error, at_fault=at_fault, row_is_locked=row_is_locked)
            group.remove(message)
        self._count_deferrals()
        if not group:
            self._groups.pop()
        if self._deferrals.is_everything_stuck():
            self._note_trouble(error)

    def _halve(self) -> None:
        """Replace the last group by its two halves; the earlier half is done first."""
        group = self._groups[-1]
        middle = len(group) // 2
        messages = list(group)
        self._groups[-1:] = [deque(messages[middle:]), deque(messages[:middle])]

    def _count_deferrals(self) -> None:
        self._stats.waiting = len(self._deferrals)
        self._stats.waiting_reason = self._deferrals.reason

    def _note_trouble(self, error: StoreError) -> None:
        if not self._stats.trouble:
            _logger.error(
                "nothing can be written; trying again until it can: %s",
                error,
                extra={"database": self._store.describe()},
            )
        self._stats.trouble = str(error)
        # Each attempt is a step of its own, so that a thread that retries does not look like one that hangs.
        self._stats.busy_since = monotonic()

    def _note_recovery(self) -> None:
        self._deferrals.note_commit()
        if self._stats.trouble:
            self._stats.trouble = ""
            _logger.warning("the database takes writes again", extra={"database": self._store.describe()})


class _Retry(NamedTuple):
    """An actor message of the inbox to its writer: the time of ``wake_at`` has come."""


_RETRY: Final = _Retry()


class _Envelope(NamedTuple):
    """An envelope as Pykka's loop expects it."""

    message: _Retry
    reply_to: None = None


_WAKE_UP = _Envelope(_RETRY)


class WriterInbox:
    """The writer's inbox: a queue that also wakes the writer at a given time.

    ``_RETRY`` never comes twice in a row while messages wait. Pykka's default inbox, ``queue.Queue``, takes
    four times as long per message.
    """

    def __init__(self) -> None:
        self._queue: queue.SimpleQueue[Any] = queue.SimpleQueue()
        self.put = self._queue.put
        self.get_nowait = self._queue.get_nowait
        self.empty = self._queue.empty
        self._wake_at: float | None = None
        self._has_retried = False

    def wake_at(self, moment: float | None) -> None:
        """Let ``get`` return a retry at a monotonic time, or never. Only the writer's thread calls it."""
        self._wake_at = moment

    def get(self) -> Any:
        """Return the next envelope, or one with a retry in it."""
        if self._wake_at is None:
            return self._queue.get()
        pause = self._wake_at - monotonic()
        try:
            if pause > 0:
                return self._queue.get(timeout=pause)
            if self._has_retried:
                self._has_retried = False
                return self._queue.get_nowait()
        except queue.Empty:
            pass
        self._has_retried = True
        return _WAKE_UP

    def take_all(self, types: tuple[type, ...]) -> list[Any]:
        """Remove the messages of these types, and return them in their order."""
        envelopes = []
        while not self.empty():
            envelopes.append(self.get_nowait())
        for envelope in envelopes:
            if not isinstance(envelope.message, types):
                self.put(envelope)
        return [envelope.message for envelope in envelopes if isinstance(envelope.message, types)]
