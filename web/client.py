"""A client for services and tests: watch a key, and be told every change of it, once, in order.

Needs the extra: ``pip install "keyfold[client]"``.
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
from .live.channels.recent_deltas import NOWHERE

_logger = logging.getLogger("keyfold.client")

_FIRST_PAUSE, _LONGEST_PAUSE = 2.0, 30.0
_MOST_DOUBLINGS = 16
_FORGET_SECONDS = 30.0
_SOON = 0.5
_RESYNC = '{"type":"resync"}'
_OPEN_SECONDS = 10.0
_REFUSALS = frozenset({400, 401, 403, 404, 501})
_REFUSING_CODES = frozenset({4401, 4403, 4404})


class Refused(Exception):
    """The server said no, and would again: ``status`` is that of HTTP, or the code of the close."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


class Change(NamedTuple):
    """A whole state (``is_snapshot``; None: the key has no row) or one delta, and where it leads."""

    is_snapshot: bool
    position: Position
    value: Any


class _Frame(msgspec.Struct):
    type: str
    epoch: str = ""
    version: int = 0
    prev: int = -1
    state: Any = None
    data: Any = None


_decode = msgspec.json.Decoder(_Frame).decode


class Watch:
    """Watches one key. Iterate over it, or call ``next``; use it as a context manager, or ``close`` it.

    The first change is a snapshot (unless ``since`` was given and nothing is missing). A lost connection
    comes back by itself, after a random pause, and goes on from where it was. One whose server does not
    answer pings is lost. ``ticket`` is called for each connection, and a connection that ends with the
    right of its ticket is followed by another soon; an OSError that it raises is a connection that failed, any other error is the caller's.
    Not for several threads at once; ``close`` is.
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
        self._due = self._opened = 0.0
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
        """End the connection. Whoever waits in ``next`` gets None."""
        self._closed.set()
        self._hang_up()

    def next(self, timeout: float | None = None) -> Change | None:
        """Return the next change. None: the timeout is over, or it was closed. Raises Refused."""
        until = None if timeout is None else monotonic() + timeout
        while not self._closed.is_set() and (until is None or monotonic() < until):
            client = self._client or self._connect(until)
            if client is None:
                continue
            wait = None if until is None else max(0.0, until - monotonic())
            try:
                change = self._take(client, _decode(client.recv(timeout=wait)))
            except TimeoutError:
                return None
            except ConnectionClosed as closed:
                self._ended(closed)
            else:
                if change is not None:
                    return change
        return None

    def _take(self, client: ClientConnection, frame: _Frame) -> Change | None:
        here, there = self.position, Position(frame.epoch, frame.version)
        if frame.type == "snapshot":
            self.position, self._resyncing = there, False
            return Change(is_snapshot=True, position=there, value=frame.state)
        if frame.type == "delta":
            if here == (frame.epoch, frame.prev) or (here == NOWHERE and frame.prev == 0):
                self.position = there
                return Change(is_snapshot=False, position=there, value=frame.data)
            # Many deltas may come before the snapshot that was asked for: one request is enough for all of them.
            if not self._resyncing and (
                here is None or here.epoch != frame.epoch or frame.version > here.version
            ):
                self._resync(client)
        elif frame.type == "heartbeat" and here != there:
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
            self._opened = monotonic()
        except InvalidStatus as error:
            answer = error.response
            if answer.status_code in _REFUSALS:
                raise Refused(answer.status_code, (answer.body or b"").decode(errors="replace")) from None
        except (OSError, InvalidHandshake, ConnectionClosed) as error:
            # Nobody listens, or nobody who can, or there is no ticket to be had.
            _logger.info("no connection to %s%s, and another try later: %s", host, path, error)
        finally:
            if self._client is None:
                self._pause()
        if self._closed.is_set():
            self._hang_up()  # it was closed while this was opened, so that close() found nothing to hang up
        return self._client

    def _pause(self) -> None:
        """Let some time go by before the next connection: less than 2 s, and more while none of them lasts."""
        now = monotonic()
        if now - self._due > _FORGET_SECONDS:
            self._attempt = 0
        longest = min(_LONGEST_PAUSE, _FIRST_PAUSE * 2 ** min(self._attempt, _MOST_DOUBLINGS))
        self._attempt += 1
        self._due = now + random.random() * longest  # noqa: S311

    def _ended(self, closed: ConnectionClosed) -> None:
        self._hang_up()
        frame, now = closed.rcvd, monotonic()
        is_refusal = frame is not None and frame.code in _REFUSING_CODES
        if is_refusal and self._ticket is not None and now - self._opened >= _FIRST_PAUSE:
            # The right of a ticket ends, and the next one has not been refused: nothing has failed.
            self._attempt, self._due = 0, now + random.random() * _SOON  # noqa: S311
            return
        self._pause()
        if frame is not None and is_refusal and self._ticket is None:
            raise Refused(frame.code, frame.reason)

    def _hang_up(self) -> None:
        self._client, self._resyncing = None, False
        with suppress(ConnectionClosed, OSError):  # the end of it may find that it has ended
            self._connection.close()


def _path_of(name: str, key: str) -> str:
    return f"/ws/projection/{quote(name, safe='')}/{quote(key, safe='')}"
