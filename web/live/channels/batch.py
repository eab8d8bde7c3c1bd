"""Frames on their way to everyone who watches a channel: joined once, whatever the number of sockets."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, Self

from ....store import Position
from ..protocol.messages import heartbeat_message, resumed_message, snapshot_message
from ..protocol.websocket_frames import payload_of, text_frame

_MOST_TOGETHER = 64 * 1024


class Piece(NamedTuple):
    """Bytes for one ``send``, and the number of whole frames in them."""

    data: bytes
    frames: int


class Batch:
    """WebSocket frames of one kind, of consecutive versions that end at ``head``."""

    def __init__(self, event: str, frames: list[bytes], head: Position) -> None:
        self._event = event
        self._frames = frames
        self._head = head

    @classmethod
    def snapshot(cls, channel: str, position: Position, state: bytes, reason: str) -> Self:
        """Hold a whole state, which is JSON."""
        return cls("snapshot", [text_frame(snapshot_message(channel, position, state, reason))], position)

    @classmethod
    def resumed(cls, channel: str, since: Position, head: Position) -> Self:
        """Hold the word that nothing is missing. Its id in a stream is where the client was: deltas follow."""
        frame = text_frame(resumed_message(channel, head, since.version))
        return cls("resumed", [frame], Position(head.epoch, since.version))

    @classmethod
    def heartbeat(cls, channel: str, head: Position) -> Self:
        """Hold the position of a channel."""
        return cls("heartbeat", [text_frame(heartbeat_message(channel, head))], head)

    @cached_property
    def for_sockets(self) -> list[Piece]:
        """As WebSocket traffic."""
        return list(_join(self._frames))

    @cached_property
    def for_streams(self) -> list[Piece]:
        """As Server-Sent Events. The id of each is the position that it leads to."""
        first = self._head.version - len(self._frames) + 1
        return list(
            _join(
                [
                    b"id: %b:%d\nevent: %b\ndata: %b\n\n"
                    % (self._head.epoch.encode(), version, self._event.encode(), _one_line(payload_of(frame)))
                    for version, frame in enumerate(self._frames, first)
                ]
            )
        )


def _join(frames: list[bytes]) -> Iterable[Piece]:
    if sum(map(len, frames)) <= _MOST_TOGETHER:
        yield Piece(b"".join(frames), len(frames))
        return
    together: list[bytes] = []
    size = 0
    for frame in frames:
        if together and size + len(frame) > _MOST_TOGETHER:
            yield Piece(b"".join(together), len(together))
            together, size = [], 0
        together.append(frame)
        size += len(frame)
    yield Piece(b"".join(together), len(together))


def _one_line(payload: bytes) -> bytes:
    # A line break is white space in JSON, and would end an event here. States are stored as others wrote them.
    return payload.replace(b"\n", b" ").replace(b"\r", b" ")
