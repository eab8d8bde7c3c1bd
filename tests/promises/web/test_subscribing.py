"""A subscription has one life in any order of messages, and each message has one answer."""

from __future__ import annotations

import json
import socket
from collections.abc import Callable
from random import Random
from typing import Any

import pytest
from flask import Flask
from keyfold.web import Keyfold
from keyfold.web.live.hub import Hub
from support.counting import Totals
from support.parking import Parking, wait_until
from support.raw_client import TEXT, client_frame
from support.serving import Site, Watcher, serve

PRIVATE = "projection.test.private."
PUBLIC = "projection.test.totals."


def hub_of(app: Flask) -> Hub:
    hub: Hub = app.extensions["keyfold"].hub
    return hub


class Gate:
    """Is ``authorize``: each key's calls park at places of their own, and answer as told there."""

    def __init__(self) -> None:
        self.parked: dict[str, list[Parking]] = {}
        self.answers: dict[str, list[bool]] = {}
        self.asked: list[str] = []

    def expect(self, key: str, *answers: bool) -> list[Parking]:
        """Let so many calls about a key park, and then answer so. Further ones are allowed at once."""
        self.answers[key] = list(answers)
        self.parked[key] = [Parking() for _ in answers]
        return list(self.parked[key])

    def __call__(self, _request: Any, _name: str, key: str) -> bool:
        self.asked.append(key)
        if not self.parked.get(key):
            return True
        answer = self.answers[key].pop(0)
        self.parked[key].pop(0).park()
        return answer


def talk(watcher: Watcher, **message: Any) -> list[dict[str, Any]]:
    """Send a message and return all frames up to the answer of a ping that follows it."""
    watcher.send(**message)
    watcher.send(type="ping")
    return until_pong(watcher)


def until_pong(watcher: Watcher) -> list[dict[str, Any]]:
    frames: list[dict[str, Any]] = []
    while (frame := watcher.next_of_many())["type"] != "pong":
        frames.append(frame)
    return frames


def test_unsubscribe_ends_a_subscription_that_is_being_checked(make_app: Callable[..., Flask]) -> None:
    """It is answered with unsubscribed, and the decision that comes later does nothing."""
    gate = Gate()
    [parking] = gate.expect("a", True)
    app = make_app(authorize=gate)
    with serve(app) as site:
        many = site.watch_many()
        many.send(type="subscribe", channel=PRIVATE + "a")
        parking.wait_for_arrival()
        [answer] = talk(many, type="unsubscribe", channel=PRIVATE + "a")
        assert answer == {"type": "unsubscribed", "channel": PRIVATE + "a"}
        parking.release()
        wait_until(lambda: hub_of(app).stats()["checks_running"] == 0)
        assert talk(many, type="ping") == []
        assert until_pong(many) == []
        assert hub_of(app).stats()["subscriptions"] == 0
        many.send(type="subscribe", channel=PRIVATE + "a")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        many.close()


@pytest.mark.parametrize("first_answer", [True, False])
@pytest.mark.parametrize("in_order", [True, False])
def test_a_decision_is_about_the_life_that_it_was_asked_for(
    make_app: Callable[..., Flask], *, first_answer: bool, in_order: bool
) -> None:
    """Subscribed again while the first check is under way: the second one decides, whichever comes first."""
    gate = Gate()
    first, second = gate.expect("a", first_answer, not first_answer)
    app = make_app(authorize=gate)
    with serve(app) as site:
        many = site.watch_many()
        many.send(type="subscribe", channel=PRIVATE + "a")
        first.wait_for_arrival()
        many.send(type="unsubscribe", channel=PRIVATE + "a")
        many.send(type="subscribe", channel=PRIVATE + "a")
        assert many.next_of_many()["type"] == "unsubscribed"
        second.wait_for_arrival()
        for parking in (first, second) if in_order else (second, first):
            running = hub_of(app).checks.running
            parking.release()
            wait_until(lambda running=running: hub_of(app).checks.running < running)  # type: ignore[misc]
            many.send(type="ping")
            told = [frame["type"] for frame in until_pong(many)]
            if parking is first:
                assert "error" not in told
                assert "subscribed" not in told
            else:
                assert told[0] == ("error" if first_answer else "subscribed")
        wait_until(lambda: hub_of(app).stats()["subscriptions"] == (0 if first_answer else 1))
        many.close()


