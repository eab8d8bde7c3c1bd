"""The client's decisions: which messages are changes, when a snapshot is needed, and how long it pauses."""

from __future__ import annotations

from typing import Any

import pytest
from keyfold.store import Position
from keyfold.web import client as client_module
from keyfold.web.client import Change, Refused, Watch, _Message
from websockets.exceptions import ConnectionClosedError
from websockets.frames import Close


class Recording:
    """A connection that records the messages of the client."""

    def __init__(self) -> None:
        self.sent: list[str] = []

    def send(self, message: str) -> None:
        self.sent.append(message)


def snapshot(version: int, epoch: str = "e") -> _Message:
    return _Message("snapshot", epoch, version, state=version)


def delta(version: int, epoch: str = "e", prev: int | None = None) -> _Message:
    return _Message("delta", epoch, version, version - 1 if prev is None else prev, data=version)


def make_watch(**options: Any) -> Watch:
    return Watch("https://shop.example/live/", "shop.sales", "a/b", **options)


def play(watch: Watch, *messages: _Message) -> tuple[list[Change | None], list[str]]:
    """Return the changes that these messages are, and the messages that the client has sent."""
    connection: Any = Recording()
    return [watch._apply(connection, message) for message in messages], connection.sent


def versions(changes: list[Change | None]) -> list[tuple[bool, int] | None]:
    return [None if one is None else (one.is_snapshot, one.position.version) for one in changes]


def test_each_change_is_returned_once_and_in_order() -> None:
    """A delta that the watch has already is not returned, and no snapshot is asked for."""
    changes, sent = play(make_watch(), snapshot(3), delta(4), delta(4), delta(5), delta(3))
    assert versions(changes) == [(True, 3), (False, 4), None, (False, 5), None]
    assert sent == []


def test_a_gap_asks_for_one_snapshot() -> None:
    """Also when more deltas arrive before it; after it, the deltas count again."""
    watch = make_watch()
    changes, sent = play(watch, snapshot(3), delta(5), delta(6), snapshot(6), delta(7))
    assert versions(changes) == [(True, 3), None, None, (True, 6), (False, 7)]
    assert (sent, watch.position) == ([client_module._RESYNC], Position("e", 7))


@pytest.mark.parametrize(("version", "epoch", "resyncs"), [(3, "e", 0), (4, "e", 1), (3, "f", 1)])
def test_a_heartbeat_at_another_position_asks_for_a_snapshot(version: int, epoch: str, resyncs: int) -> None:
    """A delta was lost, or the key was rebuilt."""
    _, sent = play(make_watch(), snapshot(3), _Message("heartbeat", epoch, version))
    assert len(sent) == resyncs


def test_the_first_delta_of_a_key_without_a_row_has_a_new_epoch() -> None:
    """The key has no position before it."""
    changes, sent = play(make_watch(), snapshot(0, ""), delta(1, "e", 0))
    assert (versions(changes), sent) == ([(True, 0), (False, 1)], [])


def test_the_url_is_that_of_the_app_with_a_socket_s_scheme() -> None:
    """Below the app's prefix, with a key of any characters."""
    assert make_watch()._url == ("wss", "shop.example", "/live/ws/projection/shop.sales/a%2Fb")


def test_pauses_double_up_to_a_bound_and_start_small_again(monkeypatch: pytest.MonkeyPatch) -> None:
    """After half a minute without another pause."""
    now = 1000.0
    monkeypatch.setattr(client_module, "monotonic", lambda: now)
    monkeypatch.setattr("keyfold.web.client.random.random", lambda: 1.0)
    watch, pauses = make_watch(), []
    for _ in range(6):
        watch._pause()
        pauses.append(watch._due - now)
        now = watch._due
    assert pauses == [2, 4, 8, 16, 30, 30]
    now += 31
    watch._pause()
    assert watch._due - now == 2


def closed(code: int) -> ConnectionClosedError:
    return ConnectionClosedError(Close(code, "no"), None)


def test_a_refusal_is_final_without_a_ticket() -> None:
    """Another close is followed by another connection."""
    watch = make_watch()
    watch._on_closed(closed(1012))
    with pytest.raises(Refused) as caught:
        watch._on_closed(closed(4403))
    assert caught.value.status == 4403


def test_the_end_of_a_ticket_s_time_is_not_a_failure(monkeypatch: pytest.MonkeyPatch) -> None:
    """The next connection follows soon. A refusal right after the start is a failure, with its pause."""
    now = 1000.0
    monkeypatch.setattr(client_module, "monotonic", lambda: now)
    monkeypatch.setattr("keyfold.web.client.random.random", lambda: 1.0)
    watch = make_watch(ticket=lambda: "ticket")
    watch._opened_at = now - 30
    watch._on_closed(closed(4401))
    assert watch._due - now == 0.5
    watch._opened_at = now
    watch._on_closed(closed(4401))
    assert watch._due - now == 2
