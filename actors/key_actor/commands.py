"""The commands that an actor carries out besides folding events, each as a commit of its own."""

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
from ..errors import LetterNotFound, apply_error, key_halted
from ..receipt import applied_of
from .dead_lettering import make_letter, resolve_letters
from .fold import fold

if TYPE_CHECKING:
    from ..receipt import Applied
    from ..upkeep.counters import InFlight
    from .actor import KeyActor
    from .dead_lettering import PendingLetter


class Command(ABC):
    """A message that is no event. Every event before it is committed when ``begin`` is called.

    All methods are called in a turn of the actor, on a dispatcher thread; ``fail`` also by a close.
    """

    done: Future[Any]
    """Its outcome. Another thread waits for it."""

    @abstractmethod
    def begin(self, actor: KeyActor) -> Write | Amend | None:
        """Return the order for the writer; None, after ``fail`` or ``put_back``, if there is none."""

    def is_over(self) -> bool:
        """Return whether it has its outcome."""
        return self.done.done()

    @abstractmethod
    def saved(self, actor: KeyActor) -> None:
        """Take note that it is committed, and set its outcome."""

    @abstractmethod
    def fail(self, error: Exception) -> None:
        """Set an error as its outcome: nothing of it is committed."""

    def conflicted(self, actor: KeyActor) -> Sequence[Any]:  # noqa: ARG002  # most try again as they are
        """Return the messages to put back in front of the mailbox, as the base was gone."""
        return (self,)

    def rejected(self, error: StoreError) -> Sequence[Any]:
        """Return the messages to put back in front of the mailbox, as the database refuses the order."""
        self.fail(error)
        return ()

    def _write(
        self,
        actor: KeyActor,
        position: Position,
        state: bytes,
        commit_id: str,
        *,
        removed: tuple[int, ...] = (),
    ) -> Amend:
        """Return the order for a new state over the row as the actor knows it.

        A halted key stays halted for as long as letters of it are parked.
        """
        context = actor.context
        amendment = Amendment(
            context.name,
            actor.key,
            actor.base,
            actor.halted,
            position,
            state,
            context.codec.schema_version,
            removed=removed,
            base_commit_id=actor.commit_id,
            commit_id=commit_id,
        )
        return Amend(amendment, actor.actor_inbox.put_signal)


class LeaveEpoch(Command):
    """Give the row a new epoch, if it is still in the epoch of a commit that it has lost.

    State and version stay. The row went back: other events now get the versions that were given in this epoch
    before. A client with a position in the lost history must not be taken for a client with a position in the
    new one.
    """

    def __init__(self, lost: Head) -> None:
        self.lost = lost
        self.done: Future[Position] = Future()
        self._position = Position(new_epoch(), 0)

    def begin(self, actor: KeyActor) -> Amend | None:
        """Write over the row as it was loaded. If it changes meanwhile, it is loaded once more."""
        base, lost = actor.base, self.lost
        # Nothing to do: another process was first; or the row has the commit, and was read where reads lag. A
        # row that others have brought past the commit leaves the epoch: how it came there can't be told.
        is_there = base == lost.position and not differ(actor.commit_id, lost.commit_id)
        if base is None or base.epoch != lost.epoch or is_there:
            self.done.set_result(base or self._position)
            return None
        self._position = self._position._replace(version=base.version)
        amendment = Amendment(
            actor.context.name,
            actor.key,
            base,
            actor.halted,
            self._position,
            base_commit_id=actor.commit_id,
        )
        return Amend(amendment, actor.actor_inbox.put_signal)

    def saved(self, actor: KeyActor) -> None:
        actor.forget()
        self.done.set_result(self._position)
        actor.context.publisher.invalidate(actor.key)

    def fail(self, error: Exception) -> None:
        fail_future(self.done, error)


TOMBSTONE = b"null"
"""The state of a wiped key."""


