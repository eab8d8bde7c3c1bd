"""A hub without an app, and connections whose clients are the other ends of socket pairs."""

from __future__ import annotations

import socket
from collections.abc import Callable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from keyfold.actors import ProjectionSystem
from keyfold.web.live.connections.client_identity import ClientIdentity, Permission
from keyfold.web.live.connections.connection import Connection
from keyfold.web.live.hub import Hub
from keyfold.web.live.settings import LiveSettings
from support.counting import Totals
from support.parking import DEADLINE


@pytest.fixture
def hub() -> Iterator[Hub]:
    """A hub of a system in memory."""
    system = ProjectionSystem("sqlite://", tuning={"report_seconds": 0})
    system.register(Totals())
    hub = Hub(LiveSettings(max_channels_per_socket=2), system)
    yield hub
    hub.close(1.0)
    system.close()


@pytest.fixture
def connect(hub: Hub) -> Iterator[Callable[..., tuple[Any, socket.socket]]]:
    """Make connections of a class, which the hub adopts; the client's socket comes beside each."""
    with ExitStack() as stack:

        def make(
            kind: type[Connection], *wanted: str, user: str | None = None, **options: Any
        ) -> tuple[Any, socket.socket]:
            server, client = socket.socketpair()
            stack.enter_context(client)
            client.settimeout(DEADLINE)
            identity = ClientIdentity("192.0.2.7", user, lambda *_: Permission())
            slot = hub.connection_limits.enter("192.0.2.7", user)
            connection = kind(server, hub, identity, slot, **options)
            hub.adopt(connection, [("test.totals", key, None) for key in wanted])
            return connection, client

        yield make
