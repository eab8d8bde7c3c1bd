"""A Pykka actor type without a thread of its own."""

from __future__ import annotations

import logging
import sys
from time import monotonic
from typing import TYPE_CHECKING, Any, Self
from uuid import uuid4

import pykka
from pykka import ActorDeadError, ActorRef, messages

from .mailbox import Mailbox

if TYPE_CHECKING:
    from pykka import Future
    from pykka._envelope import Envelope

    from .dispatcher import Dispatcher

_logger = logging.getLogger("keyfold.actor")


class StopFlag:
    """The part of threading.Event that Pykka needs of ``actor_stopped``, in 40 bytes instead of 500.

    It is the sealed mailbox seen from outside: an actor has stopped when it takes nothing more.
    """

    __slots__ = ("_mailbox",)

    def __init__(self, mailbox: Mailbox) -> None:
        self._mailbox = mailbox

    def is_set(self) -> bool:
        """Return whether the actor has stopped."""
        return self._mailbox.sealed


class PooledActor(pykka.Actor):
    """An actor that runs on the threads of a Dispatcher, one turn at a time.

    It implements the hooks that Pykka has for new actor types, with Pykka's semantics: ``tell``, ``ask`` and
    ``stop`` on its ref, ``on_start``, ``on_receive``, ``on_stop`` and ``on_failure``, ActorDeadError after
    the end. Three things differ: it is not in the global ActorRegistry (a list: un-registering one of 100,000
    takes 2.3 ms); a BaseException that is no Exception ends this actor, not all of them; and messages behind
    a stop go to ``on_undelivered`` instead of being dropped.

    Args:
        dispatcher: Runs the turns.
        mailbox_limit: How many messages may wait.
    """

    __slots__ = ("_ref", "_started", "actor_inbox", "dispatcher")

    actor_inbox: Mailbox

    def __init__(self, *, dispatcher: Dispatcher, mailbox_limit: int = 10_000) -> None:
        # Not super().__init__(): it makes a uuid, an Event and a ref, 1.5 KB that few actors ever use.
        self.dispatcher = dispatcher
        self.actor_inbox = Mailbox(mailbox_limit, dispatcher.next_lock())
        self.actor_inbox.attach(self)
        self._started = False
        self._ref: ActorRef[Any] | None = None

    @classmethod
    def start(cls, *args: Any, **kwargs: Any) -> ActorRef[Self]:
        """Create the actor and return its ref. ``on_start`` runs in its first turn."""
        actor = cls(*args, **kwargs)
        actor._start_actor_loop()
        return actor.actor_ref

    # -- Pykka's hooks for new actor types

    @staticmethod
    def _create_actor_inbox() -> Mailbox:
        return Mailbox(sys.maxsize)

    @staticmethod
    def _create_future() -> Future[Any]:
        return pykka.ThreadingFuture()

    def _start_actor_loop(self) -> None:
        self.actor_inbox.put_signal(None)  # one turn without a message, for on_start

    @property
    def actor_ref(self) -> ActorRef[Self]:
        """The ref, made when it is first asked for."""
        if self._ref is None:
            # ActorRef copies these two and the inbox from the actor; nothing else needs them.
            self.actor_urn = uuid4().urn
            self.actor_stopped = StopFlag(self.actor_inbox)  # type: ignore[assignment]
            self._ref = ActorRef(self)
        return self._ref

    def __str__(self) -> str:
        return type(self).__name__

    # -- one turn

    def run_turn(self) -> None:
        """Handle the messages that wait, within the limits of a turn. Called by the Dispatcher."""
        mailbox = self.actor_inbox
        if not mailbox.begin_turn():
            return
        if not self._started:
            self._started = True
            self._actor_loop_setup()
        mailbox.take_signals()
        envelopes = mailbox.take(self.dispatcher.turn_limit)
        turn_ends = monotonic() + self.dispatcher.turn_seconds
        for done, envelope in enumerate(envelopes):
            if mailbox.sealed:
                self._undelivered(envelope)
            elif done and monotonic() > turn_ends:
                mailbox.put_back(envelopes[done:])
                break
            else:
                self._handle(envelope)
        if not mailbox.sealed and mailbox.rest(suspended=False):
            self.dispatcher.submit(self)

    def _handle(self, envelope: Envelope[Any]) -> None:
        reply_to = envelope.reply_to
        try:
            response = self._handle_receive(envelope.message)
        except BaseException as error:
            if reply_to is not None and isinstance(error, Exception):
                reply_to.set_exception()
                return
            failure = sys.exc_info()
            self._handle_failure(*failure)
            if reply_to is not None:
                reply_to.set_exception(failure)
            try:
                self.on_failure(*failure)
            except Exception:
                self._handle_failure(*sys.exc_info())
        else:
            if reply_to is not None:
                reply_to.set(response)

    def _stop(self) -> None:
        self._end()
        try:
            self.on_stop()
        except Exception:
            self._handle_failure(*sys.exc_info())

    def _handle_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        _logger.error("%s failed and ends", self, exc_info=(exception_type, exception_value, traceback))
        self._end()

    def _end(self) -> None:
        for envelope in self.actor_inbox.seal():
            self._undelivered(envelope)

    def _undelivered(self, envelope: Envelope[Any]) -> None:
        if isinstance(envelope.message, messages._ActorStop):  # noqa: SLF001
            if envelope.reply_to is not None:
                envelope.reply_to.set(None)
            return
        if envelope.reply_to is not None:
            dead = ActorDeadError(f"{self} stopped before handling the message")
            envelope.reply_to.set_exception((ActorDeadError, dead, None))
        self.on_undelivered(envelope.message)

    def on_undelivered(self, message: Any) -> None:
        """Take a message that was still waiting when the actor ended. The default logs it."""
        _logger.warning("%s ended before it handled %r", self, message)
