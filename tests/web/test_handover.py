"""How a connection leaves the server's hands."""

from __future__ import annotations

import json
import os
import socket
import ssl
from collections.abc import Iterator

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web import Hub, handover
from support.counting import Added
from support.parking import DEADLINE
from support.serving import serve

BLOB = "x" * 50_000


@pytest.fixture
def pair() -> Iterator[tuple[socket.socket, socket.socket]]:
    client, server = socket.socketpair()
    client.settimeout(DEADLINE)
    yield client, server
    client.close()
    server.close()


def test_what_the_server_does_afterwards_hits_nothing(pair: tuple[socket.socket, socket.socket]) -> None:
    """It shuts down, writes and closes; the connection goes on."""
    client, server = pair
    with handover.take_over(server) as ours:
        with pytest.raises(OSError, match="Broken pipe"):
            server.sendall(b"HTTP/1.1 200 OK")
        server.shutdown(socket.SHUT_RDWR)
        server.close()
        ours.sendall(b"frame")
        assert client.recv(100) == b"frame"
    assert client.recv(100) == b""


def test_without_descriptors_nothing_changes_hands(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The server still has its socket, to say that it failed."""
    client, server = pair

    def none_left(*_: object) -> int:
        raise OSError(24, "Too many open files")

    for name, module in (("socketpair", socket), ("dup", os)):
        with monkeypatch.context() as patch:
            patch.setattr(module, name, none_left)
            with pytest.raises(OSError, match="Too many"):
                handover.take_over(server)
        server.sendall(name.encode())
        assert client.recv(100) == name.encode()


def test_only_a_plain_socket_is_taken_over(
    pair: tuple[socket.socket, socket.socket], monkeypatch: pytest.MonkeyPatch
) -> None:
    """One of TLS is more than its descriptor; one that does not survive its server is carried."""
    _, server = pair
    assert handover.raw_socket({"gunicorn.socket": server}) is server
    assert handover.raw_socket({}) is None
    context = ssl.create_default_context()
    context.check_hostname = False
    with context.wrap_socket(server.dup(), do_handshake_on_connect=False) as secure:
        assert handover.raw_socket({"gunicorn.socket": secure}) is None
    monkeypatch.setattr(handover, "_survives_its_server", lambda: False)
    assert handover.raw_socket({"gunicorn.socket": server}) is None


def test_a_connection_that_can_t_be_taken_over_is_carried(
    app: Flask, system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The same frames, by way of the request's thread; both ends end it."""
    monkeypatch.setattr(handover, "_survives_its_server", lambda: False)
    hub: Hub = app.extensions["keyfold"].hub
    with serve(app) as site:
        first, second = site.watch("test.totals", "a"), site.watch("test.totals", "a")
        for watcher in (first, second):
            assert watcher.next()["version"] == 0
        for version in range(1, 50):
            system.bus.dispatch(Added("a", 1, lambda _state: {"blob": BLOB})).result(DEADLINE)
            assert first.next()["version"] == second.next()["version"] == version
        assert hub.stats()["carried"] == 2
        first.close()
        status, _, text = site.request("/projection/test.totals/a")
        assert (status, json.loads(text)["version"]) == (200, 49)
        hub.close()
        assert second.close_code() == 1001
        second.close()