class Replacement(Command):
    """Put a state in place of the present one, under a new epoch: a rebuild or a wipe."""

    over_newer = False
    """Whether it may be written over the row of a newer release."""

    def __init__(self, position: Position, state: bytes) -> None:
        self.position = position
        self.state = state
        self.done: Future[Position] = Future()

    def begin(self, actor: KeyActor) -> Write | Amend | None:
        """Write over the row, unless it has changed since it was loaded or a newer release has written it."""
        newer = None if self.over_newer or self.state == TOMBSTONE else actor.newer_schema()
        if newer is not None:
            self.fail(newer)
            return None
        if (
            actor.halted
        ):  # it stays halted for as long as events are parked: no operator has decided about them
            return self._write(actor, self.position, self.state, new_commit_id())
        context = actor.context
        save = Save(
            context.name,
            actor.key,
            actor.base,
            *self.position,
            self.state,
            context.codec.schema_version,
            actor.commit_id,
            new_commit_id(),
        )
        return Write(save, actor.actor_inbox.put_signal)

    def saved(self, actor: KeyActor) -> None:
        actor.forget()
        actor.context.degraded.clear(actor.key)
        failure = actor.context.publisher.publish_replacement(actor.key, self.position, self.state)
        if failure is None:
            self.done.set_result(self.position)
        else:
            self.done.set_exception(failure)

    def fail(self, error: Exception) -> None:
        fail_future(self.done, error)


class Repair(Replacement):
    """Put a state given by an operator in place of the present one, under a new epoch.

    The version stays, as it counts the events that the row stands for. The row is not decoded, and may be one
    of a newer release: so a key can be used again after that release was taken back.
    """

    over_newer = True

    def __init__(self, state: bytes) -> None:
        super().__init__(Position(new_epoch(), 1), state)

    def begin(self, actor: KeyActor) -> Write | Amend | None:
        """Write over the row at its version; at 1 if there is no row, or a tombstone."""
        version = actor.base.version if actor.base is not None else 0
        self.position = self.position._replace(version=max(1, version))
        return super().begin(actor)


class Recalled(NamedTuple):
    """A dead letter, and its event decoded."""

    id: int
    event: Any


class Retried(NamedTuple):
    """The outcome of a Retry: the committed changes, and the error of the event after them."""

    commit: Committed
    error: Exception | None = None

    @property
    def applied(self) -> tuple[Applied, ...]:
        """The changes. Their deltas are decoded here, on the thread that asks."""
        return tuple(applied_of(self.commit, index) for index in range(len(self.commit.deltas)))


