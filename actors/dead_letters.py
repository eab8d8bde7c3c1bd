"""What operators do about events that could not be folded."""

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

_CHUNK = 200
_ATTEMPTS = 20


class DeadLetters:
    """The dead letters of one projection: ``runtime.dead_letters``. Safe from any thread but a dispatcher's.

    A letter leaves the database in the same commit that folds its event, so no event is folded twice,
    whoever retries it and wherever.
    """

    def __init__(self, runtime: ProjectionRuntime[Any, Any], system: ProjectionSystem) -> None:
        self._runtime = runtime
        self._system = system
        self._queries = Queries(system.store)

    def find(
        self, key: str | None = None, *, parked: bool = False, after: int = 0, limit: int = 100
    ) -> list[StoredLetter]:
        """Return the oldest letters with an id above ``after``. Raises StoreError."""
        name = self._runtime.name
        return self._ask(lambda: self._queries.letters(name, key, parked=parked, after=after, limit=limit))

    def get(self, number: int) -> StoredLetter:
        """Return one letter by its id. Raises LetterNotFound, StoreError."""
        letter = self._ask(lambda: self._queries.letter(number))
        if letter is None or letter.name != self._runtime.name:
            msg = f"{self._runtime.name}: there is no dead letter {number}"
            raise LetterNotFound(msg, projection=self._runtime.name)
        return letter

    def retry(self, number: int) -> tuple[Applied, ...]:
        """Fold the event of a letter on the state as it is now, and remove the letter in the same commit.

        Of the events parked for a halted key only the head can be retried; the key goes on once none is
        left. Raises ApplyError if it still can't be folded (the letter stays), KeyHalted for an ordinary
        letter of a key that is halted now, LetterNotFound, InvalidEvent if the event does not decode, and
        what dispatch raises.
        """
        for _ in range(_ATTEMPTS):
            letter = self.get(number)
            if letter.parked:
                self._check_head(letter)
            try:
                outcome = self._retry(letter.key, [letter], parked=letter.parked)
            except VersionConflict:
                continue  # somebody wrote the key meanwhile, or dealt with the letter
            if outcome.error is not None:
                raise outcome.error
            return outcome.applied
        raise self._too_busy(letter.key)

    def skip(self, number: int, *, position: Position | None = None) -> None:
        """Remove a letter: its event will never be folded. What it was is logged.

        Of parked events only the head can be skipped; if it was the last, the key goes on. ``position``
        is where the operator saw the key stand: if it no longer does, nothing is removed and
        VersionConflict is raised. Raises LetterNotFound, StoreError.
        """
        letter = self.get(number)
        if letter.parked:
            self._check_head(letter)
        for _ in range(_ATTEMPTS):
            row = self._ask(lambda: self._system.store.row(letter.name, letter.key))
            base = None if row is None else row.position
            if position is not None and base != position:
                raise VersionConflict(projection=letter.name, key=letter.key, expected=str(position))
            amendment = Amendment(
                letter.name, letter.key, base, row is not None and row.halted, base or position or _NOWHERE,
                removed=(number,),
            )  # fmt: skip
            if self._ask(partial(self._remove, amendment)):
                facts = {
                    "projection": letter.name,
                    "key": letter.key,
                    "letter": number,
                    "event": letter.event,
                }
                _logger.warning("dead letter %d of %s was skipped", number, letter.name, extra=facts)
                return
            self.get(number)  # raises if somebody else has removed it
        raise self._too_busy(letter.key)

    def resume(self, key: str) -> int:
        """Fold all that is parked for a halted key, head first, and let the key go on. Return how many it was.

        Raises ApplyError, or InvalidEvent, that names the next one that can't be folded: those before it are
        committed, it and those behind it stay parked. Raises LetterNotFound if the key is not halted. A
        broadcast that fails is logged and counted, and does not end it.
        """
        check_key(key, projection=self._runtime.name)
        folded = conflicts = 0
        while True:
            letters = self.find(key, parked=True, limit=_CHUNK)
            if not letters and folded:
                return folded
            if not letters:
                self._release(key)
                return 0
            try:
                outcome = self._retry(key, letters, parked=True)
            except (VersionConflict, LetterNotFound):
                conflicts += 1
                if conflicts == _ATTEMPTS:
                    raise
                continue
            folded += len(outcome.commit.deltas)
            # A change that could not be shown is committed all the same, and the rest is not to wait for that.
            if outcome.error is not None and not isinstance(outcome.error, BroadcastError):
                raise outcome.error

    # -- how

    def _release(self, key: str) -> None:
        """Let a key go on for which nothing is parked: whatever was, has been dealt with by hand."""
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
            projection=self._runtime.name, key=key, expected=f"rest, in {_ATTEMPTS} attempts"
        )


_NOWHERE = Position("", 0)
