"""The newest deltas of one channel, so that a client that was away can catch up."""

from __future__ import annotations

from collections import deque
from itertools import islice

from ....store import Position
from ....store.rows import Head, differ
from ..settings import LiveSettings
from .inbox import Turn

NOWHERE = Position("", 0)
"""The position of a key that has no row: it takes the epoch of the first delta."""
NO_COMMIT = Head(*NOWHERE)
"""The same where a commit is asked for."""


class RecentDeltas:
    """Frames that lead from version ``head - n`` to ``head`` of one epoch, one a version, without a gap.

    Bounded in frames, bytes and seconds. Over a bound the oldest goes: whoever stood there needs a snapshot.
    """

    __slots__ = ("_bytes", "_frames", "_settings", "commit_id", "epoch", "version")

    def __init__(self, start: Head, settings: LiveSettings) -> None:
        self.epoch, self.version, self.commit_id = start
        self._frames: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._settings = settings

    @property
    def head(self) -> Position:
        """Where the newest frame leads."""
        return Position(self.epoch, self.version)

    @property
    def commit(self) -> Head:
        """The commit that the newest frame leads to."""
        return Head(self.epoch, self.version, self.commit_id)

    @property
    def size(self) -> int:
        """Bytes held."""
        return self._bytes

    def continues(self, epoch: str, base_version: int) -> bool:
        """Say whether deltas from this position on leave no gap behind the head."""
        return (self.epoch == epoch and base_version <= self.version) or (
            base_version == 0 and self.head == NOWHERE
        )

    def contradicts(self, turn: Turn) -> bool:
        """Say whether a turn of this epoch was committed in another history than what the ring holds.

        What it follows is another commit than the head, or what it leads to; or it was committed over the head, which
        was a commit of its own. One that ends before the head may just be late.
        """
        end = turn.base_version + len(turn.frames)
        return (
            turn.base_version < self.version < end
            or (turn.base_version == self.version and differ(turn.base_commit_id, self.commit_id))
            or (end == self.version and differ(turn.commit_id, self.commit_id))
        )

    def extend(self, turn: Turn, now: float) -> None:
        """Add the frames of a turn that follows the head."""
        frames = turn.frames
        self.epoch, self.commit_id = turn.epoch, turn.commit_id
        self.version += len(frames)
        for frame in frames[-self._settings.ring_frames :]:
            self._frames.append((now, frame))
            self._bytes += len(frame)
        self.trim(now)

    def trim(self, now: float) -> None:
        """Drop what is over a bound."""
        limits, kept = self._settings, self._frames
        oldest = now - limits.ring_seconds
        while kept and (
            len(kept) > limits.ring_frames or self._bytes > limits.ring_bytes or kept[0][0] < oldest
        ):
            self._bytes -= len(kept.popleft()[1])

    def clear(self) -> None:
        """Drop all frames. The head stays."""
        self._frames.clear()
        self._bytes = 0

    def since(self, position: Position) -> list[bytes] | None:
        """Return the frames from a position to the head, none for the head itself; None: it can't be said."""
        base_version = self.version - len(self._frames)
        # From nowhere only a frame leads on: of a key that was wiped meanwhile the epoch would not be told.
        begins_here = position == NOWHERE and base_version == 0 and bool(self._frames)
        known = self.epoch == position.epoch or begins_here
        if not known or not base_version <= position.version <= self.version:
            return None
        return [frame for _, frame in islice(self._frames, position.version - base_version, None)]
