"""The deltas of one channel: its inbox, the reorder buffer, and recent ones for clients that come back."""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator
from itertools import islice
from typing import NamedTuple

from ....store import Position
from ....store.rows import Head, differ
from ..settings import LiveSettings

NOWHERE = Position("", 0)
"""The position of a key without a row. The key takes the epoch of its first delta."""
NO_COMMIT = Head(*NOWHERE)
"""The same, as a commit."""

_MAX_INBOX_BYTES = 4 * 1024 * 1024
_MAX_EARLY = 64


class Deltas(NamedTuple):
    """The deltas of one commit as WebSocket frames, one per version. Positions and ids as in Committed."""

    epoch: str
    base_version: int
    frames: list[bytes]
    base_commit_id: str | None = None
    commit_id: str | None = None

    @property
    def base(self) -> Head:
        """The commit that the first delta follows."""
        return Head(self.epoch, self.base_version, self.base_commit_id)


class Replaced(NamedTuple):
    """A whole new state, as JSON: the key was rebuilt or wiped."""

    position: Position
    state: bytes
    reason: str


class Missed(NamedTuple):
    """A commit could not be published, or another process replaced the state: the row has to be read."""

    reason: str = "gap"


Notice = Deltas | Replaced | Missed
"""News of a commit on its way to a channel."""


class Inbox:
    """Takes notices from many threads to the reactor's. Holds at most 4 MiB."""

    __slots__ = ("_bytes", "_is_scheduled", "_notices")

    def __init__(self) -> None:
        self._notices: deque[Notice] = deque()
        self._bytes = 0
        self._is_scheduled = False

    def offer(self, notice: Notice) -> bool:
        """Add a notice. Over the bound, ``Missed`` takes the place of all that wait.

        Returns:
            Whether the caller has to schedule ``take``. If not, another caller has done so.
        """
        self._bytes += sum(map(len, notice.frames)) if isinstance(notice, Deltas) else 0
        if self._bytes > _MAX_INBOX_BYTES:
            self._notices.clear()
            notice = Missed()
        self._notices.append(notice)
        if self._is_scheduled:
            return False
        self._is_scheduled = True
        return True

    def take(self) -> Iterator[Notice]:
        """Remove and yield all notices in order, also those that arrive meanwhile. On one thread."""
        self._is_scheduled = False  # before the queue is emptied, so that a later notice is scheduled again
        self._bytes = 0
        while self._notices:
            try:
                yield self._notices.popleft()
            except IndexError:  # another thread has cleared it
                return


class ReorderBuffer:
    """Holds commits of one epoch that arrived before the commit they follow, which another process sends."""

    __slots__ = ("_deltas", "_since")

    def __init__(self) -> None:
        self._deltas: dict[int, Deltas] = {}
        self._since = 0.0

    def add(self, deltas: Deltas, now: float) -> bool:
        """Add a commit. Returns False if it was not added: the buffer is full, or holds another epoch."""
        if len(self._deltas) >= _MAX_EARLY or any(
            other.epoch != deltas.epoch for other in self._deltas.values()
        ):
            return False
        if not self._deltas:
            self._since = now
        self._deltas[deltas.base_version] = deltas
        return True

    def take(self, version: int | None = None) -> list[Deltas]:
        """Remove and return, in order, the commits that follow ``version`` or an earlier one. None: all."""
        if not self._deltas:
            return []
        due = sorted(base for base in self._deltas if version is None or base <= version)
        return [self._deltas.pop(base) for base in due]

    def has_waited(self, seconds: float, now: float) -> bool:
        """Return whether the oldest commit has waited for so long."""
        return bool(self._deltas) and now - self._since >= seconds


class RecentDeltas:
    """The frames of the versions from ``head - n`` to ``head`` of one epoch, without a gap.

    Bounded by number, bytes and age. Over a bound the oldest frame goes, and a client at its version needs a
    snapshot.
    """

    __slots__ = ("_bytes", "_frames", "_settings", "commit_id", "epoch", "version")

    def __init__(self, start: Head, settings: LiveSettings) -> None:
        self.epoch, self.version, self.commit_id = start
        self._frames: deque[tuple[float, bytes]] = deque()
        self._bytes = 0
        self._settings = settings

    @property
    def head(self) -> Position:
        """The position after the newest frame."""
        return Position(self.epoch, self.version)

    @property
    def commit(self) -> Head:
        """The commit of the newest frame."""
        return Head(self.epoch, self.version, self.commit_id)

    @property
    def size(self) -> int:
        """The number of bytes held."""
        return self._bytes

    def continues(self, epoch: str, base_version: int) -> bool:
        """Return whether deltas from this position on leave no gap after the head."""
        return (self.epoch == epoch and base_version <= self.version) or (
            base_version == 0 and self.head == NOWHERE
        )

    def contradicts(self, deltas: Deltas) -> bool:
        """Return whether a commit of this epoch belongs to another history than the frames here.

        It does if it follows another commit at the head's version, if it ends in another commit there, or if
        it spans the head, which was the end of a commit. One that ends before the head may just be late.
        """
        end = deltas.base_version + len(deltas.frames)
        return (
            deltas.base_version < self.version < end
            or (deltas.base_version == self.version and differ(deltas.base_commit_id, self.commit_id))
            or (end == self.version and differ(deltas.commit_id, self.commit_id))
        )

    def extend(self, deltas: Deltas, now: float) -> None:
        """Add the frames of a commit that follows the head. ``now`` is the hub's clock."""
        frames = deltas.frames
        self.epoch, self.commit_id = deltas.epoch, deltas.commit_id
        self.version += len(frames)
        for frame in frames[-self._settings.ring_frames :]:
            self._frames.append((now, frame))
            self._bytes += len(frame)
        self.trim(now)

    def trim(self, now: float) -> None:
        """Drop the frames over a bound."""
        settings, frames = self._settings, self._frames
        oldest = now - settings.ring_seconds
        while frames and (
            len(frames) > settings.ring_frames or self._bytes > settings.ring_bytes or frames[0][0] < oldest
        ):
            self._bytes -= len(frames.popleft()[1])

    def clear(self) -> None:
        """Drop all frames. The head stays."""
        self._frames.clear()
        self._bytes = 0

    def since(self, position: Position) -> list[bytes] | None:
        """Return the frames from a position to the head: none at the head itself.

        None means that the frames here do not start at the position, so that a snapshot is needed.
        """
        base_version = self.version - len(self._frames)
        # Without a frame, a client at NOWHERE can't be resumed: it would not learn the new epoch of a wiped
        # key.
        starts_here = position == NOWHERE and base_version == 0 and bool(self._frames)
        is_known = self.epoch == position.epoch or starts_here
        if not is_known or not base_version <= position.version <= self.version:
            return None
        return [frame for _, frame in islice(self._frames, position.version - base_version, None)]
