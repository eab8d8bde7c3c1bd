"""What waits for one socket that takes no more just now."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .subscription import Subscription


class Chunk(NamedTuple):
    """Bytes to be sent together. ``subscription`` None: an answer or a control frame, which is never dropped."""

    data: bytes | memoryview
    frames: int
    subscription: Subscription | None


class Outbox:
    """A queue that never holds more than it may, but for what one send has begun.

    Answers are counted apart from the frames of channels: they can't be dropped for a newer one, so who
    asks and takes no answers has to be closed.
    """

    __slots__ = ("_answers", "_begun", "_bytes", "_bytes_of_answers", "_chunks", "_frames")

    def __init__(self) -> None:
        self._chunks: deque[Chunk] = deque()
        self._bytes = 0
        self._frames = 0
        self._answers = 0
        self._bytes_of_answers = 0
        self._begun = False

    def __bool__(self) -> bool:
        return bool(self._chunks)

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._bytes

    def fits(self, data: bytes, frames: int, most_frames: int, most_bytes: int) -> bool:
        """Say whether data may wait here. A lone one always may, a snapshot of any size for instance."""
        if not self._chunks:
            return True
        return self._frames + frames <= most_frames and self._bytes + len(data) <= most_bytes

    def fits_answer(self, data: bytes, most_frames: int, most_bytes: int) -> bool:
        """Say whether one more answer may wait here."""
        return self._answers < most_frames and self._bytes_of_answers + len(data) <= most_bytes

    def append(self, chunk: Chunk) -> None:
        """Let it wait."""
        self._chunks.append(chunk)
        self._count(chunk, chunk.frames, len(chunk.data))

    def _count(self, chunk: Chunk, frames: int, size: int) -> None:
        self._frames += frames
        self._bytes += size
        if chunk.subscription is None:
            self._answers += frames
            self._bytes_of_answers += size

    def first(self) -> bytes | memoryview:
        """Return what is to be sent next."""
        return self._chunks[0].data

    def sent(self, count: int) -> None:
        """Note that so many bytes of the first have left."""
        chunk = self._chunks[0]
        whole = count == len(chunk.data)
        self._count(chunk, -chunk.frames if whole else 0, -count)
        if whole:
            self._chunks.popleft()
            self._begun = False
        elif count:
            self._chunks[0] = chunk._replace(data=memoryview(chunk.data)[count:])
            self._begun = True

    def drop(self, subscription: Subscription | None = None) -> set[Subscription]:
        """Drop what is not begun and no control frame, and return the subscriptions that lost something.

        With ``subscription`` given, only its own.
        """
        chunks, self._chunks = self._chunks, deque()
        self._frames = self._bytes = self._answers = self._bytes_of_answers = 0
        losers: set[Subscription] = set()
        for place, chunk in enumerate(chunks):
            theirs = chunk.subscription
            begun = self._begun and place == 0
            if theirs is None or begun or (subscription is not None and theirs is not subscription):
                self.append(chunk)
            else:
                losers.add(theirs)
        return losers
