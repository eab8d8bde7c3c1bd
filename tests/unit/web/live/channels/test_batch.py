"""Batches: joined for sockets and for streams."""

from __future__ import annotations

from keyfold.store import Position
from keyfold.web.live.channels.batch import Batch
from keyfold.web.live.protocol.websocket_frames import text_frame


def test_frames_are_joined_up_to_64_kibibytes() -> None:
    """A larger frame goes alone; none is lost, and the order stays."""
    frames = [text_frame(b"x" * size) for size in (10, 20, 40_000, 40_000, 100_000, 5)]
    joined = Batch("delta", frames, Position("e", 6)).for_sockets
    assert b"".join(data for data, _ in joined) == b"".join(frames)
    assert [count for _, count in joined] == [3, 1, 1, 1]


def test_each_event_of_a_stream_has_the_position_after_it() -> None:
    """And a state with line breaks is still one line."""
    batch = Batch("delta", [text_frame(b'{"a":\n1}'), text_frame(b'{"b":2}')], Position("e", 7))
    [(data, count)] = batch.for_streams
    assert count == 2
    assert data == b'id: e:6\nevent: delta\ndata: {"a": 1}\n\nid: e:7\nevent: delta\ndata: {"b":2}\n\n'


def test_the_id_of_a_resumed_stream_is_the_position_of_its_client() -> None:
    """The deltas follow: a client that leaves before them has to get them again."""
    [(data, _)] = Batch.resumed("projection.x.a", Position("e", 3), Position("e", 9)).for_streams
    assert data.startswith(b"id: e:3\nevent: resumed\n")
    assert b'"version":9,"from":3' in data