def test_a_list_that_scrolls_leaves_nothing_behind(make_app: Callable[..., Flask]) -> None:
    """150 keys pass by while authorize is slow: no subscription is left, and the next one is live."""
    parking = Parking()

    def authorize(_request: Any, _name: str, _key: str) -> bool:
        parking.park()
        return True

    app = make_app(authorize=authorize)
    hub, now = hub_of(app), [0.0]
    hub.clock = lambda: now[0]
    with serve(app) as site:
        many = site.watch_many()
        for row in range(150):
            now[0] += 0.15  # as fast as a client may
            many.send(type="subscribe", channel=f"{PRIVATE}{row}")
            answers = talk(many, type="unsubscribe", channel=f"{PRIVATE}{row}")
            assert answers == [{"type": "unsubscribed", "channel": f"{PRIVATE}{row}"}]
        parking.release()
        wait_until(lambda: hub.stats()["checks_running"] == 0)
        many.send(type="subscribe", channel=PRIVATE + "last")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        assert hub.stats()["subscriptions"] == 1
        many.close()


def test_a_duplicate_is_told_whatever_it_calls_the_channel(make_app: Callable[..., Flask]) -> None:
    """Keys are compared, not texts, also while the first is still being checked; it is one subscription."""
    gate = Gate()
    [parking] = gate.expect("a", True)
    app = make_app(authorize=gate, KEYFOLD_MAX_CHANNELS_PER_SOCKET=2)
    with serve(app) as site:
        many = site.watch_many()
        again = {"type": "subscribe", "channel": "mine", "projection": "test.private", "key": "a"}
        many.send(type="subscribe", channel=PRIVATE + "a")
        parking.wait_for_arrival()
        [early] = talk(many, **again)
        parking.release()
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        [late] = talk(many, **again)
        for answer in (early, late):
            assert (answer["code"], answer["channel"]) == ("subscribed_already", PRIVATE + "a")
        many.send(type="subscribe", channel=PUBLIC + "b")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        [ended] = talk(many, type="unsubscribe", projection="test.private", key="a")
        assert ended == {"type": "unsubscribed", "channel": PRIVATE + "a"}
        many.close()


def test_what_is_being_checked_counts_as_a_channel(make_app: Callable[..., Flask]) -> None:
    """A socket has so many subscriptions, in any state; an unsubscribe makes room."""
    gate = Gate()
    parkings = [gate.expect(key, True)[0] for key in "ab"]
    app = make_app(authorize=gate, KEYFOLD_MAX_CHANNELS_PER_SOCKET=2)
    with serve(app) as site:
        many = site.watch_many()
        for key in "ab":
            many.send(type="subscribe", channel=PRIVATE + key)
        for parking in parkings:
            parking.wait_for_arrival()
        [refused] = talk(many, type="subscribe", channel=PUBLIC + "c")
        assert (refused["code"], refused["channel"]) == ("limit", PUBLIC + "c")
        many.send(type="unsubscribe", channel=PRIVATE + "a")
        assert many.next_of_many()["type"] == "unsubscribed"
        assert talk(many, type="subscribe", channel=PUBLIC + "c")[0]["type"] == "subscribed"
        for parking in parkings:
            parking.release()
        many.close()


def test_a_channel_s_text_may_mean_the_shorter_name(sqlite_url: str) -> None:
    """Subscribed by name and key apart, unsubscribed by the text that frames have."""

    class Longer(Totals):
        name = "test.totals.of"

    keyfold = Keyfold()
    keyfold.register(Totals())
    keyfold.register(Longer())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)
    with serve(app) as site:
        many = site.watch_many()
        many.send(type="subscribe", projection="test.totals", key="of.a")
        assert [many.next_of_many()["type"] for _ in range(2)] == ["subscribed", "snapshot"]
        assert talk(many, type="unsubscribe", channel=PUBLIC + "of.a")[0]["type"] == "unsubscribed"
        many.close()
    app.extensions["keyfold"].system.close()


def test_a_connection_that_breaks_by_the_answer_keeps_no_channel(make_app: Callable[..., Flask]) -> None:
    """It has ended when the channel would be joined."""
    app = make_app()
    hub = hub_of(app)

    with serve(app) as site:
        many = site.watch_many()
        wait_until(lambda: hub.stats()["open"] == 1)
        [connection] = hub.connections
        connection._sock.shutdown(socket.SHUT_WR)  # the next send is a broken pipe
        many.send(type="subscribe", channel=PUBLIC + "a")
        wait_until(lambda: hub.stats()["closed"] == 1)
        assert connection.subscriptions == {}
        assert hub.stats()["channels"] == 0
        many.close()


# -- errors


