"""A client for services and tests: it watches a key and yields every change, once, in order.

Needs the extra ``client``: ``pip install "keyfold[client]"``.
"""

from __future__ import annotations

import logging
import random
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import ExitStack, suppress
from time import monotonic
from typing import Any, NamedTuple, Self
from urllib.parse import quote, urlencode, urlsplit, urlunsplit

import msgspec
from websockets.exceptions import ConnectionClosed, InvalidHandshake, InvalidStatus
from websockets.sync.client import ClientConnection, connect

from ..store import Position
from .live.channels.deltas import NOWHERE

_logger = logging.getLogger("keyfold.client")

_FIRST_PAUSE_SECONDS, _MAX_PAUSE_SECONDS = 2.0, 30.0
_MAX_DOUBLINGS = 16
_FORGET_SECONDS = 30.0
"""After so long without another pause, the pauses start small again."""
_NEXT_TICKET_SECONDS = 0.5
_RESYNC = '{"type":"resync"}'
_OPEN_SECONDS = 10.0
_FINAL_STATUSES = frozenset({400, 401, 403, 404, 501})
_FINAL_CLOSE_CODES = frozenset({4401, 4403, 4404})


class Refused(Exception):
    """The server refuses the watch, and would refuse it again.

    Attributes:
        status: The status of the HTTP response, or the close code of the WebSocket.
    """

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Change(NamedTuple):
    """A snapshot or one delta.

    Attributes:
        is_snapshot: Whether ``value`` is a whole state or a delta.
        position: The position of the key after this change.
        value: The state (None: the key has no row), or the delta.
    """

    is_snapshot: bool
    position: Position
    value: Any


class _Message(msgspec.Struct):
    type: str
    epoch: str = ""
    version: int = 0
    prev: int = -1
    state: Any = None
    data: Any = None


_decode = msgspec.json.Decoder(_Message).decode


