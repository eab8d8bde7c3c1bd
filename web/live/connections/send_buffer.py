"""What waits for one socket that takes no more just now."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from ..connections.subscription import Subscription


class Chunk(NamedTuple):
    """Bytes to be sent together. ``subscription`` None: an answer or a control frame, which is never dropped."""

    data: bytes | memoryview
    frames: int
    subscription: Subscription | None


class SendBuffer:
    """Two queues that never hold more than they may, but for what one send has begun.

    Answers and the frames of channels are bounded each by itself. Answers leave first, for nothing that is asked
    for may wait behind what nobody has asked for; and they can't be dropped for a newer one, so who asks and takes
    no answers has to be closed. What a channel sends after an answer comes after it all the same.
    """

    __slots__ = ("_answers", "_begun", "_bytes", "_bytes_of_answers", "_frames", "_of_channels")

    def __init__(self) -> None:
        self._begun: Chunk | None = None
        """The rest of what one send has begun: the next bytes, whatever waits."""
        self._answers: deque[Chunk] = deque()
        self._of_channels: deque[Chunk] = deque()
        self._bytes_of_answers = 0
        self._bytes = self._frames = 0
        """Of channels. Here and there what is begun is counted until it has left."""

    def __bool__(self) -> bool:
        return bool(self._begun or self._answers or self._of_channels)

    @property
    def size(self) -> int:
        """Bytes that wait."""
        return self._bytes + self._bytes_of_answers

    def fits(self, size: int, frames: int, most_frames: int, most_bytes: int) -> bool:
        """Say whether so much of channels may wait here. A lone chunk always may, a snapshot of any size for instance."""
        return not self._frames or self.has_room(size, frames, most_frames, most_bytes)

    def has_room(self, size: int, frames: int, most_frames: int, most_bytes: int) -> bool:
        """Say whether so much of channels may wait here in several chunks."""
        return self._frames + frames <= most_frames and self._bytes + size <= most_bytes

    def fits_answer(self, size: int, most_frames: int, most_bytes: int) -> bool:
        """Say whether one more answer may wait here."""
        return len(self._answers) < most_frames and self._bytes_of_answers + size <= most_bytes

    def append(self, chunk: Chunk) -> None:
        """Let it wait."""
        if chunk.subscription is None:
            self._answers.append(chunk)
        else:
            self._of_channels.append(chunk)
        self._count(chunk, chunk.frames, len(chunk.data))

    def _count(self, chunk: Chunk, frames: int, size: int) -> None:
        if chunk.subscription is None:
            self._bytes_of_answers += size
        else:
            self._frames += frames
            self._bytes += size

    def first(self) -> bytes | memoryview:
        """Return what is to be sent next."""
        return (self._begun or (self._answers or self._of_channels)[0]).data

    def sent(self, count: int) -> None:
        """Note that so many bytes of the first have left."""
        if not count:
            return
        chunk = self._begun or (self._answers or self._of_channels).popleft()
        whole = count == len(chunk.data)
        self._begun = None if whole else chunk._replace(data=memoryview(chunk.data)[count:])
        self._count(chunk, -chunk.frames if whole else 0, -count)

    def drop(self, subscription: Subscription | None = None) -> dict[Subscription, None]:
        """Drop what channels sent and is not begun, and return the subscriptions that lost something, in its order.

        With ``subscription`` given, only its own.
        """
        chunks, self._of_channels = self._of_channels, deque()
        losers: dict[Subscription, None] = {}
        for chunk in chunks:
            theirs = chunk.subscription
            if theirs is None or (subscription is not None and theirs is not subscription):
                self._of_channels.append(chunk)
            else:
                losers[theirs] = None
                self._count(chunk, -chunk.frames, -len(chunk.data))
        return losers
