"""One subscriber of one channel: what waits for it, and where it stands."""

from __future__ import annotations

import threading
from collections import deque
from typing import NamedTuple

from ..store import Position

NOWHERE = Position("", 0)
"""The position of a key that has no row: it takes the epoch of the first delta."""


class Delta(NamedTuple):
    """The frame of one delta, which leads from version - 1 to version of its epoch."""

    epoch: str
    version: int
    frame: bytes


class Whole(NamedTuple):
    """The frame of a whole state that replaces all before it: a rebuild or a wipe."""

    position: Position
    frame: bytes


class Refresh(NamedTuple):
    """Read the row and send it as a snapshot, for this reason."""

    reason: str


class Close(NamedTuple):
    """End the connection with this code."""

    code: int
    reason: str


Item = Delta | Whole | Refresh | Close


class Subscriber:
    """An outbox that never holds more than it may, and the rules for what leaves it.

    ``offer`` is called by actors and never blocks: over the limit everything unsent is dropped for one
    newest snapshot. ``take`` is called by the one thread that sends.
    """

    def __init__(self, channel: str, *, most_frames: int, most_bytes: int) -> None:
        self.channel = channel
        self.position: Position | None = None
        """Where the client stands; None while the first snapshot is still to be read (*buffering*)."""
        self.overflows = 0
        self._most_frames = most_frames
        self._most_bytes = most_bytes
        self._items: deque[Item] = deque([Refresh("initial")])
        self._bytes = 0
        self._rung = False
        self._changed = threading.Condition()

    # -- the actors' side

    def offer(self, items: list[Delta] | list[Whole] | list[Refresh] | list[Close]) -> None:
        """Put items into the outbox, or what it holds aside for one snapshot if they are too many."""
        with self._changed:
            self._items.extend(items)
            self._bytes += sum(len(item.frame) for item in items if isinstance(item, (Delta, Whole)))
            if len(self._items) > self._most_frames or self._bytes > self._most_bytes:
                closing = [item for item in self._items if isinstance(item, Close)]
                self._items.clear()
                self._items.append(Refresh("initial" if self.position is None else "slow"))
                self._items.extend(closing)
                self._bytes = 0
                self.overflows += 1
            self._changed.notify()

    def ring(self) -> None:
        """Wake the sender for something that is not in the outbox: a message of the client, or its end."""
        with self._changed:
            self._rung = True
            self._changed.notify()

    # -- the sender's side

    def take(self, timeout: float) -> Item | None:
        """Return the next item. None: the timeout is over, or somebody rang."""
        with self._changed:
            if not self._changed.wait_for(lambda: self._items or self._rung, timeout):
                return None
            if self._rung:
                self._rung = False
                return None
            item = self._items.popleft()
            if isinstance(item, (Delta, Whole)):
                self._bytes -= len(item.frame)
            return item

    def accepts(self, item: Delta) -> bool | None:
        """Say whether a delta is what comes next (and step onto it): False, it is old; None, there is a gap."""
        here = self.position
        if here is None:
            return None
        epoch, version = item.epoch, item.version
        if here == (epoch, version - 1) or (here == NOWHERE and version == 1):
            self.position = Position(epoch, version)
            return True
        if here.epoch == epoch and version <= here.version:
            return False
        return None