class Watch:
    """Watches one key. Iterate over it or call ``next``; use it as a context manager or ``close`` it.

    The first change is a snapshot, unless the server can continue from ``since``. A lost connection is
    replaced after a random pause, and the watch continues at its position. A connection whose server does not
    answer pings counts as lost. Only ``close`` may be called from another thread.

    Attributes:
        position: The position after the last change, None before the first.

    Args:
        url: The URL of the app, with its prefix: ``http://…`` or ``https://…``.
        name: The name of the projection.
        key: The key to watch.
        since: The position to continue from.
        headers: Headers for each handshake, for instance a cookie or a bearer token.
        ticket: Returns a new ticket for each connection, on the thread that calls ``next``. A connection that
            ends because the time of its ticket is over is replaced within half a second. An OSError counts
            as a failed connection; any other error is raised by ``next``.
    """

    def __init__(
        self,
        url: str,
        name: str,
        key: str,
        *,
        since: Position | None = None,
        headers: Mapping[str, str] | None = None,
        ticket: Callable[[], str] | None = None,
    ) -> None:
        scheme, host, path, _, _ = urlsplit(url)
        self._url = (scheme.replace("http", "ws", 1), host, f"{path.rstrip('/')}{_path_of(name, key)}")
        self._headers = dict(headers or {})
        self._ticket = ticket
        self.position = since
        self._client: ClientConnection | None = None
        self._connection = ExitStack()
        self._attempt = 0
        self._due = self._opened_at = 0.0
        self._resyncing = False
        self._closed = threading.Event()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_error: object) -> None:
        self.close()

    def __iter__(self) -> Iterator[Change]:
        while (change := self.next()) is not None:
            yield change

    def close(self) -> None:
        """Close the connection. A ``next`` that waits on another thread returns None."""
        self._closed.set()
        self._disconnect()

    def next(self, timeout: float | None = None) -> Change | None:
        """Return the next change.

        Args:
            timeout: Seconds to wait. None: without a limit.

        Returns:
            The change, or None if the timeout is over or the watch is closed.

        Raises:
            Refused: The server refuses the watch, and would refuse it again.
        """
        until = None if timeout is None else monotonic() + timeout
        while not self._closed.is_set() and (until is None or monotonic() < until):
            client = self._client or self._connect(until)
            if client is None:
                continue
            wait = None if until is None else max(0.0, until - monotonic())
            try:
                change = self._apply(client, _decode(client.recv(timeout=wait)))
            except TimeoutError:
                return None
            except ConnectionClosed as closed:
                self._on_closed(closed)
            else:
                if change is not None:
                    return change
        return None

    def _apply(self, client: ClientConnection, message: _Message) -> Change | None:
        here, there = self.position, Position(message.epoch, message.version)
        if message.type == "snapshot":
            self.position, self._resyncing = there, False
            return Change(is_snapshot=True, position=there, value=message.state)
        if message.type == "delta":
            if here == (message.epoch, message.prev) or (here == NOWHERE and message.prev == 0):
                self.position = there
                return Change(is_snapshot=False, position=there, value=message.data)
            # Many deltas may arrive before the requested snapshot: one request is enough for all of them.
            if not self._resyncing and (
                here is None or here.epoch != message.epoch or message.version > here.version
            ):
                self._resync(client)
        elif message.type == "heartbeat" and here != there:
            self._resync(client)
        return None

    def _resync(self, client: ClientConnection) -> None:
        self._resyncing = True
        client.send(_RESYNC)

    def _connect(self, until: float | None) -> ClientConnection | None:
        pause = max(0.0, self._due - monotonic())
        if self._closed.wait(pause if until is None else min(pause, max(0.0, until - monotonic()))):
            return None
        if self._due > monotonic():
            return None
        scheme, host, path = self._url
        try:
            query = {} if self.position is None else {"since": str(self.position)}
            if self._ticket is not None:
                query["ticket"] = self._ticket()
            opening = connect(
                urlunsplit((scheme, host, path, urlencode(query), "")),
                additional_headers=self._headers,
                compression=None,
                open_timeout=_OPEN_SECONDS if until is None else max(0.01, until - monotonic()),
                max_size=None,
            )
            self._client = self._connection.enter_context(opening)
            self._opened_at = monotonic()
        except InvalidStatus as error:
            response = error.response
            if response.status_code in _FINAL_STATUSES:
                raise Refused(response.status_code, (response.body or b"").decode(errors="replace")) from None
        except (OSError, InvalidHandshake, ConnectionClosed) as error:
            # No server listens there, or it has no WebSockets, or there is no ticket.
            _logger.info("no connection to %s%s, will try again: %s", host, path, error)
        finally:
            if self._client is None:
                self._pause()
        if self._closed.is_set():
            self._disconnect()  # close() was called meanwhile and found no connection to close
        return self._client

    def _pause(self) -> None:
        """Schedule the next connection: within 2 s, and later after each further failure."""
        now = monotonic()
        if now - self._due > _FORGET_SECONDS:
            self._attempt = 0
        doubled = _FIRST_PAUSE_SECONDS * 2 ** min(self._attempt, _MAX_DOUBLINGS)
        max_pause = min(_MAX_PAUSE_SECONDS, doubled)
        self._attempt += 1
        self._due = now + random.random() * max_pause  # noqa: S311

    def _on_closed(self, closed: ConnectionClosed) -> None:
        self._disconnect()
        close, now = closed.rcvd, monotonic()
        is_refusal = close is not None and close.code in _FINAL_CLOSE_CODES
        if is_refusal and self._ticket is not None and now - self._opened_at >= _FIRST_PAUSE_SECONDS:
            # The time of a ticket is over, and the next ticket has not been refused: this is not a failure.
            self._attempt, self._due = 0, now + random.random() * _NEXT_TICKET_SECONDS  # noqa: S311
            return
        self._pause()
        if close is not None and is_refusal and self._ticket is None:
            raise Refused(close.code, close.reason)

    def _disconnect(self) -> None:
        self._client, self._resyncing = None, False
        with suppress(ConnectionClosed, OSError):  # the server may have closed it already
            self._connection.close()


def _path_of(name: str, key: str) -> str:
    return f"/ws/projection/{quote(name, safe='')}/{quote(key, safe='')}"
