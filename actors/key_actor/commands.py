"""What an actor is told to do besides folding events, each in a turn of its own."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from concurrent.futures import Future, InvalidStateError
from contextlib import suppress
from math import inf
from time import monotonic
from typing import TYPE_CHECKING, Any, NamedTuple

from ...store import Position, StoreError, VersionConflict
from ...store.rows import Amendment, Head, Save, differ, new_commit_id, new_epoch
from ...store.writing.writer_messages import Amend, Write
from ..broadcaster import Committed
from ..errors import LetterNotFound, key_halted
from ..observer import tell
from ..receipt import applied_of
from .dead_lettering import apply_error, fail_all, letter_of, settle_burials
from .fold import fold
from .publishing import invalidate, publish, publish_replacement

if TYPE_CHECKING:
    from ..receipt import Applied
    from ..upkeep.counters import InFlight
    from .dead_lettering import Burial
    from .projection_actor import ProjectionActor


class Command(ABC):
    """A message that is no event. The actor has saved everything before it when ``begin`` is called."""

    done: Future[Any]
    """Its outcome."""

    @abstractmethod
    def begin(self, actor: ProjectionActor) -> Write | Amend | None:
        """Return what the writer shall do; None, after ``fail`` or ``put_back``, if it can't be done as it is."""

    def is_over(self) -> bool:
        """Return whether it has its outcome."""
        return self.done.done()

    @abstractmethod
    def saved(self, actor: ProjectionActor) -> None:
        """Take notice that it is committed."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Take notice that nothing came of it."""

    def conflicted(self, actor: ProjectionActor) -> Sequence[Any]:  # noqa: ARG002  # most try again as they are
        """Return what is to be put back in front of the mailbox, as the base was gone."""
        return (self,)

    def rejected(self, error: StoreError) -> Sequence[Any]:
        """Return what is to be put back, as the database refuses what was to be written."""
        self.fail(error)
        return ()

    def _write(
        self,
        actor: ProjectionActor,
        position: Position,
        state: bytes,
        commit_id: str,
        *,
        removed: tuple[int, ...] = (),
    ) -> Amend:
        """Ask for a new state over the row as the actor knows it, and leave a halt to the letters that remain."""
        context = actor.context
        amendment = Amendment(
            context.projection,
            actor.key,
            actor.base,
            actor.halted,
            position,
            state,
            context.schema_version,
            removed=removed,
            base_commit_id=actor.commit_id,
            commit_id=commit_id,
        )
        return Amend(amendment, actor.actor_inbox.put_signal)


class LeaveEpoch(Command):
    """Give the row another epoch if it still stands in the one of this commit, which it has lost; state and version stay.

    The row went back: versions that were given in this epoch are given to other events now. Nobody who stands in
    the lost history is to be taken for somebody who stands in the new one.
    """

    def __init__(self, lost: Head) -> None:
        self.lost = lost
        self.done: Future[Position] = Future()
        self._position = Position(new_epoch(), 0)

    def begin(self, actor: ProjectionActor) -> Amend | None:
        """Write over the row as it was loaded: whoever changes it meanwhile has it loaded once more."""
        base, lost = actor.base, self.lost
        # Another process was first; or the row has the commit, and was read where reads lag. One that others have
        # brought past it by now leaves the epoch: how it came there can't be told.
        is_there = base == lost.position and not differ(actor.commit_id, lost.commit_id)
        if base is None or base.epoch != lost.epoch or is_there:
            self.done.set_result(base or self._position)
            return None
        self._position = self._position._replace(version=base.version)
        amendment = Amendment(
            actor.context.projection,
            actor.key,
            base,
            actor.halted,
            self._position,
            base_commit_id=actor.commit_id,
        )
        return Amend(amendment, actor.actor_inbox.put_signal)

    def saved(self, actor: ProjectionActor) -> None:
        actor.forget()
        self.done.set_result(self._position)
        invalidate(actor.context, actor.key)

    def fail(self, error: Exception) -> None:
        fail_future(self.done, error)


