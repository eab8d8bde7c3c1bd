"""Which actor owns which key."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..store import check_key
from .dispatcher import on_dispatcher_thread
from .errors import Closed, MailboxFull, MailboxSealed
from .projection_actor import ProjectionActor
from .receipt import Delivery

if TYPE_CHECKING:
    from .commands import Replacement, Retry
    from .props import Props
    from .settings import Settings
    from .sweeper import Sweeper


class Supervisor:
    """Maps the keys of one projection to their actors, and spawns an actor at the first event of a key.

    Looking an actor up and telling it are two steps, and it may retire between them. So the actor
    decides by itself, in its own turn, and seals its mailbox in one atomic step; a sender that meets
    a sealed mailbox asks here again, and gets the next incarnation, which loads what this one saved.
    """

    def __init__(
        self, props: Props, settings: Settings, sweeper: Sweeper, trouble: Callable[[], str]
    ) -> None:
        props.retired = self._retired
        self.props = props
        self.actors: dict[str, ProjectionActor] = {}
        self._settings = settings
        self._sweeper = sweeper
        self._trouble = trouble
        self._in_flight = props.in_flight
        self._removal = threading.Lock()
        self._closed = False

    def deliver(self, key: str, event: Any) -> Delivery:
        """Put event into the mailbox of the key's actor, and return its Receipt.

        Raises InvalidKey, Closed, or MailboxFull once the dispatch timeout has passed without room.
        """
        delivery = Delivery(event=event)
        if not self._in_flight.accept():
            self._wait_to_be_accepted(key)
        try:
            if self._closed:
                self._refuse_closed()
            self.actors[key].actor_inbox.put(delivery)
        except (KeyError, TypeError, MailboxSealed, BlockingIOError):
            # No actor yet, one that has just retired, no room, or no key at all.
            self._accepted(key, delivery)
        except BaseException:
            self._in_flight.settle(1)
            raise
        return delivery

    def command(self, key: str, command: Replacement | Retry) -> None:
        """Put a command into the mailbox of the key's actor, behind the events that are there.

        It counts as an event under way, so that a close waits for it. Raises InvalidKey, Closed or
        MailboxFull.
        """
        if not self._in_flight.accept():
            self._wait_to_be_accepted(key)
        try:
            if self._closed:
                self._refuse_closed()
            self._put(key, command, prepare=_expect_command)
        except BaseException:
            self._in_flight.settle(1)
            raise
        command.done.add_done_callback(lambda _: self._in_flight.settle(1))

    def close(self) -> None:
        """Accept nothing more. What is accepted already is still folded."""
        self._closed = True

    # -- the slow path of deliver

    def _accepted(self, key: str, delivery: Delivery) -> None:
        try:
            self._put(key, delivery)
        except BaseException:
            self._in_flight.settle(1)
            raise

    def _put(
        self, key: str, message: Any, *, prepare: Callable[[ProjectionActor], None] | None = None
    ) -> None:
        key = check_key(key, projection=self.props.projection)
        deadline = monotonic() + self._settings.dispatch_timeout
        while True:
            actor = self.actors.get(key) or self._spawn(key, deadline)
            if prepare is not None:
                prepare(actor)
            mailbox = actor.actor_inbox
            try:
                mailbox.put(message)
            except MailboxSealed:
                self._unmap(actor)
            except BlockingIOError:
                limit = mailbox.limit
                if on_dispatcher_thread() or not mailbox.wait_for_room(deadline):
                    self._refuse(f"the mailbox of key {key!r} holds {limit} events", key, limit)
            else:
                return

    def _spawn(self, key: str, deadline: float) -> ProjectionActor:
        if not self._sweeper.has_room():
            limit = self._settings.max_live_actors
            if on_dispatcher_thread() or not self._sweeper.wait_for_room(deadline):
                self._refuse(f"{limit} actors are live and busy", key, limit)
        actor = ProjectionActor(key, self.props)
        owner = self.actors.setdefault(key, actor)  # atomic: of two spawners, one wins
        if owner is actor:
            self.props.counters.add(spawned=1)
        return owner

    def _wait_to_be_accepted(self, key: str) -> None:
        deadline = monotonic() + self._settings.dispatch_timeout
        while True:
            if on_dispatcher_thread() or not self._in_flight.wait_for_room(deadline):
                limit = self._in_flight.limit
                self._refuse(f"{limit} events are accepted and not committed yet", key, limit)
            if self._in_flight.accept():
                return

    def _refuse(self, what: str, key: object, limit: int) -> None:
        self.props.counters.add(refused=1)
        name = self.props.projection
        trouble = self._trouble()
        msg = f"{name}: the event was not accepted: {what}{trouble}"
        raise MailboxFull(
            msg,
            projection=name,
            key=key if isinstance(key, str) else None,
            limit=limit,
        )

    def _refuse_closed(self) -> None:
        msg = f"{self.props.projection}: the system is closed, nothing is accepted"
        raise Closed(msg, projection=self.props.projection)

    # -- the end of an actor

    def _retired(self, actor: ProjectionActor) -> None:
        if self._unmap(actor):
            self.props.counters.add(retired=1)
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