@pytest.mark.parametrize(
    ("message", "code"),
    [
        ({"type": "subscribe", "channel": PUBLIC + "a", "since": 5}, "malformed"),
        ({"type": "subscribe", "projection": "test.totals", "key": "a", "ticket": []}, "malformed"),
        (
            {"type": "subscribe", "channel": "mine", "projection": "test.totals", "key": "a", "since": "x"},
            "malformed",
        ),
        ({"type": 7, "channel": PUBLIC + "a"}, "malformed"),
        ({"type": "dance", "channel": PUBLIC + "a"}, "unknown_type"),
        ({"type": "resync", "channel": PUBLIC + "a"}, "not_subscribed"),
        ({"type": "unsubscribe", "projection": "test.totals", "key": "a"}, "not_subscribed"),
    ],
)  # fmt: skip
def test_an_error_names_the_channel_that_was_meant(site: Site, message: dict[str, Any], code: str) -> None:
    """So that a page can tell which of its watches it is about."""
    many = site.watch_many()
    [answer] = talk(many, **message)
    assert (answer["code"], answer["channel"]) == (code, PUBLIC + "a")
    many.close()


def test_an_error_echoes_no_more_than_a_channel_can_have(site: Site) -> None:
    """128 characters of name and 512 of key."""
    many = site.watch_many()
    for message in (
        {"type": "unsubscribe", "channel": "A" * 3900},
        {"type": "subscribe", "projection": "B" * 3000, "key": "C" * 900},
        {"type": "dance", "channel": "A" * 3900},
        {"type": 7, "channel": "A" * 3900},
    ):
        [answer] = talk(many, **message)
        assert len(answer["channel"]) == len("projection.") + 128 + len(".") + 512
        assert len(json.dumps(answer)) < 1200
    many.close()


def test_json_nested_too_deeply_is_malformed(
    site: Site, app: Flask, caplog: pytest.LogCaptureFixture
) -> None:
    """Said, counted, and no traceback in the log."""
    many = site.watch_many()
    for payload in ('{"type":"ping","x":' + "[" * 3000, '{"type":7,"x":' + '{"a":' * 700):
        many.socket.send(payload)
        assert many.next_of_many()["code"] == "malformed"
    assert hub_of(app).stats()["garbage"] == 2
    assert not caplog.records
    many.close()


# -- sizes


def test_the_largest_legal_subscribe_is_understood(make_app: Callable[..., Flask]) -> None:
    r"""512 characters, each a pair of \uXXXX, in channel, key and the ticket of a user of that length."""
    app = make_app()
    app.secret_key = "test"
    key = "".join(Random(1).choices([chr(code) for code in range(0x20000, 0x2A000)], k=512))
    with serve(app) as site:
        many = site.watch_many()
        ticket = app.extensions["keyfold"].access.ticket(app, "test.private", key, key)
        message = {
            "type": "subscribe", "channel": PRIVATE + key, "projection": "test.private", "key": key,
            "since": "e" * 64 + ":" + "9" * 18, "ticket": ticket,
        }  # fmt: skip
        assert 14_000 < len(json.dumps(message)) < 32 * 1024
        many.send(**message)
        assert many.next_of_many() == {"type": "subscribed", "channel": PRIVATE + key}
        many.close()


def test_a_message_in_many_small_fragments_is_one(site: Site) -> None:
    """4,000 of them, with other frames after it."""
    many = site.watch_many()
    text = json.dumps({"type": "subscribe", "channel": PUBLIC + "a", "x": "y" * 31_000}).encode()
    parts = [text[start : start + 8] for start in range(0, len(text), 8)]
    many.raw.sendall(
        b"".join(
            client_frame(0 if slot else TEXT, part, final=slot == len(parts) - 1)
            for slot, part in enumerate(parts)
        )
    )
    assert many.next_of_many()["type"] == "subscribed"
    many.close()


# -- resync


def test_a_resync_of_all_channels_counts_as_many(make_app: Callable[..., Flask]) -> None:
    """One frame may not ask for a hundred snapshots, 20 times a second; each channel by itself is fine."""
    app = make_app(KEYFOLD_MAX_CHANNELS_PER_SOCKET=20)
    with serve(app) as site:
        many = site.watch_many()
        for key in range(10):
            many.send(type="subscribe", channel=f"{PUBLIC}{key}")
            assert many.next_of_many()["type"] == "subscribed"
            assert many.next_of_many()["type"] == "snapshot"
        many.send(type="resync", channel=PUBLIC + "3")
        assert many.next_of_many()["reason"] == "resync"
        many.send(type="resync")
        assert {many.next_of_many()["channel"] for _ in range(10)} == {f"{PUBLIC}{key}" for key in range(10)}
        for _ in range(12):
            many.send(type="resync")
        assert many.close_code() == 4429
        assert hub_of(app).stats()["flooding"] == 1
        many.close()