TOMBSTONE = b"null"
"""The state of a wiped key."""


class Replacement(Command):
    """Put this state in place of whatever the key holds, under a new epoch: a rebuild or a wipe."""

    over_newer = False
    """Whether it may go over the row of a newer release."""

    def __init__(self, position: Position, state: bytes) -> None:
        self.position = position
        self.state = state
        self.done: Future[Position] = Future()

    def begin(self, actor: ProjectionActor) -> Write | Amend | None:
        """Write over the row, and over no newer one: neither of a later version nor of a newer release."""
        newer = None if self.over_newer or self.state == TOMBSTONE else actor.newer_schema()
        if newer is not None:
            self.fail(newer)
            return None
        if actor.halted:  # it stays so for as long as events are parked: nobody has decided about them
            return self._write(actor, self.position, self.state, new_commit_id())
        context = actor.context
        save = Save(
            context.projection,
            actor.key,
            actor.base,
            *self.position,
            self.state,
            context.schema_version,
            actor.commit_id,
            new_commit_id(),
        )
        return Write(save, actor.actor_inbox.put_signal)

    def saved(self, actor: ProjectionActor) -> None:
        actor.forget()
        actor.context.degraded.clear(actor.key)
        publish_replacement(actor.context, actor.key, self)

    def fail(self, error: Exception) -> None:
        fail_future(self.done, error)


class Repair(Replacement):
    """Put a state given by an operator in place of the present one, under a new epoch.

    The version stays, as it counts the events that the row stands for. The row is not decoded. That of a newer
    release is no exception: it is the way back where that release was taken back.
    """

    over_newer = True

    def __init__(self, state: bytes) -> None:
        super().__init__(Position(new_epoch(), 1), state)

    def begin(self, actor: ProjectionActor) -> Write | Amend | None:
        """Write over the row at its version; 1 stands where there is no row, or a tombstone."""
        version = actor.base.version if actor.base is not None else 0
        self.position = self.position._replace(version=max(1, version))
        return super().begin(actor)


class Recalled(NamedTuple):
    """A dead letter, and its event decoded."""

    id: int
    event: Any


class Retried(NamedTuple):
    """The outcome of a Retry: the committed changes, and the error of the event after them."""

    turn: Committed
    error: Exception | None = None

    @property
    def applied(self) -> tuple[Applied, ...]:
        """The changes; their deltas are decoded here, on the thread that asks."""
        return tuple(applied_of(self.turn, index) for index in range(len(self.turn.deltas)))