class Retry(Command):
    """Fold dead letters, and remove them in the same commit, so that none is ever folded twice.

    The first letter that raises ends it: the letters before it are committed, it and the others stay.

    Args:
        letters: The letters to fold, in this order.
        parked: Whether they are the oldest of the events that are parked for a halted key.
        error: The error of the letter after them, if that did not decode.
    """

    def __init__(
        self, letters: tuple[Recalled, ...], *, parked: bool, error: Exception | None = None
    ) -> None:
        self.letters = letters
        self.parked = parked
        self.done: Future[Retried] = Future()
        self._error = error
        self._commit: Committed | None = None

    def begin(self, actor: KeyActor) -> Amend | None:
        """Fold the letters on the state."""
        context = actor.context
        if self.parked != actor.halted:
            msg = f"{context.name}: key {actor.key!r} is {'' if actor.halted else 'not '}halted by now"
            self.fail(LetterNotFound(msg, projection=context.name, key=actor.key))
            return None
        try:
            state = actor.load_state()
        except Exception as error:
            self.fail(error)
            return None
        deltas, cause = fold(context.codec, state, self.letters, inf)
        encoded = b""
        if cause is None:
            try:
                encoded = context.codec.encode_state(state)
            except Exception as error:
                if self._halve():
                    actor.actor_inbox.put_back((self,))
                    return None
                cause, deltas = error, []
        epoch, version = actor.base or (new_epoch(), 0)
        if cause is not None:
            bad = self.letters[len(deltas)].event
            self._error = apply_error(context.name, actor.key, version + len(deltas) + 1, bad, cause)
            self.letters = self.letters[: len(deltas)]
            if self.letters:
                actor.actor_inbox.put_back((self,))  # the good ones, once more on a clean state
            else:
                self.fail(self._error)
            return None
        commit_id = new_commit_id()
        self._commit = Committed(
            context.name,
            actor.key,
            epoch,
            version,
            deltas,
            context.codec.projection.broadcast_event_name,
            context.codec.delta.decode_fast,
            actor.commit_id,
            commit_id,
        )
        removed = tuple(letter.id for letter in self.letters)
        return self._write(actor, Position(epoch, self._commit.version), encoded, commit_id, removed=removed)

    def saved(self, actor: KeyActor) -> None:
        commit, context = self._commit, actor.context
        assert commit is not None  # noqa: S101
        failure = context.publisher.publish(commit, actor.state)
        context.counters.add(events=len(commit.deltas), retried=len(commit.deltas))
        context.publisher.notify_applied(commit, monotonic() - actor.last_turn)
        actor.forget()  # the row says whether the key is still halted
        self.done.set_result(Retried(commit, self._error or failure))

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

    def conflicted(self, actor: KeyActor) -> Sequence[Any]:
        """Put nothing back: another process may have dealt with the letters, so the caller looks again."""
        self.fail(VersionConflict(projection=actor.context.name, key=actor.key, expected=str(actor.base)))
        return ()


class Park(Command):
    """Keep events of a halted key, in order, until an operator resumes it.

    Args:
        deliveries: The events.
        in_flight: Where they are counted until they are parked.
        error: The error of the first of them, which could not be folded: this command halts the key. None if
            the key is halted already.
    """

    def __init__(
        self, deliveries: Sequence[Any], in_flight: InFlight, error: Exception | None = None
    ) -> None:
        self.deliveries = deliveries
        self.error = error
        self._in_flight = in_flight
        self._letters: tuple[PendingLetter, ...] = ()

    def begin(self, actor: KeyActor) -> Amend:
        """Write the letters and the halt at once, over the position that the event could not be folded on."""
        context, base = actor.context, actor.base
        behind = key_halted(context.name, actor.key, base)
        errors = [self.error or behind, *[behind] * (len(self.deliveries) - 1)]
        self._letters = tuple(
            make_letter(context, actor.key, delivery, error, parked=True)
            for delivery, error in zip(self.deliveries, errors, strict=True)
        )
        amendment = Amendment(
            context.name,
            actor.key,
            base,
            actor.halted,
            base or Position(new_epoch(), 0),
            halt=True,
            letters=tuple(pending.letter for pending in self._letters),
            base_commit_id=actor.commit_id,
            commit_id=new_commit_id(),
        )
        return Amend(amendment, actor.actor_inbox.put_signal)

    def saved(self, actor: KeyActor) -> None:
        actor.forget()
        actor.context.counters.add(parked=len(self._letters), halts=self.error is not None)
        resolve_letters(self._letters, self._in_flight)

    def fail(self, error: Exception) -> None:
        self._in_flight.fail(self.deliveries, error)

    def conflicted(self, actor: KeyActor) -> Sequence[Any]:  # noqa: ARG002
        """Put the events back: on the newer row they may be good, or the key no longer halted."""
        return self.deliveries


def fail_future(done: Future[Any], error: Exception) -> None:
    """End a future with an error, unless it has an outcome already."""
    with suppress(InvalidStateError):
        done.set_exception(error)


def first_command(batch: Sequence[Any]) -> int:
    """Return the index of the first command in batch, or the length of batch if there is none."""
    return next((index for index, message in enumerate(batch) if isinstance(message, Command)), len(batch))
