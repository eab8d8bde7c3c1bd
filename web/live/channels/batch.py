"""Frames on their way to all subscribers of a channel, joined once for any number of sockets."""

from __future__ import annotations

from collections.abc import Iterable
from functools import cached_property
from typing import NamedTuple, Self

from ....store import Position
from ..protocol.messages import heartbeat_message, resumed_message, snapshot_message
from ..protocol.websocket_frames import payload_of, text_frame

_MAX_JOINED_BYTES = 64 * 1024


class JoinedFrames(NamedTuple):
    """Bytes for one ``send``."""

    data: bytes
    frames: int
    """The number of frames in them, or of events."""


class Batch:
    """WebSocket frames of one kind, for consecutive versions that end at ``head``."""

    def __init__(self, event: str, frames: list[bytes], head: Position) -> None:
        self._event = event
        self._frames = frames
        self._head = head

    @classmethod
    def snapshot(cls, channel: str, position: Position, state: bytes, reason: str) -> Self:
        """Return a batch with a whole state, which is JSON."""
        return cls("snapshot", [text_frame(snapshot_message(channel, position, state, reason))], position)

    @classmethod
    def resumed(cls, channel: str, since: Position, head: Position) -> Self:
        """Return a batch with the message that the client missed nothing.

        Its id in an event stream is the client's own position, since the deltas follow.
        """
        frame = text_frame(resumed_message(channel, head, since.version))
        return cls("resumed", [frame], Position(head.epoch, since.version))

    @classmethod
    def heartbeat(cls, channel: str, head: Position) -> Self:
        """Return a batch with the position of a channel."""
        return cls("heartbeat", [text_frame(heartbeat_message(channel, head))], head)

    @cached_property
    def for_sockets(self) -> list[JoinedFrames]:
        """The frames as WebSocket traffic."""
        return list(_join(self._frames))

    @cached_property
    def for_streams(self) -> list[JoinedFrames]:
        """The frames as Server-Sent Events. The id of each event is the position after it."""
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


def _join(frames: list[bytes]) -> Iterable[JoinedFrames]:
    if sum(map(len, frames)) <= _MAX_JOINED_BYTES:
        yield JoinedFrames(b"".join(frames), len(frames))
        return
    joined: list[bytes] = []
    size = 0
    for frame in frames:
        if joined and size + len(frame) > _MAX_JOINED_BYTES:
            yield JoinedFrames(b"".join(joined), len(joined))
            joined, size = [], 0
        joined.append(frame)
        size += len(frame)
    yield JoinedFrames(b"".join(joined), len(joined))


def _one_line(payload: bytes) -> bytes:
    # A line break is white space in JSON, but would end an event. A stored state may have been written
    # elsewhere.
    return payload.replace(b"\n", b" ").replace(b"\r", b" ")
