"""What the actors, and other processes, tell a channel."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from typing import NamedTuple

from ....store import Position
from ....store.rows import Head

_MOST_BYTES = 4 * 1024 * 1024


class Turn(NamedTuple):
    """The WebSocket frames of the deltas of one committed turn, positions and ids as in Committed."""

    epoch: str
    base_version: int
    frames: list[bytes]
    base_commit_id: str | None = None
    commit_id: str | None = None

    @property
    def base(self) -> Head:
        """What the first of them follows."""
        return Head(self.epoch, self.base_version, self.base_commit_id)

    @property
    def head(self) -> Head:
        """Where the last of them leads."""
        return Head(self.epoch, self.base_version + len(self.frames), self.commit_id)


class Replaced(NamedTuple):
    """A whole new state, as JSON: the key was rebuilt or wiped."""

    position: Position
    state: bytes
    reason: str


class Missed(NamedTuple):
    """Something could not be published, or was replaced elsewhere: the row has to be read."""

    reason: str = "gap"


Notice = Turn | Replaced | Missed


class Inbox:
    """News on their way from many threads to the reactor's. Never holds more than 4 MiB."""

    __slots__ = ("_bytes", "_news", "_scheduled")

    def __init__(self) -> None:
        self._news: deque[Notice] = deque()
        self._bytes = 0
        self._scheduled = False

    def offer(self, item: Notice) -> bool:
        """Add news. True: nobody was told yet that there are some. Over the limit what waits makes room for Missed."""
        self._bytes += sum(map(len, item.frames)) if isinstance(item, Turn) else 0
        if self._bytes > _MOST_BYTES:
            self._news.clear()
            item = Missed()
        self._news.append(item)
        if self._scheduled:
            return False
        self._scheduled = True
        return True

    def take(self) -> Iterator[Notice]:
        """Remove all, the oldest first, those that come meanwhile too. On the reactor's thread."""
        self._scheduled = False  # before the queue is emptied: what comes later is announced again
        self._bytes = 0
        while self._news:
            try:
                yield self._news.popleft()
            except IndexError:  # it has just been cleared
                return
