"""One open connection, owned by the reactor's thread: its only reader and writer."""

from __future__ import annotations

import contextlib
import fcntl
import math
import random
import socket
import sys
import termios
from abc import ABC, abstractmethod
from typing import TYPE_CHECKING

from ....store import Position
from ..connections.subscription import Guest, Subscription
from ..reactor import READABLE, WRITABLE
from .send_buffer import Chunk, SendBuffer

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ..channels.batch import Batch
    from ..host import Host
    from .client_identity import ClientIdentity, Permission
    from .connection_limits import Slot, Taken

GOING_AWAY = 1001
TRY_AGAIN_LATER = 1013
SLOW = 4101
NO_PONG = 4102
UNAUTHENTICATED = 4401
FORBIDDEN = 4403
LIMIT = 4429

_MOST_READ = 4096
_LINGER_SECONDS = 1.0
_SHORTEST_TICK = 0.01

EARLIEST, LATEST = 0.5, 0.8
"""When authorize is asked again, as parts of ``reauthorize_seconds``: early enough for a slow answer."""
LATE_SECONDS = 1.5
"""How long after ``reauthorize_seconds``, or after the question if that came later, a connection waits for its answer."""
_GOLDEN_RATIO = 0.618034
"""Its multiples fall evenly between whole numbers, however many there are."""


_MOST_READS = 16
"""Rows that are read for one connection at once."""
_READ_SECONDS = 1.0
"""After so long a row that does not come holds up no other of its connection any more."""

_NOTHING = SendBuffer()


class _Round:
    """One asking again about all that a connection watches."""

    __slots__ = ("asked_at", "began", "unanswered")

    def __init__(self, began: float, subscriptions: list[Subscription]) -> None:
        self.began = self.asked_at = began
        self.unanswered = set(subscriptions)


class _Line:
    """Those of one connection who need their row. It is there only while somebody stands in it."""

    __slots__ = ("asked", "looks_again", "queue")

    def __init__(self) -> None:
        self.queue: dict[Subscription, str] = {}
        """Why, in the order in which they are served. They get nothing until then."""
        self.asked: dict[Subscription, float] = {}
        """Those whose rows are being read, and since when."""
        self.looks_again = False


