"""One open connection. Only the reactor's thread reads from its socket and writes to it."""

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
from ..reactor import READABLE, WRITABLE
from .send_buffer import Chunk, SendBuffer
from .subscription import Subscription, TicketGrant

if TYPE_CHECKING:
    from collections.abc import Iterator

    from ....store.rows import RowKey
    from ..channels.batch import Batch
    from ..hub import Hub  # each connection knows its hub, and the hub its connections
    from .client_identity import ClientIdentity, Permission
    from .connection_limits import HeldSlot, Slot

GOING_AWAY = 1001
TRY_AGAIN_LATER = 1013
SLOW = 4101
NO_PONG = 4102
UNAUTHENTICATED = 4401
FORBIDDEN = 4403
LIMIT = 4429

EARLIEST, LATEST = 0.5, 0.8
"""The parts of ``reauthorize_seconds`` after which a connection is rechecked, in time for a slow answer."""
LATE_SECONDS = 1.5
"""How long the answer may take after ``reauthorize_seconds``, or after the check if that came later."""
_GOLDEN_RATIO = 0.618034
"""The fractions of its multiples are spread evenly, however many there are."""

_MAX_RECEIVED = 4096
_LINGER_SECONDS = 1.0
_MIN_TICK_SECONDS = 0.01
_MAX_READS = 16
"""The number of rows that are read for one connection at once."""
_READ_SECONDS = 1.0
"""After so long a row that does not come no longer delays the other rows of its connection."""

_EMPTY_BUFFER = SendBuffer()


class _Recheck:
    """A check, once more, of everything that a connection subscribes to."""

    __slots__ = ("asked_at", "started_at", "unanswered")

    def __init__(self, now: float, subscriptions: list[Subscription]) -> None:
        self.started_at = self.asked_at = now
        self.unanswered = set(subscriptions)


class _RowRequests:
    """The subscriptions of one connection that need their row. It exists only while there are some."""

    __slots__ = ("is_retry_scheduled", "queue", "reading")

    def __init__(self) -> None:
        self.queue: dict[Subscription, str] = {}
        """The reason for each, in the order in which they are served. They get no frames until then."""
        self.reading: dict[Subscription, float] = {}
        """The subscriptions whose rows are being read, and the time since when."""
        self.is_retry_scheduled = False


