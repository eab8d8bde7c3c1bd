"""The open connections of one hub."""

from __future__ import annotations

import socket
from collections.abc import Callable
from typing import Any

from keyfold.web.live.connections.connections import Connections
from keyfold.web.live.connections.event_stream import EventStream
from keyfold.web.live.hub import Hub
from support.parking import wait_until

Connect = Callable[..., tuple[Any, socket.socket]]


def test_numbers_are_not_used_twice(connect: Connect) -> None:
    """A connection that was removed is not found, and the next one gets a new number."""
    first, second = connect(EventStream)[0], connect(EventStream)[0]
    connections = Connections()
    connections.add(first)
    connections.remove(first)
    connections.add(second)
    assert (connections.find(1), connections.find(2), len(connections)) == (None, second, 1)


def test_the_newest_connections_are_described_with_a_few_keys(hub: Hub, connect: Connect) -> None:
    """Three keys are named and the others counted, and connections of other projections are left out."""
    connect(EventStream, "x", user="ann")
    connect(EventStream, *"abcde", user="bob")
    connect(EventStream, user="cid")
    wait_until(lambda: len(hub.connections) == 3)
    [found] = hub.connections.describe(hub.clock(), projection="test.totals", max_count=1)
    assert (found["user"], found["kind"], found["address"]) == ("bob", "EventStream", "192.0.2.7")
    assert (found["keys"], found["more_keys"]) == (["a", "b", "c"], 2)
    assert hub.connections.describe(hub.clock(), projection="other", max_count=9) == []


def test_a_sign_out_closes_the_connections_of_one_user(hub: Hub, connect: Connect) -> None:
    """The number of closed connections is returned, and others stay open."""
    connect(EventStream, user="ann")
    connect(EventStream, user="bob")
    wait_until(lambda: len(hub.connections) == 2)
    assert hub.disconnect("ann") == 1
    assert hub.disconnect("nobody") == 0
    assert [one.identity.user for one in hub.connections if one.is_open] == ["bob"]