class Connection(ABC):
    """A socket, what it watches, and what waits for it.

    Frames leave at once while the socket takes them, else through an outbox with bounds. Over a bound
    the unsent frames are dropped, and their channels bring the newest snapshot when the socket takes
    again. Nobody ever waits for it. It ends after a close, an error, or too long without progress.

    Whoever needs the row, at first, by ``resync`` or because it lost frames, stands in one queue. The row is read when
    the snapshot will find room, so a client causes no more reads than it takes snapshots, however slow it is.
    """

    must_answer = True
    """False: a client of this kind says nothing, and its silence means nothing."""

    __slots__ = (
        "_allowed_at",
        "_closing",
        "_ended",
        "_is_timed",
        "_largest",
        "_line",
        "_ping_at",
        "_progress",
        "_round",
        "_send_buffer",
        "_sock",
        "guests",
        "heard_at",
        "host",
        "identity",
        "number",
        "opened_at",
        "slot",
        "subscriptions",
    )

    def __init__(
        self,
        sock: socket.socket,
        host: Host,
        identity: ClientIdentity,
        slot: Taken,
        checked_at: float | None = None,
    ) -> None:
        """``checked_at`` is when the check of who it is and what may be read was begun. None: just now."""
        sock.setblocking(False)
        self._sock = sock
        self.host, self.identity, self.slot = host, identity, slot
        self.subscriptions: dict[tuple[str, str], Subscription] = {}
        self.guests: dict[str, Slot] | None = None
        """The users whose tickets were shown here, with the places that they take up by it."""
        self.number = 0
        now = host.clock()
        # Whatever is watched here was allowed by an answer that authorize began at this time or later.
        self._allowed_at = self.opened_at = now if checked_at is None else checked_at
        # Mostly one number for all three: there are many connections.
        self.heard_at = now if now - self.opened_at > 1 else self.opened_at
        self._round: _Round | None = None
        self._send_buffer: SendBuffer | None = None
        self._ping_at = math.inf
        self._line: _Line | None = None
        self._largest = 0
        """Bytes of the largest snapshot so far, if the outbox can't take as many of them as are read at once."""
        self._progress = 0
        self._is_timed = False
        self._closing = False
        self._ended = False

    # -- what a kind of connection adds

    @abstractmethod
    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        """Send frames of a channel."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Take what the client sent."""

    @abstractmethod
    def ping(self) -> None:
        """Send something that a living client answers, or at least takes."""

    @abstractmethod
    def farewell(self, code: int, reason: str) -> bytes:
        """Return the last bytes of a connection that is closed."""

    @abstractmethod
    def expel(self, subscription: Subscription) -> None:
        """End a subscription of one who may not read it any longer."""

    def decided(self, subscription: Subscription, permission: Permission | None, began: float) -> None:  # noqa: B027
        """Take the answer about a subscription that was asked for, if it has not ended. A stream asks for none."""

    # -- life

    def start(self) -> None:
        """Begin to read."""
        self.host.reactor.watch(self._sock, READABLE, self._ready)
        # Spread: connections that came together shall not be pinged together.
        self._ping_at = self.opened_at + random.uniform(0.2, 1) * self.host.settings.ping_seconds  # noqa: S311
        self.host.reactor.call_later(self._until_next_tick(self.opened_at), self._tick)

    def begin(self, name: str, key: str, since: Position | None) -> None:
        """Watch the channel that the request named, and that it was allowed to."""
        guest = self._guest(self.identity.user, self._allowed_at) if self.identity.by_ticket else None
        subscription = Subscription(self, None, since, address=(name, key), opened_by=guest)
        self.subscriptions[subscription.address] = subscription
        self.go_live(subscription)

    def go_live(self, subscription: Subscription) -> None:
        """Send the channel from now on."""
        subscription.channel = self.host.channel(*subscription.address)
        self.bring(subscription, "initial")

    def bring(self, subscription: Subscription, reason: str) -> None:
        """Bring a live subscription to the state of the committed row, when its turn comes."""
        if not self.has(subscription) or subscription.channel is None:
            return
        if self._line is not None and subscription in self._line.asked:
            return  # a snapshot is under way
        self._line_up(subscription, reason)
        self._ask_next()

    def _line_up(self, subscription: Subscription, reason: str) -> None:
        subscription.leave()
        if self._line is None:
            self._line = _Line()
        self._line.asked.pop(subscription, None)
        self._line.queue.setdefault(subscription, reason)

    def _ask_next(self) -> None:
        """Have the rows read whose snapshots will find room, one at least."""
        line = self._line
        if line is None:
            return
        while line.queue and self._has_room(line):
            subscription = next(iter(line.queue))
            reason = line.queue.pop(subscription)
            line.asked[subscription] = self.host.clock()
            # Not the channel of before: one that nobody stood in may have been forgotten meanwhile.
            subscription.channel = self.host.channel(*subscription.address)
            subscription.channel.ask(subscription, reason)
        if line.queue and line.asked and not line.looks_again:
            line.looks_again = True
            self.host.reactor.call_later(_READ_SECONDS, self._look_again)
        if self._line is line and not (line.queue or line.asked):
            self._line = None

    def _has_room(self, line: _Line) -> bool:
        send_buffer, limits, count = self._send_buffer or _NOTHING, self.host.settings, len(line.asked) + 1
        fits = send_buffer.fits if count == 1 else send_buffer.has_room
        size = count * (self._largest or limits.outbox_bytes // _MOST_READS)
        return count <= _MOST_READS and fits(size, count, limits.outbox_frames, limits.outbox_bytes)

    def _came(self, line: _Line, subscription: Subscription, size: int) -> None:
        """Note that a row that was asked for has come. The next is asked for when there is room."""
        was_asked = line.asked.pop(subscription, None) is not None
        if was_asked and size > max(self._largest, self.host.settings.outbox_bytes // _MOST_READS):
            self._largest = size

    def _look_again(self) -> None:
        line = self._line
        if line is not None:
            line.looks_again = False
            late = self.host.clock() - _READ_SECONDS
            line.asked = {one: began for one, began in line.asked.items() if began > late}
            self._ask_next()

    def has(self, subscription: Subscription) -> bool:
        """Say whether a subscription lives. Another one of the same address may."""
        return self.subscriptions.get(subscription.address) is subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription, whether it is live or waits for its check."""
        del self.subscriptions[subscription.address]
        self._release(subscription)
        if self._send_buffer:
            self._send_buffer.drop(subscription)
        self._ask_next()

    def _release(self, subscription: Subscription) -> None:
        subscription.leave()
        if self._line is not None:
            self._line.queue.pop(subscription, None)
            self._line.asked.pop(subscription, None)
        if subscription.channel is None:
            self.host.checks.drop(subscription)
        if self._round is not None:
            self.host.rechecks.drop(subscription)
            self._answered(subscription)
        guest, guests = subscription.guest, self.guests
        if guest is not None and guests and guest.user in guests:
            others = (other.guest for other in self.subscriptions.values())
            if not any(other is not None and other.user == guest.user for other in others):
                guests.pop(guest.user).leave()

    def sign_out(self) -> None:
        """Close it, as one of its users has signed out."""
        self.close(UNAUTHENTICATED, "you were signed out")

    @property
    def is_outdated(self) -> bool:
        """Its user has signed out since it was checked who that is."""
        return self.host.sign_outs.since(self.identity.user, self._allowed_at)

    @property
    def users(self) -> Iterator[str]:
        """Those who watch by it: who opened it, and to whom the tickets were issued that were shown."""
        if self.identity.user is not None:
            yield self.identity.user
        yield from list(self.guests or ())

    def close(self, code: int, reason: str) -> None:
        """Send what is begun and a farewell, give the client a moment to answer, and end."""
        if self._closing or self._ended:
            return
        if self._send_buffer is not None:
            self._send_buffer.drop()
        farewell = self.farewell(code, reason)
        if self._send_buffer is None:
            self.push(farewell)
        else:
            self._send_buffer.append(
                Chunk(farewell, 1, None)
            )  # the last answer, and the only one without a bound
        self._leave_channels()
        self._closing = True
        if self._send_buffer is None:
            self._half_close()
        self.host.reactor.call_later(_LINGER_SECONDS, self.end)

    def end(self) -> None:
        """Close the socket now."""
        if self._ended:
            return
        self._ended = True
        self._leave_channels()
        self._send_buffer = None
        self.host.reactor.forget(self._sock)
        self._sock.close()
        self.host.gone(self)
        self.slot.leave()

    def abandon(self) -> None:
        """Close this process's copy of the socket, and nothing else: it was never started here.

        No place is given back. In a forked child it is the parent's, whose lock a thread of the parent may have held.
        """
        self._ended, self.subscriptions = True, {}
        self._sock.close()

    @property
    def is_open(self) -> bool:
        """Neither side has said goodbye."""
        return not (self._closing or self._ended)

    @property
    def waiting_bytes(self) -> int:
        """Bytes in the outbox."""
        return self._send_buffer.size if self._send_buffer else 0

    # -- sending

    def push(self, data: bytes, frames: int = 1, subscription: Subscription | None = None) -> None:
        """Send data now, or let it wait."""
        if self._closing or self._ended:
            return
        send_buffer = self._send_buffer
        if send_buffer is None:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.host.counts["broken"] += 1
                self.end()
                return
            if sent != len(data):
                self._block(Chunk(data, frames, subscription), sent)
            if self._line is not None and subscription is not None:
                self._came(self._line, subscription, len(data))
                self._ask_next()
            return
        if subscription is None:
            self._let_answer_wait(send_buffer, data)
        else:
            self._let_wait(send_buffer, Chunk(data, frames, subscription), subscription)

    def _let_answer_wait(self, send_buffer: SendBuffer, data: bytes) -> None:
        limits = self.host.settings
        # As many as a client may ask for at once, and takes one day if it takes anything.
        most = limits.outbox_frames + limits.max_channels_per_socket
        if send_buffer.fits_answer(len(data), most, limits.outbox_bytes):
            send_buffer.append(Chunk(data, 1, None))
        else:
            self.host.counts["stalled"] += 1
            self.close(SLOW, "you ask, and do not take the answers")

    def _let_wait(self, send_buffer: SendBuffer, chunk: Chunk, subscription: Subscription) -> None:
        limits, size = self.host.settings, len(chunk.data)
        if self._line is not None:
            self._came(self._line, subscription, size)
            if subscription in self._line.queue:
                return
        if send_buffer.fits(size, chunk.frames, limits.outbox_frames, limits.outbox_bytes):
            send_buffer.append(chunk)
        else:
            self._overflow(send_buffer, subscription)

    def _overflow(self, send_buffer: SendBuffer, subscription: Subscription) -> None:
        for loser in send_buffer.drop() | {subscription: None}:
            self._line_up(loser, "slow")
        self.host.counts["slow"] += 1

    def _block(self, chunk: Chunk, sent: int) -> None:
        send_buffer = self._send_buffer = SendBuffer()
        send_buffer.append(chunk)
        send_buffer.sent(sent)
        reactor = self.host.reactor
        reactor.change(self._sock, READABLE | WRITABLE, self._ready)
        if not self._is_timed:
            self._is_timed = True
            reactor.call_later(self.host.settings.stall_seconds, self._check_progress, self._taken)

    def _flush(self, send_buffer: SendBuffer) -> None:
        while send_buffer:
            try:
                sent = self._sock.send(send_buffer.first())
            except BlockingIOError:
                self._ask_next()
                return
            except OSError:
                self.host.counts["broken"] += 1
                self.end()
                return
            self._progress += 1
            send_buffer.sent(sent)
        self._send_buffer = None
        self.host.reactor.change(self._sock, READABLE, self._ready)
        if self._closing:
            self._half_close()
        self._ask_next()

    def _half_close(self) -> None:
        # A close with unread data in the kernel would be a reset, and could take the farewell with it.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # -- receiving

    def _ready(self, events: int) -> None:
        if events & WRITABLE and self._send_buffer is not None:
            self._flush(self._send_buffer)
        if events & READABLE and not self._ended:
            try:
                data = self._sock.recv(_MOST_READ)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.end()
            elif not self._closing:
                self.heard_at = self.host.clock()
                self.received(data)

    # -- time

    def _tick(self) -> None:
        if not self.is_open:
            return
        settings, now = self.host.settings, self.host.clock()
        if now - self.heard_at > settings.silence_seconds and self.must_answer:
            self.host.counts["silent"] += 1
            self.close(NO_PONG, f"nothing was heard for {settings.silence_seconds:g} s")
            return
        if now >= self._ping_at:
            self._ping_at = now + settings.ping_seconds
            if self._send_buffer is None:
                self.ping()
        self._look_after_rights()
        if self.is_open:
            self.host.reactor.call_later(self._until_next_tick(now), self._tick)

    def _until_next_tick(self, now: float) -> float:
        settings = self.host.settings
        seconds = min(settings.ping_seconds, self._ping_at - now)
        if settings.reauthorize_seconds:
            ends = [
                guest.until for subscription in self.subscriptions.values() if (guest := subscription.guest)
            ]
            seconds = min(
                seconds, *(end - now for end in (*ends, self._question_is_due, self._answer_is_late))
            )
            if self._round is not None:  # once it is answered, the next one is due soon
                seconds = min(seconds, settings.reauthorize_seconds / 10)
        return max(_SHORTEST_TICK, seconds)

    # -- the right to watch

    @property
    def _question_is_due(self) -> float:
        if self._round is not None:
            return math.inf
        # Spread: connections that came together shall not be asked about together.
        slot = self.number * _GOLDEN_RATIO % 1
        return self._allowed_at + self.host.settings.reauthorize_seconds * (
            EARLIEST + (LATEST - EARLIEST) * slot
        )

    @property
    def _answer_is_late(self) -> float:
        if self._round is None:
            return math.inf
        # A process that stood still asks when the time is over already. It has sent nothing meanwhile, and an answer
        # needs its time.
        due = max(self._allowed_at + self.host.settings.reauthorize_seconds, self._round.asked_at)
        return due + LATE_SECONDS

    def _look_after_rights(self) -> None:
        """Ask again when it is due, and end what can't be answered: a ticket's channel, and a late one."""
        now = self.host.clock()
        if not self.is_open or not self.host.settings.reauthorize_seconds:
            return
        for subscription in list(self.subscriptions.values()):
            guest = subscription.guest
            if guest is not None and now >= guest.until and self.is_open:
                self.host.counts["expelled"] += 1
                self.expel(subscription)
        if not self.is_open:
            return
        if now >= self._question_is_due:
            self._ask_again(now)
        elif now >= self._answer_is_late:
            self.host.counts["late"] += 1
            self.close(TRY_AGAIN_LATER, "it could not be confirmed in time that you may read this")

    def _ask_again(self, now: float) -> None:
        asked = [
            subscription
            for subscription in self.subscriptions.values()
            if subscription.channel is not None
            and subscription.guest is None
            and not self.host.is_public(subscription.address[0])
        ]
        if not asked:
            self._allowed_at = now
            return
        self._round = _Round(now, asked)
        for subscription in asked:
            self.host.rechecks.ask(subscription)

    def confirmed(self, subscription: Subscription, permission: Permission | None, _began: float) -> None:
        """Take the answer about a subscription that was live when it was asked about, if it still is."""
        if not self.has(subscription):
            return
        self._answered(subscription)
        if permission is None:
            self.host.counts["expelled"] += 1
            self.expel(subscription)

    def _answered(self, subscription: Subscription) -> None:
        if self._round is not None:
            self._round.unanswered.discard(subscription)
            if not self._round.unanswered:
                self._allowed_at, self._round = self._round.began, None

    def _vouch(self, began: float) -> None:
        """Note that something is live by an answer that began at this time, which may be long ago."""
        if self._round is not None:
            self._round.began = min(self._round.began, began)
        if began < self._allowed_at:
            self._allowed_at = began
            self.host.reactor.call_later(self._until_next_tick(self.host.clock()), self._look_after_rights)

    def _guest(self, user: str | None, began: float) -> Guest:
        return Guest(user, began + (self.host.settings.reauthorize_seconds or math.inf))

    # -- progress

    @property
    def _taken(self) -> tuple[int, int]:
        """Something that changes with each byte that the client takes, be it from the kernel, which wakes nobody up for a few."""
        unsent = bytes(4)
        with contextlib.suppress(OSError):
            unsent = fcntl.ioctl(self._sock, termios.TIOCOUTQ, unsent)
        return self._progress, int.from_bytes(unsent, sys.byteorder)

    def _check_progress(self, taken: tuple[int, int]) -> None:
        if self._ended or self._send_buffer is None:
            self._is_timed = False
        elif taken == self._taken:
            self.host.counts["stalled"] += 1
            self.close(SLOW, "you took nothing for too long")
        else:
            seconds = self.host.settings.stall_seconds
            self.host.reactor.call_later(seconds, self._check_progress, self._taken)

    def _leave_channels(self) -> None:
        left, self.subscriptions = self.subscriptions, {}
        for subscription in left.values():
            self._release(subscription)
