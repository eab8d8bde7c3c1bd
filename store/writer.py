"""The one actor that writes: every turn that waits, in one transaction."""

from __future__ import annotations

import logging
import queue
import random
import threading
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

import pykka

from .errors import CommitInDoubt, StoreError, StoreRejected
from .ledger import Ledger
from .messages import CONFLICT, SAVED, Amend, Answer, Load, Loaded, Rejected, Write
from .writer_facts import WriterFacts

if TYPE_CHECKING:
    from .records import Address, Row
    from .snapshot_store import SnapshotStore

_logger = logging.getLogger("keyfold.writer")

_MOST_BYTES = 8 * 1024 * 1024
_FIRST_BACKOFF, _LONGEST_BACKOFF = 0.05, 2.0

Message = Load | Write | Amend


class SnapshotWriter(pykka.ThreadingActor):
    """Group commit: takes all Loads and Writes that are waiting, and answers each after one commit.

    It never gives up on an unavailable database: it keeps its group and tries again, until
    ``give_up`` is set. Data that is refused for good is found by halving the group, and only the
    guilty message is answered Rejected.
    """

    use_daemon_thread = True

    def __init__(
        self, store: SnapshotStore, *, commit_limit: int, give_up: threading.Event, facts: WriterFacts
    ) -> None:
        super().__init__()
        self._store = store
        self._commit_limit = commit_limit
        self._give_up = give_up
        self._facts = facts
        self._ledger = Ledger()

    @staticmethod
    def _create_actor_inbox() -> Any:
        return queue.SimpleQueue()  # Pykka's own choice, queue.Queue, takes four times as long a message

    def on_start(self) -> None:
        self._facts.thread = threading.current_thread()
        self._store.keep_connection()

    def on_stop(self) -> None:
        if not self._facts.trouble:
            try:
                self._store.sign_off(self._ledger)
            except StoreError:
                _logger.info("the ledger row stays behind; a later writer removes it", exc_info=True)
        self._store.disconnect()

    def on_receive(self, message: Message) -> None:
        self._facts.busy_since = monotonic()
        group, stop = self._drain(message)
        self._handle(group)
        self._facts.busy_since = None
        if stop is not None:
            # Not a matter of the group: back to where Pykka's own loop finds it next.
            self.actor_inbox.put(stop)

    def _drain(self, first: Message) -> tuple[list[Message], Any]:
        """Return all messages that wait, within the limits of a commit, and what ended the taking."""
        group = [first]
        size = _size(first)
        get = self.actor_inbox.get_nowait  # type: ignore[attr-defined]  # it is a SimpleQueue
        try:
            while len(group) < self._commit_limit and size < _MOST_BYTES:
                envelope = get()
                message = envelope.message
                if not isinstance(message, (Load, Write, Amend)):
                    return group, envelope
                group.append(message)
                size += _size(message)
        except queue.Empty:
            pass
        return group, None

    def _handle(self, group: Sequence[Message]) -> None:
        """Commit and answer a group; halve it while the database refuses something in it."""
        try:
            answers = self._persist(group)
        except StoreRejected as error:
            if len(group) > 1:
                middle = len(group) // 2
                self._handle(group[:middle])
                self._handle(group[middle:])
                return
            self._facts.rejected += 1
            answers = [Rejected(error)]
        except StoreError as error:
            answers = [Rejected(error)] * len(group)
        for message, answer in zip(group, answers, strict=True):
            try:
                message.reply(answer)
            except Exception:
                _logger.exception("an answer to %r could not be delivered", message)

    def _persist(self, group: Sequence[Message]) -> list[Answer]:
        """Return the answers to a group, after as many attempts as it takes.

        Raises StoreRejected, or StoreError once ``give_up`` is set.
        """
        writes = [message.save for message in group if type(message) is Write]
        loads = [message for message in group if type(message) is Load]
        amendments = [message.amendment for message in group if type(message) is Amend]
        letters = [letter for load in loads for letter in load.letters]
        backoff = _FIRST_BACKOFF
        rows: dict[Address, Row] | None = None
        doubt: CommitInDoubt | None = None
        written: list[bool] | None = None
        while written is None:
            try:
                if doubt is not None:
                    written, doubt = self._store.settle(doubt, self._ledger), None
                if rows is None:
                    # Before the commit: what is refused here was then not committed either, and the
                    # group may be halved. No key is in a group twice, so the order shows nowhere.
                    rows = self._store.rows([load.address for load in loads])
                if written is None:
                    started = monotonic()
                    written = self._store.commit(writes, letters, self._ledger, amendments)
                    if written or letters:
                        self._facts.committed(written, monotonic() - started)
            except StoreRejected:
                raise
            except StoreError as error:
                doubt = error if isinstance(error, CommitInDoubt) else doubt
                self._note_trouble(error)
                self._facts.retries += 1
                if self._give_up.wait(backoff * random.uniform(0.5, 1.0)):  # noqa: S311  # jitter
                    raise
                backoff = min(_LONGEST_BACKOFF, 2 * backoff)
        self._note_recovery()
        return _answers(group, written, rows or {})

    def _note_trouble(self, error: StoreError) -> None:
        if not self._facts.trouble:
            facts = {"database": self._store.describe()}
            _logger.error("nothing can be written; trying again until it can: %s", error, extra=facts)
        self._facts.trouble = str(error)
        self._facts.busy_since = monotonic()  # each attempt is a step of its own: it does not hang

    def _note_recovery(self) -> None:
        if self._facts.trouble:
            self._facts.trouble = ""
            _logger.warning("the database takes writes again", extra={"database": self._store.describe()})


def _size(message: Message) -> int:
    return len(message.save.state) if type(message) is Write else 0


def _answers(group: Sequence[Message], written: Sequence[bool], rows: dict[Address, Row]) -> list[Answer]:
    """Return what each message is told. ``written`` has the saves first, then the amendments."""
    writes = sum(type(message) is Write for message in group)
    saved, amended = iter(written[:writes]), iter(written[writes:])
    answers: list[Answer] = []
    for message in group:
        if type(message) is Load:
            answers.append(Loaded(rows.get(message.address)))
        else:
            answers.append(SAVED if next(saved if type(message) is Write else amended) else CONFLICT)
    return answers
