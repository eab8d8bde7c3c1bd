"""WebSocket connections: the errors that clients get, and the allowance of frames."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from typing import Any

import pytest
from keyfold.web.live.connections.websocket import WebSocketConnection
from keyfold.web.live.hub import Hub
from support.raw_client import CLOSE, TEXT, client_frame

Connect = Callable[..., tuple[Any, socket.socket]]


def next_frame(client: socket.socket) -> tuple[int, bytes]:
    """The opcode and payload of the next frame of the server."""
    first, size = client.recv(2, socket.MSG_WAITALL)
    if size == 126:
        size = int.from_bytes(client.recv(2, socket.MSG_WAITALL), "big")
    return first & 15, client.recv(size, socket.MSG_WAITALL) if size else b""


def ask(client: socket.socket, **message: Any) -> dict[str, Any]:
    """Send a message, and return the answer."""
    client.sendall(client_frame(TEXT, json.dumps(message).encode()))
    answer: dict[str, Any] = json.loads(next_frame(client)[1])
    return answer


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "other"}, "unknown_type"),
        ({"no": "type"}, "malformed"),
        ({"type": "unsubscribe", "projection": "test.totals", "key": "a"}, "not_subscribed"),
        ({"type": "resync", "channel": "projection.test.totals.a"}, "not_subscribed"),
        ({"type": "subscribe", "channel": "projection.none.a"}, "unknown_projection"),
        ({"type": "subscribe", "channel": "projection.test.totals.a", "since": "?"}, "malformed"),
    ],
)
def test_each_wrong_message_has_its_error(connect: Connect, message: dict[str, Any], code: str) -> None:
    """The connection stays open and answers the next message."""
    _, client = connect(WebSocketConnection, many=True)
    answer = ask(client, **message)
    assert (answer["type"], answer["code"]) == ("error", code)
    assert ask(client, type="ping") == {"type": "pong"}


def test_a_socket_of_one_channel_names_no_others(connect: Connect) -> None:
    """Without ``many`` a client can't subscribe by a message."""
    _, client = connect(WebSocketConnection, many=False)
    answer = ask(client, type="subscribe", channel="projection.test.totals.a")
    assert answer["code"] == "unknown_type"


def test_frames_beyond_the_allowance_close_the_socket(hub: Hub, connect: Connect) -> None:
    """The burst is 20 frames and one per channel; more in the same moment is flooding."""
    _, client = connect(WebSocketConnection, many=True)
    hub.clock = lambda: 0.0
    client.sendall(client_frame(TEXT, b'{"type":"ping"}') * 60)
    opcodes = []
    while (frame := next_frame(client))[0] != CLOSE:
        opcodes.append(frame)
    assert int.from_bytes(frame[1][:2], "big") == 4429
    assert len(opcodes) <= 22
    assert hub.counts["flooding"] == 1
