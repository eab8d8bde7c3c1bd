"""Which actor owns which key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..store.validation import check_key
from .errors import Closed, MailboxFull
from .key_actor.projection_actor import ProjectionActor
from .pool.threads import on_dispatcher_thread
from .receipt import Delivery

if TYPE_CHECKING:
    from ..store import StoreError
    from .key_actor.actor_context import ActorContext
    from .key_actor.commands import Replacement, Retry
    from .settings import Settings
    from .upkeep.sweeper import Sweeper


class Supervisor:
    """Maps the keys of one projection to their actors, and spawns an actor at the first event of a key.

    Looking an actor up and telling it are two steps, and it may retire between them. So the actor
    decides by itself, in its own turn, and seals its mailbox in one atomic step; a sender that meets
    a sealed mailbox asks here again, and gets the next incarnation, which loads what this one saved.
    """

    def __init__(
        self, context: ActorContext, settings: Settings, sweeper: Sweeper, trouble: Callable[[], str]
    ) -> None:
        context.retired = self._retired
        self.context = context
        self.actors: dict[str, ProjectionActor] = {}
        self._settings = settings
        self._sweeper = sweeper
        self._trouble = trouble
        self._in_flight = context.in_flight
        self._accepted = context.in_flight.open
        self._limit = context.in_flight.limit
        self._removal = threading.Lock()
        self._closed = False

    def deliver(self, key: str, event: Any) -> Delivery:
        """Put event into the mailbox of the key's actor, and return its Receipt. ``key`` is a plain str.

        Raises InvalidKey, Closed, or MailboxFull once the dispatch timeout has passed without room. Whatever
        else is raised in between (a signal handler may raise at any line), the event is then not under way.
        """
        delivery = Delivery(event=event)
        try:
            accepted = self._accepted
            accepted.add(delivery)
            # Looked at after that: a close sets it first and then ends all that were accepted.
            if self._closed or len(accepted) > self._limit:
                self._wait_to_be_accepted(delivery, key)
            actor = self.actors.get(key)
            if actor is None or not actor.actor_inbox.offer(delivery):
                # No actor yet, one that has just retired, or no room.
                self._put(key, delivery)
        except BaseException:
            self._withdraw(key, delivery)
            raise
        return delivery

    def command(self, key: str, command: Replacement | Retry) -> None:
        """Put a command into the mailbox of the key's actor, behind the events that are there.

        It counts as an event under way, so that a close waits for it. Raises InvalidKey, Closed or
        MailboxFull.
        """
        command.done.add_done_callback(lambda _: self._in_flight.remove((command,)))
        try:
            key = check_key(key, projection=self.context.projection)
            self._accepted.add(command)
            if self._closed or len(self._accepted) > self._limit:
                self._wait_to_be_accepted(command, key)
            self._put(key, command, prepare=_expect_command)
        except BaseException:
            self._withdraw(key, command)
            raise

    def close(self) -> None:
        """Accept nothing more. What is accepted already is still folded."""
        self._closed = True

    def give_up(self, error: StoreError, *, wake: bool) -> None:
        """Fold nothing more: the time of a close is over. With ``wake`` each actor fails its events now."""
        self.context.given_up = error
        if wake:
            for actor in list(self.actors.values()):
                actor.actor_inbox.wake()

    def end(self) -> None:
        """Seal every mailbox: nothing runs any more, and a sender that waits for room is told so."""
        for actor in list(self.actors.values()):
            actor.actor_inbox.seal()

    # -- the slow path of deliver

    def _put(
        self, key: str, message: Any, *, prepare: Callable[[ProjectionActor], None] | None = None
    ) -> None:
        key = check_key(key, projection=self.context.projection)
        deadline = monotonic() + self._settings.dispatch_timeout
        while True:
            if self._closed:
                self._refuse_closed()
            actor = self.actors.get(key) or self._spawn(key, deadline)
            if prepare is not None:
                prepare(actor)
            mailbox = actor.actor_inbox
            if mailbox.offer(message):
                return
            if mailbox.sealed:
                self._retired(actor)  # its own way out comes to this too, if it has not yet
            elif on_dispatcher_thread() or not mailbox.wait_for_room(deadline):
                limit = mailbox.limit
                self._refuse(f"the mailbox of key {key!r} holds {limit} events", key, limit)

    def _withdraw(self, key: str, message: Any) -> None:
        """Take a message back that somebody was interrupted in putting, if no actor has it yet."""
        actor = self.actors.get(key) if isinstance(key, str) else None
        if actor is not None:
            actor.actor_inbox.withdraw(message)
        self._in_flight.remove((message,))

    def _spawn(self, key: str, deadline: float) -> ProjectionActor:
        if not self._sweeper.has_room():
            limit = self._settings.max_live_actors
            if on_dispatcher_thread() or not self._sweeper.wait_for_room(deadline):
                self._refuse(f"{limit} actors are live and busy", key, limit)
            if self._closed:
                self._refuse_closed()
        actor = ProjectionActor(key, self.context)
        owner = self.actors.setdefault(key, actor)  # atomic: of two spawners, one wins
        if owner is actor:
            self.context.counters.add(spawned=1)
        return owner

    def _wait_to_be_accepted(self, message: Any, key: str) -> None:
        deadline = monotonic() + self._settings.dispatch_timeout
        while True:
            if self._closed:
                self._refuse_closed()
            if len(self._accepted) <= self._limit:
                return
            self._in_flight.remove((message,))
            if on_dispatcher_thread() or not self._in_flight.wait_for_room(deadline):
                self._refuse(f"{self._limit} events are accepted and not committed yet", key, self._limit)
            self._accepted.add(message)

    def _refuse(self, what: str, key: object, limit: int) -> None:
        self.context.counters.add(refused=1)
        name = self.context.projection
        trouble = self._trouble()
        msg = f"{name}: the event was not accepted: {what}{trouble}"
        raise MailboxFull(
            msg,
            projection=name,
            key=key if isinstance(key, str) else None,
            limit=limit,
        )

    def _refuse_closed(self) -> None:
        msg = f"{self.context.projection}: the system is closed, nothing is accepted"
        raise Closed(msg, projection=self.context.projection)

    # -- the end of an actor

    def _retired(self, actor: ProjectionActor) -> None:
        if self._unmap(actor):
            self.context.counters.add(retired=1)
            self._sweeper.actor_retired()

    def _unmap(self, actor: ProjectionActor) -> bool:
        # Removals exclude each other; an insertion needs no lock, as it only ever fills a gap.
        with self._removal:
            if self.actors.get(actor.key) is actor:
                del self.actors[actor.key]
                return True
        return False


def _expect_command(actor: ProjectionActor) -> None:
    actor.expects_command = True
