"""The send buffer: answers before frames of channels, and bounds for each."""

from __future__ import annotations

from typing import Any

from keyfold.web.live.connections.send_buffer import Chunk, SendBuffer

ONE: Any = object()
OTHER: Any = object()


def sent(buffer: SendBuffer) -> list[bytes]:
    """Send all, and return the pieces."""
    pieces = []
    while buffer:
        data = bytes(buffer.first())
        pieces.append(data)
        buffer.sent(len(data))
    return pieces


def test_answers_leave_first_but_not_before_the_rest_of_a_begun_chunk() -> None:
    """A frame is not torn apart."""
    buffer = SendBuffer()
    buffer.append(Chunk(b"frame", 1, ONE))
    buffer.sent(2)
    buffer.append(Chunk(b"next", 1, ONE))
    buffer.append(Chunk(b"answer", 1, None))
    assert buffer.size == 3 + 4 + 6
    assert sent(buffer) == [b"ame", b"answer", b"next"]
    assert buffer.size == 0


def test_the_first_chunk_of_a_channel_fits_whatever_its_size() -> None:
    """The next one has to fit beside it, in frames and in bytes."""
    buffer = SendBuffer()
    assert buffer.fits(1_000, 1, max_frames=2, max_bytes=10)
    assert not buffer.has_room(1_000, 1, max_frames=2, max_bytes=10)
    buffer.append(Chunk(b"12345", 1, ONE))
    assert buffer.fits(5, 1, max_frames=2, max_bytes=10)
    assert not buffer.fits(6, 1, max_frames=2, max_bytes=10)
    assert not buffer.fits(1, 2, max_frames=2, max_bytes=10)


def test_answers_have_bounds_of_their_own() -> None:
    """In number and in bytes."""
    buffer = SendBuffer()
    buffer.append(Chunk(b"x" * 100, 50, ONE))
    assert buffer.fits_answer(5, max_answers=2, max_bytes=5)
    buffer.append(Chunk(b"12345", 1, None))
    assert not buffer.fits_answer(1, max_answers=2, max_bytes=5)
    assert not buffer.fits_answer(0, max_answers=1, max_bytes=5)


def test_dropped_are_the_frames_that_are_not_begun() -> None:
    """Of one subscription or of all; answers stay."""
    buffer = SendBuffer()
    for data, subscription in ((b"1", ONE), (b"2", OTHER), (b"3", ONE), (b"answer", None)):
        buffer.append(Chunk(data, 1, subscription))
    assert list(buffer.drop(ONE)) == [ONE]
    assert list(buffer.drop()) == [OTHER]
    assert sent(buffer) == [b"answer"]
    buffer.append(Chunk(b"begun", 1, ONE))
    buffer.sent(1)
    assert buffer.drop() == {}
    assert sent(buffer) == [b"egun"]
