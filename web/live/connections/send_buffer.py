"""The send buffer of one connection whose socket takes no more at the moment."""

from __future__ import annotations

from collections import deque
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from .subscription import Subscription


class Chunk(NamedTuple):
    """Bytes to send together. Without a subscription, an answer or a control frame: it is never dropped."""

    data: bytes | memoryview
    frames: int
    subscription: Subscription | None


class SendBuffer:
    """Two bounded queues: answers, and the frames of channels.

    Each has its own bound. A chunk that is partly sent may exceed it. Answers leave first, as an answer must
    not wait behind frames that the client did not ask for. They can't be replaced by a newer snapshot, so a
    client that asks and takes no answers has to be closed. A frame that a channel sends after an answer also
    leaves after it.
    """

    __slots__ = (
        "_answer_bytes",
        "_answers",
        "_begun",
        "_channel_bytes",
        "_channel_chunks",
        "_channel_frames",
    )

    def __init__(self) -> None:
        self._begun: Chunk | None = None
        """The rest of a chunk that is partly sent. It leaves before everything else."""
        self._answers: deque[Chunk] = deque()
        self._channel_chunks: deque[Chunk] = deque()
        # The chunk that is partly sent is counted here until it has left.
        self._answer_bytes = 0
        self._channel_bytes = self._channel_frames = 0

    def __bool__(self) -> bool:
        return bool(self._begun or self._answers or self._channel_chunks)

    @property
    def size(self) -> int:
        """The number of bytes that wait."""
        return self._channel_bytes + self._answer_bytes

    def fits(self, size: int, frames: int, max_frames: int, max_bytes: int) -> bool:
        """Return whether a chunk of a channel fits. The first one always does: snapshots may be large."""
        return not self._channel_frames or self.has_room(size, frames, max_frames, max_bytes)

    def has_room(self, size: int, frames: int, max_frames: int, max_bytes: int) -> bool:
        """Return whether so much of channels fits in several chunks."""
        return self._channel_frames + frames <= max_frames and self._channel_bytes + size <= max_bytes

    def fits_answer(self, size: int, max_answers: int, max_bytes: int) -> bool:
        """Return whether one more answer fits."""
        return len(self._answers) < max_answers and self._answer_bytes + size <= max_bytes

    def append(self, chunk: Chunk) -> None:
        """Add a chunk at the end of its queue."""
        if chunk.subscription is None:
            self._answers.append(chunk)
        else:
            self._channel_chunks.append(chunk)
        self._count(chunk, chunk.frames, len(chunk.data))

    def _count(self, chunk: Chunk, frames: int, size: int) -> None:
        if chunk.subscription is None:
            self._answer_bytes += size
        else:
            self._channel_frames += frames
            self._channel_bytes += size

    def first(self) -> bytes | memoryview:
        """Return the bytes to send next."""
        return (self._begun or (self._answers or self._channel_chunks)[0]).data

    def sent(self, count: int) -> None:
        """Remove so many of the bytes that ``first`` returns."""
        if not count:
            return
        chunk = self._begun or (self._answers or self._channel_chunks).popleft()
        is_whole = count == len(chunk.data)
        self._begun = None if is_whole else chunk._replace(data=memoryview(chunk.data)[count:])
        self._count(chunk, -chunk.frames if is_whole else 0, -count)

    def drop(self, subscription: Subscription | None = None) -> dict[Subscription, None]:
        """Drop the chunks of channels that are not partly sent.

        Args:
            subscription: Drop only the chunks of this one.

        Returns:
            The subscriptions that lost a chunk, in the order of their first one.
        """
        chunks, self._channel_chunks = self._channel_chunks, deque()
        losers: dict[Subscription, None] = {}
        for chunk in chunks:
            owner = chunk.subscription
            if owner is None or (subscription is not None and owner is not subscription):
                self._channel_chunks.append(chunk)
            else:
                losers[owner] = None
                self._count(chunk, -chunk.frames, -len(chunk.data))
        return losers
