"""Event streams: the client sends nothing, and a close sends no bytes."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from keyfold.web.live.connections.event_stream import EventStream
from keyfold.web.live.hub import Hub

Connect = Callable[..., tuple[Any, socket.socket]]


def rest_of(client: socket.socket) -> bytes:
    """Everything that the client gets until the end."""
    data = b""
    while part := client.recv(4096):
        data += part
    return data


def test_a_client_that_sends_bytes_is_ended(hub: Hub, connect: Connect) -> None:
    """Its bytes count as garbage."""
    _, client = connect(EventStream)
    client.sendall(b"x")
    assert rest_of(client) == b""
    assert hub.counts["garbage"] == 1


def test_a_ping_is_a_comment(hub: Hub, connect: Connect) -> None:
    """A browser ignores it, and a close after it adds nothing."""
    stream, client = connect(EventStream)
    hub.reactor.call(stream.ping)
    hub.reactor.call(stream.close, 1001, "the end")
    assert rest_of(client) == b":\n\n"


def test_a_subscription_begins_with_a_snapshot_event(connect: Connect) -> None:
    """The frames are events, not WebSocket frames."""
    _, client = connect(EventStream, "a")
    data = client.recv(4096)
    assert b'"type":"snapshot"' in data
    assert b"data: " in data
    assert data.endswith(b"\n\n")
