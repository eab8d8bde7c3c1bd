"""The way of an event to the actor of its key."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..store.validation import check_key
from .errors import Closed, MailboxFull
from .key_actor.actor import KeyActor
from .pool.threads import on_dispatcher_thread
from .receipt import Delivery

if TYPE_CHECKING:
    from .key_actor.actor_context import ActorContext
    from .key_actor.commands import Replacement, Retry
    from .settings import Settings
    from .upkeep.sweeper import Sweeper


class Supervisor:
    """Delivers events to the actors of one projection, and spawns an actor at the first event of a key.

    Looking an actor up and putting a message into its mailbox are two steps, and it may retire between them.
    So the actor decides by itself, in its own turn, and seals its mailbox in one atomic step. A sender that
    meets a sealed mailbox comes back here and gets the next actor of the key, which loads the row that the
    last one left.

    Args:
        context: Shared by all actors that are spawned here.
        settings: The settings of the system.
        sweeper: Bounds the number of live actors.
        trouble: Returns the reason why nothing can be written now, for the message of MailboxFull; empty if
            all is well. Called on the sender's thread.
    """

    def __init__(
        self, context: ActorContext, settings: Settings, sweeper: Sweeper, trouble: Callable[[], str]
    ) -> None:
        self.context = context
        self.actors = context.population.actors
        self._settings = settings
        self._sweeper = sweeper
        self._trouble = trouble
        self._in_flight = context.in_flight
        self._accepted = context.in_flight.open
        self._limit = context.in_flight.limit
        self._closed = False

    def deliver(self, key: str, event: Any) -> Delivery:
        """Put an event into the mailbox of the key's actor.

        Args:
            key: A plain str.
            event: It was checked that it can be kept.

        Returns:
            The Receipt of this event and this key.

        Raises:
            InvalidKey: The key is none.
            Closed: The system is closed.
            MailboxFull: The dispatch timeout has passed without room. After any exception, also one that a
                signal handler raises at any line, the event is not under way.
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

        It counts as an event under way, so that a close waits for it. Raises as ``deliver`` does.
        """
        command.done.add_done_callback(lambda _: self._in_flight.remove((command,)))
        try:
            key = check_key(key, projection=self.context.name)
            self._accepted.add(command)
            if self._closed or len(self._accepted) > self._limit:
                self._wait_to_be_accepted(command, key)
            self._put(key, command, is_command=True)
        except BaseException:
            self._withdraw(key, command)
            raise

    def close(self) -> None:
        """Accept nothing more. Events that are accepted already are still folded."""
        self._closed = True

    # -- the slow path of deliver

    def _put(self, key: str, message: Any, *, is_command: bool = False) -> None:
        key = check_key(key, projection=self.context.name)
        deadline = monotonic() + self._settings.dispatch_timeout
        while True:
            if self._closed:
                self._refuse_closed()
            actor = self.actors.get(key) or self._spawn(key, deadline)
            if is_command:
                actor.expect_command()
            mailbox = actor.actor_inbox
            if mailbox.offer(message):
                return
            if mailbox.sealed:
                self.context.population.remove(actor)  # the actor does so as well, if it has not yet
            elif on_dispatcher_thread() or not mailbox.wait_for_room(deadline):
                limit = mailbox.limit
                self._refuse(f"the mailbox of key {key!r} holds {limit} events", key, limit)

    def _withdraw(self, key: str, message: Any) -> None:
        """Take a message back whose sender was interrupted, if no actor has taken it yet."""
        actor = self.actors.get(key) if isinstance(key, str) else None
        if actor is not None:
            actor.actor_inbox.withdraw(message)
        self._in_flight.remove((message,))

    def _spawn(self, key: str, deadline: float) -> KeyActor:
        if not self._sweeper.has_room():
            limit = self._settings.max_live_actors
            if on_dispatcher_thread() or not self._sweeper.wait_for_room(deadline):
                self._refuse(f"{limit} actors are live and busy", key, limit)
            if self._closed:
                self._refuse_closed()
        return self.context.population.add(KeyActor(key, self.context))

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

    def _refuse(self, reason: str, key: object, limit: int) -> None:
        self.context.counters.add(refused=1)
        name = self.context.name
        trouble = self._trouble()
        msg = f"{name}: the event was not accepted: {reason}{trouble}"
        raise MailboxFull(
            msg,
            projection=name,
            key=key if isinstance(key, str) else None,
            limit=limit,
        )

    def _refuse_closed(self) -> None:
        msg = f"{self.context.name}: the system is closed, nothing is accepted"
        raise Closed(msg, projection=self.context.name)
