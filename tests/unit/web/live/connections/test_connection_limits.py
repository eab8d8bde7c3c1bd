"""The addresses that count as one client, and the connections that the descriptors of a process allow."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyfold.web.live.connections.connection_limits import (
    ConnectionLimits,
    Room,
    TooManyConnections,
    make_room,
    needed_for,
    reserve_of,
)
from keyfold.web.settings import WebSettings


@pytest.mark.parametrize(
    ("first", "second", "one"),
    [
        ("2001:db8:1:2::1", "2001:db8:1:2:ffff::7", True),
        ("2001:db8:1:2::1", "2001:db8:1:3::1", False),
        ("2001:db8:1:2::1%eth0", "2001:db8:1:2::2", True),
        ("192.0.2.7", "::ffff:192.0.2.7", True),
        ("192.0.2.7", "192.0.2.8", False),
    ],
)
def test_a_client_is_an_address_or_half_of_one(first: str, second: str, *, one: bool) -> None:
    """A customer of an IPv6 provider has 2**64 addresses at least: those count as one."""
    connection_limits = ConnectionLimits(WebSettings(max_sockets_per_address=1))
    slot = connection_limits.enter(first, None)
    if one:
        with pytest.raises(TooManyConnections, match="your address"):
            connection_limits.enter(second, None)
        slot.leave()
    connection_limits.enter(second, None).leave()


@given(st.integers(1, 100_000))
def test_what_is_needed_is_enough(connections: int) -> None:
    """Under the limit that the log names all connections fit beside the reserve."""
    limit = needed_for(connections)
    assert limit - reserve_of(limit) >= connections


@given(st.integers(2, 2_000_000))
def test_something_is_always_left(descriptors: int) -> None:
    """For the server, the database and the app; a small limit allows a few connections as well."""
    assert 1 <= reserve_of(descriptors) <= descriptors // 2


def test_a_number_beyond_half_of_the_reserve_is_short() -> None:
    """No matter which code opened the others: the lowest free number shows it."""
    assert Room(1_000_000, 10).is_short is False
    assert Room(8, 10).is_short is True


def test_a_process_with_room_keeps_its_setting(caplog: pytest.LogCaptureFixture) -> None:
    """And says nothing."""
    assert make_room(10).connections == 10
    assert not caplog.records
