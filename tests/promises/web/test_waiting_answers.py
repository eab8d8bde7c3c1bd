"""All bytes that wait for a client are bounded, answers too; and a stream reads nothing from its client."""

from __future__ import annotations

import http.client
import json
import socket
from collections.abc import Callable, Iterator

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web.live.connections.client_identity import ClientIdentity
from keyfold.web.live.connections.connection_limits import ConnectionLimits
from keyfold.web.live.connections.websocket import WebSocketConnection
from keyfold.web.live.hub import Hub
from keyfold.web.settings import WebSettings
from support.parking import DEADLINE, wait_until
from support.raw_client import PING, PONG, TEXT, RawClient, client_frame
from support.serving import serve

LIMIT = WebSettings().outbox_bytes


class Talker:
    """A client that never reads, over a pipe of a few kilobytes, and as fast as its allowance lets it."""

    def __init__(self) -> None:
        self.now = 0.0
        self.hub = Hub(
            WebSettings(), ProjectionSystem("sqlite://", tuning={"report_seconds": 0}), clock=lambda: self.now
        )
        ours, theirs = socket.socketpair()
        for sock in (ours, theirs):
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_SNDBUF, 4096)
        identity = ClientIdentity("test", None, lambda _name, _key, _ticket: None)
        slot = ConnectionLimits(self.hub.settings).enter("test", None)
        self.connection = WebSocketConnection(theirs, self.hub, identity, slot, many=True)
        self.hub.adopt(self.connection)
        self.client = RawClient(ours)
        self.most_bytes = 0

    def talk(self, frame: bytes, count: int) -> None:
        """Say it so many times, or until the server has closed, and note how much has waited meanwhile."""
        for _ in range(count):
            self.now += 0.05
            try:
                self.client.send(frame)
            except OSError:
                return
            self.most_bytes = max(self.most_bytes, self.connection.waiting_bytes)

    def stalled(self) -> bool:
        return self.hub.counts["stalled"] == 1


@pytest.fixture
def talker() -> Iterator[Talker]:
    talker = Talker()
    yield talker
    talker.client.close()
    talker.hub.close()


def test_a_client_that_asks_and_takes_no_answers_is_closed(talker: Talker) -> None:
    """With 4101, as soon as its answers are as many bytes as may wait; it never was over its allowance."""
    question = json.dumps({"type": "unsubscribe", "channel": "\U0001f600" * 700}, ensure_ascii=False).encode()
    talker.talk(client_frame(TEXT, question), 4_000)
    wait_until(talker.stalled)
    assert talker.most_bytes <= LIMIT
    assert talker.hub.stats()["flooding"] == 0
    assert talker.client.close_code() == 4101


def test_answers_are_counted_as_well_as_measured(talker: Talker) -> None:
    """A pong of two bytes costs a hundred: 164 of them may wait."""
    for _ in range(400):
        talker.talk(client_frame(PING), 20)
        send_buffer = talker.connection._send_buffer
        assert send_buffer is None or len(send_buffer._answers) <= 164 + 1
    wait_until(talker.stalled)
    assert talker.client.close_code() == 4101


def test_answers_that_are_taken_may_be_any_number(talker: Talker) -> None:
    """A page that reads is not meant."""
    for number in range(500):
        talker.talk(client_frame(PING, b"%d" % number), 1)
        if number % 100 == 99:
            assert [talker.client.frame()[1] for _ in range(100)] == [
                b"%d" % said for said in range(number - 99, number + 1)
            ]
    assert talker.connection.is_open


def test_the_answer_to_a_ping_of_ours_is_free(talker: Talker) -> None:
    """One for each: a pong that nobody asked for is a frame like any other."""
    for _ in range(200):
        talker.hub.reactor.call(talker.connection.ping)
        assert talker.client.frame() == (PING, b"")
        talker.client.send(client_frame(PONG))
    talker.client.send(client_frame(PING, b"still here?"))
    assert talker.client.frame() == (PONG, b"still here?")
    talker.client.send(client_frame(PONG) * 200)
    assert talker.client.close_code() == 4429


def test_a_stream_whose_client_talks_is_ended(make_app: Callable[..., Flask]) -> None:
    """It is counted, its place is free, and nothing more is read from it."""
    app = make_app()
    hub: Hub = app.extensions["keyfold"].hub
    with serve(app) as site:
        connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        connection.request("GET", "/sse/projection/test.totals/a")
        sock = connection.sock
        answer = connection.getresponse()
        assert answer.readline().startswith(b"retry")
        sock.sendall(b"x" * 1000)
        wait_until(lambda: hub.stats()["closed"] == 1)
        assert hub.stats()["garbage"] == 1
        answer.close()
        connection.close()
