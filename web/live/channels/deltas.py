"""The deltas of one channel: on their way to it, in order, and the newest of them for clients that come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ....store import Head, Position, differ
from ..settings import LiveSettings

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


_MOST_EARLY = 64


class ReorderBuffer:
    """Keeps a few turns of one epoch until what leads to them has come."""

    __slots__ = ("_since", "_turns")

    def __init__(self) -> None:
        self._turns: dict[int, Turn] = {}
        self._since = 0.0

    def keep(self, turn: Turn, now: float) -> bool:
        """Keep a turn. False, and it is not kept: there are too many, or they are of another epoch."""
        if len(self._turns) >= _MOST_EARLY or any(kept.epoch != turn.epoch for kept in self._turns.values()):
            return False
        if not self._turns:
            self._since = now
        self._turns[turn.base_version] = turn
        return True

    def take(self, version: int | None = None) -> list[Turn]:
        """Return and remove, in order, the turns that begin at version or before it; all for None."""
        if not self._turns:
            return []
        due = sorted(base for base in self._turns if version is None or base <= version)
        return [self._turns.pop(base) for base in due]

    def waited(self, seconds: float, now: float) -> bool:
        """Say whether the oldest has waited for so long."""
        return bool(self._turns) and now - self._since >= seconds


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
