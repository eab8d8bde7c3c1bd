"""Dead letters: an operator looks at events that could not be folded, and retries or skips them."""

from __future__ import annotations

import logging
from collections.abc import Callable
from functools import partial
from typing import TYPE_CHECKING, Any, TypeVar

from ..store import CommitInDoubt, Position, StoredLetter, VersionConflict
from ..store.operator_queries import Queries
from ..store.rows import Amendment
from ..store.validation import check_key
from .errors import BroadcastError, InvalidEvent, KeyHalted, LetterNotFound, WouldDeadlock
from .key_actor.commands import Recalled, Retried, Retry
from .pool.threads import on_dispatcher_thread

if TYPE_CHECKING:
    from .receipt import Applied
    from .runtime import ProjectionRuntime
    from .system import ProjectionSystem

T = TypeVar("T")

_logger = logging.getLogger("keyfold.dead_letters")

_MAX_LETTERS_PER_COMMIT = 200
_MAX_ATTEMPTS = 20


class DeadLetters:
    """The dead letters of one projection: ``runtime.dead_letters``. Safe from any thread but a dispatcher's.

    A letter leaves the database in the same commit that folds its event, so no event is folded twice, even if
    two processes retry it at once.
    """

    def __init__(self, runtime: ProjectionRuntime[Any, Any], system: ProjectionSystem) -> None:
        self._runtime = runtime
        self._system = system
        self._queries = Queries(system.store)

    def find(
        self, key: str | None = None, *, parked: bool = False, after: int = 0, limit: int = 100
    ) -> list[StoredLetter]:
        """Return the oldest letters.

        Args:
            key: Only letters of this key; None: of all keys.
            parked: Only events that are parked for a halted key.
            after: Only letters with an id above this one.
            limit: The most letters to return.

        Raises:
            StoreError: The database can't be asked.
        """
        name = self._runtime.name
        return self._ask(lambda: self._queries.letters(name, key, parked=parked, after=after, limit=limit))

    def get(self, number: int) -> StoredLetter:
        """Return one letter by its id.

        Raises LetterNotFound, or StoreError if the database can't be asked.
        """
        letter = self._ask(lambda: self._queries.letter(number))
        if letter is None or letter.name != self._runtime.name:
            msg = f"{self._runtime.name}: there is no dead letter {number}"
            raise LetterNotFound(msg, projection=self._runtime.name)
        return letter

    def retry(self, number: int) -> tuple[Applied, ...]:
        """Fold the event of a letter on the present state, and remove the letter in the same commit.

        Of the events that are parked for a halted key only the oldest can be retried. The key is resumed once
        none is left.

        Args:
            number: The id of the letter.

        Returns:
            The change.

        Raises:
            ApplyError: The event still can't be folded. The letter stays.
            BroadcastError: The change is committed, but could not be shown.
            InvalidEvent: The event does not decode.
            KeyHalted: The letter is an ordinary one, and its key is halted now.
            LetterNotFound: There is no such letter, or it is not the oldest of the parked ones.
            VersionConflict: Other processes write the key all the time.
            MailboxFull: As for a dispatch. So are Closed, WouldDeadlock and StoreError.
        """
        for _ in range(_MAX_ATTEMPTS):
            letter = self.get(number)
            if letter.parked:
                self._check_head(letter)
            try:
                outcome = self._retry(letter.key, [letter], parked=letter.parked)
            except VersionConflict:
                continue  # another process wrote the key meanwhile, or dealt with the letter
            if outcome.error is not None:
                raise outcome.error
            return outcome.applied
        raise self._too_busy(letter.key)

    def skip(self, number: int, *, position: Position | None = None) -> None:
        """Remove a letter: its event will never be folded. The event is logged.

        Of parked events only the oldest can be skipped. If it was the last one, the key is resumed.

        Args:
            number: The id of the letter.
            position: The position of the key when the operator looked at it; None: any position.

        Raises:
            VersionConflict: The key is no longer at ``position``. Nothing was removed.
            LetterNotFound: There is no such letter, or it is not the oldest of the parked ones.
            StoreError: The database can't be asked.
        """
        letter = self.get(number)
        if letter.parked:
            self._check_head(letter)
        for _ in range(_MAX_ATTEMPTS):
            row = self._ask(lambda: self._system.store.row(letter.name, letter.key))
            base = None if row is None else row.position
            if position is not None and base != position:
                raise VersionConflict(projection=letter.name, key=letter.key, expected=str(position))
            amendment = Amendment(
                letter.name, letter.key, base, row is not None and row.halted, base or position or _NOWHERE,
                removed=(number,),
            )  # fmt: skip
            if self._ask(partial(self._remove, amendment)):
                details = {
                    "projection": letter.name,
                    "key": letter.key,
                    "letter": number,
                    "event": letter.event,
                }
                _logger.warning("dead letter %d of %s was skipped", number, letter.name, extra=details)
                return
            self.get(number)  # raises if another process has removed it
        raise self._too_busy(letter.key)

    def resume(self, key: str) -> int:
        """Fold all events that are parked for a halted key, oldest first, and resume the key.

        A broadcast that fails is logged and counted, and does not end it.

        Args:
            key: A halted key.

        Returns:
            How many events were folded.

        Raises:
            ApplyError: The next event can't be folded. Those before it are committed, it and those behind it
                stay.
            InvalidEvent: The next event does not decode. The same holds for the others.
            LetterNotFound: The key is not halted.
            VersionConflict: Other processes write the key all the time.
        """
        check_key(key, projection=self._runtime.name)
        folded = conflicts = 0
        while True:
            letters = self.find(key, parked=True, limit=_MAX_LETTERS_PER_COMMIT)
            if not letters and folded:
                return folded
            if not letters:
                self._release(key)
                return 0
            try:
                outcome = self._retry(key, letters, parked=True)
            except (VersionConflict, LetterNotFound):
                conflicts += 1
                if conflicts == _MAX_ATTEMPTS:
                    raise
                continue
            folded += len(outcome.commit.deltas)
            # A change that could not be shown is committed all the same, and the others need not wait for
            # that.
            if outcome.error is not None and not isinstance(outcome.error, BroadcastError):
                raise outcome.error

    # -- the steps

    def _release(self, key: str) -> None:
        """Resume a key for which nothing is parked any more: its letters were removed by hand."""
        name = self._runtime.name
        row = self._ask(lambda: self._system.store.row(name, key))
        if row is None or not row.halted:
            msg = f"{name}: key {key!r} is not halted"
            raise LetterNotFound(msg, projection=name, key=key)
        self._ask(
            lambda: self._remove(Amendment(name, key, row.position, was_halted=True, position=row.position))
        )

    def _retry(self, key: str, letters: list[StoredLetter], *, parked: bool) -> Retried:
        if on_dispatcher_thread():
            attempt = "retrying a dead letter"
            raise WouldDeadlock(attempt, projection=self._runtime.name, key=key)
        row = self._ask(lambda: self._system.store.row(self._runtime.name, key))
        if not parked and row is not None and row.halted:
            msg = (
                f"{self._runtime.name}: key {key!r} is halted; resume it before its older letters are retried"
            )
            raise KeyHalted(msg, projection=self._runtime.name, key=key, position=row.position)
        recalled, error = self._recall(letters)
        if error is not None and not recalled:
            raise error
        command = Retry(tuple(recalled), parked=parked, error=error)
        self._runtime.running().command(key, command)
        return command.done.result()

    def _recall(self, letters: list[StoredLetter]) -> tuple[list[Recalled], InvalidEvent | None]:
        """Return the events of the letters before the first that does not decode, and its error."""
        recalled: list[Recalled] = []
        for letter in letters:
            try:
                recalled.append(Recalled(letter.id, self._event(letter)))
            except InvalidEvent as error:
                return recalled, error
        return recalled, None

    def _event(self, letter: StoredLetter) -> Any:
        try:
            return self._runtime.decode_event(letter.event, letter.event_type)
        except InvalidEvent as cause:
            msg = f"{letter.name}: dead letter {letter.id}: {cause}"
            raise InvalidEvent(msg, event=letter.event, projection=letter.name, key=letter.key) from cause

    def _check_head(self, letter: StoredLetter) -> None:
        head = self._ask(lambda: self._queries.first_parked(letter.name, letter.key))
        if head is not None and head.id != letter.id:
            msg = f"{letter.name}: dead letter {letter.id} is parked behind {head.id}; deal with that first"
            raise LetterNotFound(msg, projection=letter.name, key=letter.key)

    def _remove(self, amendment: Amendment) -> bool:
        if amendment.base is None:
            return self._system.store.delete_letter(amendment.removed[0])
        try:
            return self._system.store.commit([], amendments=[amendment]) == [True]
        except CommitInDoubt:
            return False  # looked at again

    def _ask(self, ask: Callable[[], T]) -> T:
        return self._system.ask(ask)

    def _too_busy(self, key: str) -> VersionConflict:
        return VersionConflict(
            projection=self._runtime.name, key=key, expected=f"rest, in {_MAX_ATTEMPTS} attempts"
        )


_NOWHERE = Position("", 0)