class Retry(Command):
    """Fold these dead letters, and remove them in the same commit, so that none is ever folded twice.

    ``parked`` ones are the head of what waits for a halted key. The first that raises ends it: what is
    before it is committed, it and the others stay letters.
    """

    def __init__(
        self, letters: tuple[Recalled, ...], *, parked: bool, error: Exception | None = None
    ) -> None:
        self.letters = letters
        self.parked = parked
        self.done: Future[Retried] = Future()
        self._error = error
        self._turn: Committed | None = None

    def begin(self, actor: ProjectionActor) -> Amend | None:
        """Fold the letters on the state."""
        context = actor.context
        if self.parked != actor.halted:
            msg = f"{context.projection}: key {actor.key!r} is {'' if actor.halted else 'not '}halted by now"
            self.fail(LetterNotFound(msg, projection=context.projection, key=actor.key))
            return None
        try:
            state = actor.load_state()
        except Exception as error:
            self.fail(error)
            return None
        deltas, cause = fold(context, state, self.letters, inf)
        encoded = b""
        if cause is None:
            try:
                encoded = context.encode_state(state)
            except Exception as error:
                if self._halve():
                    actor.actor_inbox.put_back((self,))
                    return None
                cause, deltas = error, []
        epoch, version = actor.base or (new_epoch(), 0)
        if cause is not None:
            bad = self.letters[len(deltas)].event
            self._error = apply_error(context.projection, actor.key, version + len(deltas) + 1, bad, cause)
            self.letters = self.letters[: len(deltas)]
            if self.letters:
                actor.actor_inbox.put_back((self,))  # what is good, once more on a clean state
            else:
                self.fail(self._error)
            return None
        commit_id = new_commit_id()
        self._turn = Committed(
            context.projection,
            actor.key,
            epoch,
            version,
            deltas,
            context.event_name,
            context.decode_delta,
            actor.commit_id,
            commit_id,
        )
        removed = tuple(letter.id for letter in self.letters)
        return self._write(actor, Position(epoch, self._turn.version), encoded, commit_id, removed=removed)

    def saved(self, actor: ProjectionActor) -> None:
        turn, context = self._turn, actor.context
        assert turn is not None  # noqa: S101
        failure = publish(context, turn, actor.state)
        context.counters.add(events=len(turn.deltas), retried=len(turn.deltas))
        tell(context.observers, lambda observer: observer.applied(turn, monotonic() - actor.last_turn))
        actor.forget()  # whether it is still halted, the row says
        self.done.set_result(Retried(turn, self._error or failure))

    def fail(self, error: Exception) -> None:
        fail_future(self.done, error)

    def rejected(self, error: StoreError) -> Sequence[Any]:
        """Try with half of the letters, down to the one that makes a state which can't be stored."""
        if self._halve():
            return (self,)
        self.fail(error)
        return ()

    def _halve(self) -> bool:
        several = len(self.letters) > 1
        self.letters = self.letters[: max(1, len(self.letters) // 2)]
        return several

    def conflicted(self, actor: ProjectionActor) -> Sequence[Any]:
        """Put nothing back: the letters may be somebody else's by now; who asked looks again."""
        self.fail(
            VersionConflict(projection=actor.context.projection, key=actor.key, expected=str(actor.base))
        )
        return ()


class Park(Command):
    """Keep events of a halted key, in order, until an operator resumes it.

    With ``error`` the first of them is the one that could not be folded, and the key is halted by this.
    """

    def __init__(
        self, deliveries: Sequence[Any], in_flight: InFlight, error: Exception | None = None
    ) -> None:
        self.deliveries = deliveries
        self.error = error
        self._in_flight = in_flight
        self._burials: tuple[Burial, ...] = ()

    def begin(self, actor: ProjectionActor) -> Amend:
        """Write the letters and the halt at once, over the position that the event could not be folded on."""
        context, base = actor.context, actor.base
        behind = key_halted(context.projection, actor.key, base)
        errors = [self.error or behind, *[behind] * (len(self.deliveries) - 1)]
        self._burials = tuple(
            letter_of(context, actor.key, delivery, error, parked=True)
            for delivery, error in zip(self.deliveries, errors, strict=True)
        )
        amendment = Amendment(
            context.projection,
            actor.key,
            base,
            actor.halted,
            base or Position(new_epoch(), 0),
            halt=True,
            letters=tuple(burial.letter for burial in self._burials),
            base_commit_id=actor.commit_id,
            commit_id=new_commit_id(),
        )
        return Amend(amendment, actor.actor_inbox.put_signal)

    def saved(self, actor: ProjectionActor) -> None:
        actor.forget()
        actor.context.counters.add(parked=len(self._burials), halts=self.error is not None)
        settle_burials(self._burials, self._in_flight)

    def fail(self, error: Exception) -> None:
        fail_all(self.deliveries, error, self._in_flight)

    def conflicted(self, actor: ProjectionActor) -> Sequence[Any]:  # noqa: ARG002
        """Put the events back: on the newer row they may be good, or the key no longer halted."""
        return self.deliveries


def fail_future(done: Future[Any], error: Exception) -> None:
    """End a future with an error, unless it has an outcome already."""
    with suppress(InvalidStateError):
        done.set_exception(error)


def first_command(batch: Sequence[Any]) -> int:
    """Return where the first command stands in batch, or its length if there is none."""
    return next((index for index, message in enumerate(batch) if isinstance(message, Command)), len(batch))