class Connection(ABC):
    """A socket, its subscriptions, and the bytes that wait for it.

    Frames leave at once while the socket takes them; else they wait in a bounded send buffer. Over the bound
    the unsent frames are dropped, and their channels send the newest snapshot once the socket takes bytes
    again. No thread ever waits for the socket. A connection ends after a close, an error, or too long without
    progress.

    All subscriptions that need their row, as they are new, asked by ``resync`` or lost frames, wait in one
    queue. The row is read when there is room for the snapshot, so a client causes no more reads than it takes
    snapshots, however slow it is.

    There are many connections, so what one needs only at times is None until then; that is why it has many
    attributes: the socket's, the buffer's, the rows' and the rights'.
    """

    must_answer = True
    """Whether a client of this kind is expected to send something. If not, its silence means nothing."""

    __slots__ = (
        "_allowed_at",
        "_closing",
        "_ended",
        "_is_progress_timed",
        "_largest_snapshot",
        "_ping_at",
        "_progress",
        "_recheck",
        "_row_requests",
        "_send_buffer",
        "_sock",
        "heard_at",
        "hub",
        "identity",
        "number",
        "opened_at",
        "slot",
        "subscriptions",
        "ticket_users",
    )

    def __init__(
        self,
        sock: socket.socket,
        hub: Hub,
        identity: ClientIdentity,
        slot: HeldSlot,
        checked_at: float | None = None,
    ) -> None:
        """Wrap a socket. ``Hub.adopt`` starts the connection.

        Args:
            sock: The client's socket. The connection owns it from now on.
            hub: The hub that will adopt the connection.
            identity: The client.
            slot: Given back when the connection ends.
            checked_at: The time, by the hub's clock, at which the check of the client's identity and rights
                began. None: just now.
        """
        sock.setblocking(False)
        self._sock = sock
        self.hub, self.identity, self.slot = hub, identity, slot
        self.subscriptions: dict[RowKey, Subscription] = {}
        self.ticket_users: dict[str, Slot] | None = None
        """The users whose tickets were shown here, with the slots that they take up."""
        self.number = 0
        now = hub.clock()
        # Every subscription here is allowed by an answer of authorize that began at this time or later.
        self._allowed_at = self.opened_at = now if checked_at is None else checked_at
        # Mostly one float object for all three times: there are many connections.
        self.heard_at = now if now - self.opened_at > 1 else self.opened_at
        self._recheck: _Recheck | None = None
        self._send_buffer: SendBuffer | None = None
        self._ping_at = math.inf
        self._row_requests: _RowRequests | None = None
        self._largest_snapshot = 0
        """Bytes of the largest snapshot so far, if fewer of that size fit than are read at once."""
        self._progress = 0
        self._is_progress_timed = False
        self._closing = False
        self._ended = False

    # -- the parts that differ by protocol

    @abstractmethod
    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        """Send frames of a channel."""

    @abstractmethod
    def received(self, data: bytes) -> None:
        """Handle bytes of the client."""

    @abstractmethod
    def ping(self) -> None:
        """Send bytes that a living client answers, or at least takes."""

    @abstractmethod
    def closing_bytes(self, code: int, reason: str) -> bytes:
        """Return the last bytes that a closed connection sends."""

    @abstractmethod
    def revoke(self, subscription: Subscription) -> None:
        """End a subscription that the client may not have any longer."""

    def on_checked(  # noqa: B027
        self, subscription: Subscription, permission: Permission | None, started_at: float
    ) -> None:
        """Take the answer of a check for a new subscription. An event stream asks for none."""

    # -- life

    def start(self) -> None:
        """Begin to read from the socket."""
        self.hub.reactor.watch(self._sock, READABLE, self._ready)
        # Spread, so that connections that came together are not pinged together.
        self._ping_at = self.opened_at + random.uniform(0.2, 1) * self.hub.settings.ping_seconds  # noqa: S311
        self.hub.reactor.call_later(self._seconds_to_next_tick(self.opened_at), self._tick)

    def subscribe(self, name: str, key: str, since: Position | None) -> None:
        """Subscribe to the channel that the request named. The request was allowed to."""
        grant = self._grant(self.identity.user, self._allowed_at) if self.identity.by_ticket else None
        subscription = Subscription(self, None, since, row_key=(name, key), opened_by=grant)
        self.subscriptions[subscription.row_key] = subscription
        self.go_live(subscription)

    def go_live(self, subscription: Subscription) -> None:
        """Send a subscription its row, and then each change."""
        subscription.channel = self.hub.channels.get(*subscription.row_key)
        self.refresh(subscription, "initial")

    def refresh(self, subscription: Subscription, reason: str) -> None:
        """Send a live subscription the committed row, once it is first in the queue and there is room.

        Args:
            subscription: A subscription of this connection; one that has ended is ignored.
            reason: The reason that the snapshot gives.
        """
        if not self.has(subscription) or subscription.channel is None:
            return
        if self._row_requests is not None and subscription in self._row_requests.reading:
            return  # a snapshot is under way
        self._queue_row_request(subscription, reason)
        self._request_rows()

    def _queue_row_request(self, subscription: Subscription, reason: str) -> None:
        subscription.leave()
        if self._row_requests is None:
            self._row_requests = _RowRequests()
        self._row_requests.reading.pop(subscription, None)
        self._row_requests.queue.setdefault(subscription, reason)

    def _request_rows(self) -> None:
        """Have the rows read for whose snapshots there will be room, at least one."""
        requests = self._row_requests
        if requests is None:
            return
        while requests.queue and self._has_room(requests):
            subscription = next(iter(requests.queue))
            reason = requests.queue.pop(subscription)
            requests.reading[subscription] = self.hub.clock()
            # Not the channel it had: a channel without subscriptions may have been removed meanwhile.
            subscription.channel = self.hub.channels.get(*subscription.row_key)
            subscription.channel.request_row(subscription, reason)
        if requests.queue and requests.reading and not requests.is_retry_scheduled:
            requests.is_retry_scheduled = True
            self.hub.reactor.call_later(_READ_SECONDS, self._retry_row_requests)
        if self._row_requests is requests and not (requests.queue or requests.reading):
            self._row_requests = None

    def _has_room(self, requests: _RowRequests) -> bool:
        """Return whether one more snapshot will fit, with those that are under way."""
        send_buffer, settings = self._send_buffer or _EMPTY_BUFFER, self.hub.settings
        count = len(requests.reading) + 1
        fits = send_buffer.fits if count == 1 else send_buffer.has_room
        size = count * (self._largest_snapshot or settings.outbox_bytes // _MAX_READS)
        return count <= _MAX_READS and fits(size, count, settings.outbox_frames, settings.outbox_bytes)

    def _note_row_came(self, requests: _RowRequests, subscription: Subscription, size: int) -> None:
        """Note that the frames of a channel came, so that its row is no longer being read."""
        was_reading = requests.reading.pop(subscription, None) is not None
        if was_reading and size > max(self._largest_snapshot, self.hub.settings.outbox_bytes // _MAX_READS):
            self._largest_snapshot = size

    def _retry_row_requests(self) -> None:
        """Stop waiting for rows that do not come, and request the next ones."""
        requests = self._row_requests
        if requests is not None:
            requests.is_retry_scheduled = False
            late = self.hub.clock() - _READ_SECONDS
            requests.reading = {one: since for one, since in requests.reading.items() if since > late}
            self._request_rows()

    def has(self, subscription: Subscription) -> bool:
        """Return whether a subscription is in effect. There may be another one to the same row key."""
        return self.subscriptions.get(subscription.row_key) is subscription

    def unsubscribe(self, subscription: Subscription) -> None:
        """End a subscription, whether it is live or waits for its check."""
        del self.subscriptions[subscription.row_key]
        self._release(subscription)
        if self._send_buffer:
            self._send_buffer.drop(subscription)
        self._request_rows()

    def _release(self, subscription: Subscription) -> None:
        """Remove a subscription that has ended from everything that holds it."""
        subscription.leave()
        if self._row_requests is not None:
            self._row_requests.queue.pop(subscription, None)
            self._row_requests.reading.pop(subscription, None)
        if subscription.channel is None:
            self.hub.checks.drop(subscription)
        if self._recheck is not None:
            self.hub.rechecks.drop(subscription)
            self._note_rechecked(subscription)
        grant, ticket_users = subscription.ticket_grant, self.ticket_users
        if grant is not None and ticket_users and grant.user in ticket_users:
            others = (other.ticket_grant for other in self.subscriptions.values())
            if not any(other is not None and other.user == grant.user for other in others):
                ticket_users.pop(grant.user).leave()

    def _release_all(self) -> None:
        ended, self.subscriptions = self.subscriptions, {}
        for subscription in ended.values():
            self._release(subscription)

    def sign_out(self) -> None:
        """Close the connection, since one of its users was signed out."""
        self.close(UNAUTHENTICATED, "you were signed out")

    @property
    def is_signed_out(self) -> bool:
        """Whether its user was signed out since the check of the user's identity began."""
        return self.hub.sign_outs.since(self.identity.user, self._allowed_at)

    @property
    def users(self) -> Iterator[str]:
        """The user who opened it, and the users whose tickets it showed."""
        if self.identity.user is not None:
            yield self.identity.user
        yield from list(self.ticket_users or ())

    def close(self, code: int, reason: str) -> None:
        """Send the rest of a begun chunk and the close, give the client a moment to answer, and end.

        Args:
            code: The close code.
            reason: The text beside the code.
        """
        if self._closing or self._ended:
            return
        if self._send_buffer is not None:
            self._send_buffer.drop()
        data = self.closing_bytes(code, reason)
        if self._send_buffer is None:
            self.push(data)
        else:
            self._send_buffer.append(
                Chunk(data, 1, None)
            )  # the last answer, and the only one without a bound
        self._release_all()
        self._closing = True
        if self._send_buffer is None:
            self._half_close()
        self.hub.reactor.call_later(_LINGER_SECONDS, self.end)

    def end(self) -> None:
        """Close the socket now."""
        if self._ended:
            return
        self._ended = True
        self._release_all()
        self._send_buffer = None
        self.hub.reactor.forget(self._sock)
        self._sock.close()
        self.hub.forget(self)
        self.slot.leave()

    def abandon(self) -> None:
        """Close this process's copy of the socket, and nothing else: the connection was never started here.

        The slot is not given back. In a forked child it is the parent's, and a thread of the parent may have
        held its lock.
        """
        self._ended, self.subscriptions = True, {}
        self._sock.close()

    @property
    def is_open(self) -> bool:
        """Whether it has neither ended nor begun to close."""
        return not (self._closing or self._ended)

    @property
    def waiting_bytes(self) -> int:
        """The number of bytes in the send buffer."""
        return self._send_buffer.size if self._send_buffer else 0

    # -- sending

    def push(self, data: bytes, frames: int = 1, subscription: Subscription | None = None) -> None:
        """Send bytes now, or let them wait in the send buffer.

        Args:
            data: Whole frames or events.
            frames: Their number.
            subscription: The subscription that they are for; None for an answer or a control frame.
        """
        if self._closing or self._ended:
            return
        send_buffer = self._send_buffer
        if send_buffer is None:
            try:
                sent = self._sock.send(data)
            except BlockingIOError:
                sent = 0
            except OSError:
                self.hub.counts["broken"] += 1
                self.end()
                return
            if sent != len(data):
                self._start_buffering(Chunk(data, frames, subscription), sent)
            if self._row_requests is not None and subscription is not None:
                self._note_row_came(self._row_requests, subscription, len(data))
                self._request_rows()
            return
        if subscription is None:
            self._buffer_answer(send_buffer, data)
        else:
            self._buffer_chunk(send_buffer, Chunk(data, frames, subscription), subscription)

    def _buffer_answer(self, send_buffer: SendBuffer, data: bytes) -> None:
        settings = self.hub.settings
        # As many as a client may ask for at once. It takes them some day if it takes anything.
        max_answers = settings.outbox_frames + settings.max_channels_per_socket
        if send_buffer.fits_answer(len(data), max_answers, settings.outbox_bytes):
            send_buffer.append(Chunk(data, 1, None))
        else:
            self.hub.counts["stalled"] += 1
            self.close(SLOW, "you ask, and do not take the answers")

    def _buffer_chunk(self, send_buffer: SendBuffer, chunk: Chunk, subscription: Subscription) -> None:
        settings, size = self.hub.settings, len(chunk.data)
        if self._row_requests is not None:
            self._note_row_came(self._row_requests, subscription, size)
            if subscription in self._row_requests.queue:
                return
        if send_buffer.fits(size, chunk.frames, settings.outbox_frames, settings.outbox_bytes):
            send_buffer.append(chunk)
        else:
            self._overflow(send_buffer, subscription)

    def _overflow(self, send_buffer: SendBuffer, subscription: Subscription) -> None:
        """Drop the frames of channels, and queue row requests for the subscriptions that lost some."""
        for loser in send_buffer.drop() | {subscription: None}:
            self._queue_row_request(loser, "slow")
        self.hub.counts["slow"] += 1

    def _start_buffering(self, chunk: Chunk, sent: int) -> None:
        send_buffer = self._send_buffer = SendBuffer()
        send_buffer.append(chunk)
        send_buffer.sent(sent)
        reactor = self.hub.reactor
        reactor.change(self._sock, READABLE | WRITABLE, self._ready)
        if not self._is_progress_timed:
            self._is_progress_timed = True
            reactor.call_later(self.hub.settings.stall_seconds, self._check_progress, self._progress_mark)

    def _flush(self, send_buffer: SendBuffer) -> None:
        while send_buffer:
            try:
                sent = self._sock.send(send_buffer.first())
            except BlockingIOError:
                self._request_rows()
                return
            except OSError:
                self.hub.counts["broken"] += 1
                self.end()
                return
            self._progress += 1
            send_buffer.sent(sent)
        self._send_buffer = None
        self.hub.reactor.change(self._sock, READABLE, self._ready)
        if self._closing:
            self._half_close()
        self._request_rows()

    def _half_close(self) -> None:
        # To close a socket with unread data in the kernel would be a reset, and could lose the closing bytes.
        with contextlib.suppress(OSError):
            self._sock.shutdown(socket.SHUT_WR)

    # -- receiving

    def _ready(self, events: int) -> None:
        if events & WRITABLE and self._send_buffer is not None:
            self._flush(self._send_buffer)
        if events & READABLE and not self._ended:
            try:
                data = self._sock.recv(_MAX_RECEIVED)
            except BlockingIOError:
                return
            except OSError:
                data = b""
            if not data:
                self.end()
            elif not self._closing:
                self.heard_at = self.hub.clock()
                self.received(data)

    # -- time

    def _tick(self) -> None:
        if not self.is_open:
            return
        settings, now = self.hub.settings, self.hub.clock()
        if now - self.heard_at > settings.silence_seconds and self.must_answer:
            self.hub.counts["silent"] += 1
            self.close(NO_PONG, f"nothing was heard for {settings.silence_seconds:g} s")
            return
        if now >= self._ping_at:
            self._ping_at = now + settings.ping_seconds
            if self._send_buffer is None:
                self.ping()
        self._check_rights()
        if self.is_open:
            self.hub.reactor.call_later(self._seconds_to_next_tick(now), self._tick)

    def _seconds_to_next_tick(self, now: float) -> float:
        settings = self.hub.settings
        seconds = min(settings.ping_seconds, self._ping_at - now)
        if settings.reauthorize_seconds:
            ends = [
                grant.until
                for subscription in self.subscriptions.values()
                if (grant := subscription.ticket_grant)
            ]
            times = (*ends, self._recheck_is_due, self._recheck_is_late)
            seconds = min(seconds, *(time - now for time in times))
            if self._recheck is not None:  # after its answer the next one is due soon
                seconds = min(seconds, settings.reauthorize_seconds / 10)
        return max(_MIN_TICK_SECONDS, seconds)

    # -- rights

    @property
    def _recheck_is_due(self) -> float:
        """The time at which the next recheck begins; infinity while one is under way."""
        if self._recheck is not None:
            return math.inf
        # Spread, so that connections that came together are not rechecked together.
        spread = self.number * _GOLDEN_RATIO % 1
        part = EARLIEST + (LATEST - EARLIEST) * spread
        return self._allowed_at + self.hub.settings.reauthorize_seconds * part

    @property
    def _recheck_is_late(self) -> float:
        """The time at which the recheck under way has failed; infinity if there is none."""
        if self._recheck is None:
            return math.inf
        # A process that was suspended asks after the time is over. It has sent nothing meanwhile, and the
        # answer needs its time.
        due = max(self._allowed_at + self.hub.settings.reauthorize_seconds, self._recheck.asked_at)
        return due + LATE_SECONDS

    def _check_rights(self) -> None:
        """Recheck when it is due, and end the subscriptions of tickets whose time is over."""
        now = self.hub.clock()
        if not self.is_open or not self.hub.settings.reauthorize_seconds:
            return
        for subscription in list(self.subscriptions.values()):
            grant = subscription.ticket_grant
            if grant is not None and now >= grant.until and self.is_open:
                self.hub.counts["expelled"] += 1
                self.revoke(subscription)
        if not self.is_open:
            return
        if now >= self._recheck_is_due:
            self._start_recheck(now)
        elif now >= self._recheck_is_late:
            self.hub.counts["late"] += 1
            self.close(TRY_AGAIN_LATER, "it could not be confirmed in time that you may read this")

    def _start_recheck(self, now: float) -> None:
        subscriptions = [
            subscription
            for subscription in self.subscriptions.values()
            if subscription.channel is not None
            and subscription.ticket_grant is None
            and not self.hub.sources.is_public(subscription.row_key[0])
        ]
        if not subscriptions:
            self._allowed_at = now
            return
        self._recheck = _Recheck(now, subscriptions)
        for subscription in subscriptions:
            self.hub.rechecks.ask(subscription)

    def on_rechecked(
        self, subscription: Subscription, permission: Permission | None, _started_at: float
    ) -> None:
        """Take the answer of a recheck, unless the subscription has ended meanwhile."""
        if not self.has(subscription):
            return
        self._note_rechecked(subscription)
        if permission is None:
            self.hub.counts["expelled"] += 1
            self.revoke(subscription)

    def _note_rechecked(self, subscription: Subscription) -> None:
        if self._recheck is not None:
            self._recheck.unanswered.discard(subscription)
            if not self._recheck.unanswered:
                self._allowed_at, self._recheck = self._recheck.started_at, None

    def _note_allowed(self, started_at: float) -> None:
        """Note that a subscription is live by a check that started at this time, which may be long ago."""
        if self._recheck is not None:
            self._recheck.started_at = min(self._recheck.started_at, started_at)
        if started_at < self._allowed_at:
            self._allowed_at = started_at
            self.hub.reactor.call_later(self._seconds_to_next_tick(self.hub.clock()), self._check_rights)

    def _grant(self, user: str | None, started_at: float) -> TicketGrant:
        return TicketGrant(user, started_at + (self.hub.settings.reauthorize_seconds or math.inf))

    # -- progress

    @property
    def _progress_mark(self) -> tuple[int, int]:
        """A value that changes with each byte the client takes, also from the kernel.

        The kernel reports a socket as writable only after many bytes.
        """
        unsent = bytes(4)
        with contextlib.suppress(OSError):
            unsent = fcntl.ioctl(self._sock, termios.TIOCOUTQ, unsent)
        return self._progress, int.from_bytes(unsent, sys.byteorder)

    def _check_progress(self, mark: tuple[int, int]) -> None:
        if self._ended or self._send_buffer is None:
            self._is_progress_timed = False
        elif mark == self._progress_mark:
            self.hub.counts["stalled"] += 1
            self.close(SLOW, "you took nothing for too long")
        else:
            seconds = self.hub.settings.stall_seconds
            self.hub.reactor.call_later(seconds, self._check_progress, self._progress_mark)
