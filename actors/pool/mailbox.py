"""The mailbox of a PooledActor: a bounded queue that is also the unit of scheduling."""

from __future__ import annotations

import threading
from collections.abc import Sequence
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..errors import MailboxSealed

if TYPE_CHECKING:
    from .pooled_actor import PooledActor

_IDLE, _SCHEDULED, _RUNNING, _SEALED = range(4)


class Mailbox:
    """Messages for one actor, and whether that actor is on its way to a thread.

    ``put`` makes an idle actor ready exactly once; ``rest`` gives the thread back and looks for new messages
    under the same lock, so no wake-up is lost. Signals are messages of the runtime (answers of the writer,
    suggestions to retire): they are not bounded and come first. Only they wake an actor that rests
    *suspended*, so that events pile up into a batch during a commit.

    A full mailbox is the backpressure of a key: its senders wait for room, or are refused.

    Args:
        limit: How many messages may wait, signals not counted.
        lock: May be shared with other mailboxes; None: a lock of its own.
    """

    __slots__ = (
        "_actor",
        "_lock",
        "_messages",
        "_phase",
        "_room",
        "_signals",
        "_since",
        "_suspended",
        "limit",
    )

    def __init__(self, limit: int, lock: threading.Lock | None = None) -> None:
        self.limit = limit
        # Held for a few instructions, and never two at once.
        self._lock = lock or threading.Lock()
        self._phase = _IDLE
        self._suspended = False
        # Empty lanes are None: most of a million actors are idle, and a list costs 56 bytes.
        self._messages: list[Any] | None = None
        self._signals: list[Any] | None = None
        self._since = 0.0
        self._room: threading.Condition | None = None
        self._actor: PooledActor | None = None

    def attach(self, actor: PooledActor) -> None:
        """Belong to actor. The cycle that this makes is cut by ``seal``."""
        self._actor = actor

    # -- the senders' side

    def put(self, message: Any) -> None:
        """Queue message. Raises MailboxSealed if the actor has ended, BlockingIOError at the limit."""
        if not self.offer(message):
            raise MailboxSealed if self._phase == _SEALED else BlockingIOError

    def offer(self, message: Any) -> bool:
        """Queue message. False: the actor has ended, or there is no room."""
        with self._lock:
            if self._phase == _SEALED:
                return False
            messages = self._messages
            if messages is None:
                self._messages = [message]
                self._since = monotonic()
            elif len(messages) >= self.limit:
                return False
            else:
                messages.append(message)
            if self._phase != _IDLE or self._suspended:
                return True
            self._phase = _SCHEDULED
            actor = self._actor
        actor.dispatcher.submit(actor)  # type: ignore[union-attr]  # only a sealed mailbox has none
        return True

    def put_signal(self, signal: Any) -> None:
        """Queue a message of the runtime, ahead of all events. Raises MailboxSealed."""
        with self._lock:
            if self._phase == _SEALED:
                raise MailboxSealed
            if self._signals is None:
                self._signals = [signal]
            else:
                self._signals.append(signal)
            if self._phase != _IDLE:
                return
            self._phase = _SCHEDULED
            actor = self._actor
        actor.dispatcher.submit(actor)  # type: ignore[union-attr]

    def withdraw(self, message: Any) -> None:
        """Remove a message whose ``put`` was interrupted, if it is still here, and wake the actor."""
        with self._lock:
            if self._messages is not None:
                self._messages = [one for one in self._messages if one is not message] or None
        self.wake()

    def wake(self) -> None:
        """Give the actor a turn, unless it is in one. A turn too many does no harm: see ``begin_turn``."""
        with self._lock:
            if self._phase == _IDLE:
                self._phase = _SCHEDULED
            actor = self._actor if self._phase == _SCHEDULED else None
        if actor is not None:
            actor.dispatcher.submit(actor)

    def wait_for_room(self, deadline: float) -> bool:
        """Wait until there may be room, or the actor has ended.

        False once ``deadline`` (monotonic) has passed.
        """
        with self._lock:
            if self._room is None:
                self._room = threading.Condition(self._lock)
            return self._room.wait_for(self._has_room, max(0.0, deadline - monotonic()))

    def _has_room(self) -> bool:
        return self._phase == _SEALED or self._messages is None or len(self._messages) < self.limit

    # -- the actor's side, called within its own turn only

    def begin_turn(self) -> bool:
        """Begin a turn. False: the actor was submitted twice, and is in the other turn or has had it."""
        with self._lock:
            if self._phase != _SCHEDULED:
                return False
            self._phase = _RUNNING
            return True

    def take_signals(self) -> list[Any]:
        """Return and remove all signals."""
        with self._lock:
            signals, self._signals = self._signals, None
        return signals or []

    def take(self, count: int) -> list[Any]:
        """Return and remove the oldest messages, up to ``count`` of them."""
        with self._lock:
            messages = self._messages
            if messages is None:
                return []
            if len(messages) <= count:
                self._messages = None
            else:
                self._messages = messages[count:]
                del messages[count:]
            if self._room is not None:
                self._room.notify_all()
        return messages

    def put_back(self, messages: Sequence[Any]) -> None:
        """Put messages that were taken but not used in front of the others. The limit does not matter."""
        if messages:
            with self._lock:
                self._messages = [*messages, *(self._messages or ())]

    def rest(self, *, suspended: bool) -> bool:
        """End the turn. True: messages wait already, and the actor must be submitted again."""
        with self._lock:
            self._suspended = suspended
            if self._phase == _SEALED:
                return False  # by a close, which did not wait for this turn
            if self._signals or (self._messages and not suspended):
                self._phase = _SCHEDULED
                return True
            self._phase = _IDLE
            return False

    def seal_if_empty(self) -> bool:
        """Refuse all messages from now on, if there are none. False: something has arrived."""
        with self._lock:
            if self._messages or self._signals:
                return False
            self._seal()
            return True

    def seal(self) -> list[Any]:
        """Refuse all messages from now on, and return those that were waiting."""
        with self._lock:
            left, self._messages, self._signals = self._messages, None, None
            self._seal()
        return left or []

    def _seal(self) -> None:
        self._phase = _SEALED
        self._actor = None
        if self._room is not None:
            self._room.notify_all()

    # -- for other threads to look at

    @property
    def sealed(self) -> bool:
        """True once the actor takes no more messages."""
        return self._phase == _SEALED

    @property
    def idle(self) -> bool:
        """True while no message waits and no turn is under way. It may change at any moment."""
        return self._phase == _IDLE and not self._suspended and not self._messages

    def waiting_seconds(self, now: float) -> float:
        """Return how long the oldest message has waited, at most: an older one may have been taken."""
        return max(0.0, now - self._since) if self._messages else 0.0

    def __len__(self) -> int:
        return len(self._messages or ())

    # -- the methods that Pykka's own loop calls on an inbox

    def empty(self) -> bool:
        """Return whether no message waits."""
        return not self._messages

    def get(self) -> Any:
        """Return and remove the oldest message. Raises IndexError if there is none."""
        [message] = self.take(1) or [None]
        if message is None:
            raise IndexError
        return message
