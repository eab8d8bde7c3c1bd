"""Any order of messages and of the app's decisions leaves the subscriptions that the client wanted last."""

from __future__ import annotations

import json
import queue
import socket
import threading
from collections import deque
from tempfile import TemporaryDirectory
from typing import Any

from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, precondition, rule
from keyfold.actors import ProjectionSystem
from keyfold.web.live.connections.client_identity import ClientIdentity, Permission
from keyfold.web.live.connections.connection_limits import ConnectionLimits
from keyfold.web.live.connections.websocket import WebSocketConnection
from keyfold.web.live.hub import Hub
from keyfold.web.settings import WebSettings
from support.counting import Added, Totals
from support.parking import DEADLINE, wait_until
from support.raw_client import CLOSE, PING, PONG, TEXT, RawClient, client_frame

CHECKED, OPEN = "test.checked", "test.totals"
AT_ONCE, MOST = 2, 3
Address = tuple[str, str]
ADDRESSES = st.sampled_from([(CHECKED, "a"), (CHECKED, "b"), (CHECKED, "c"), (OPEN, "a")])


class Checked(Totals):
    """Somebody has to be asked."""

    name = CHECKED
    public = False


class Call:
    """One call of ``authorize``, which waits for the answer that the test gives."""

    def __init__(self, key: str) -> None:
        self.key = key
        self.is_taken = False
        self._answered = threading.Event()
        self._answer = False

    def answer(self, *, may: bool) -> None:
        self._answer = may
        self._answered.set()

    def wait(self) -> Permission | None:
        assert self._answered.wait(DEADLINE), "nobody answered"
        self.is_taken = True
        return Permission() if self._answer else None


class Life:
    """One life of a subscription."""

    def __init__(self, address: Address, *, is_live: bool) -> None:
        self.address = address
        self.is_live = is_live


class AnyOrder(RuleBasedStateMachine):
    """One socket of a real hub over a real system, and a model of it: a handful of lines."""

    def __init__(self) -> None:
        super().__init__()
        self.directory = TemporaryDirectory()
        settings = WebSettings(max_channels_per_socket=MOST, reauthorize_seconds=0)
        self.now = 0.0
        self.system = ProjectionSystem(f"sqlite:///{self.directory.name}/k.db")
        self.hub = Hub(settings, self.system, clock=self.clock)
        self.system.broadcast_to(self.hub)
        for projection in (Totals(), Checked()):
            self.system.register(projection)
        self.arrived: queue.SimpleQueue[Call] = queue.SimpleQueue()
        # The model: the subscriptions that the client wants, those that wait for a check, those in a check.
        self.wanted: dict[Address, Life] = {}
        self.waiting: deque[Life] = deque()
        self.checked: list[tuple[Life, Call]] = []

    def clock(self) -> float:
        return self.now

    @initialize()
    def connect(self) -> None:
        ours, theirs = socket.socketpair()
        identity = ClientIdentity("test", None, self.may)
        slot = ConnectionLimits(self.hub.settings).enter("test", None)
        self.connection = WebSocketConnection(theirs, self.hub, identity, slot, many=True)
        self.hub.adopt(self.connection)
        self.client = RawClient(ours)

    def may(self, _name: str, key: str, _ticket: str | None) -> Permission | None:
        call = Call(key)
        self.arrived.put(call)
        return call.wait()

    # -- the client

    def say(self, **message: Any) -> list[dict[str, Any]]:
        """Send a message, and return its answers."""
        self.now += 1
        self.client.send(client_frame(TEXT, json.dumps(message).encode()))
        return self.answers()

    def answers(self) -> list[dict[str, Any]]:
        """Return all that has been sent by now, but for the snapshots, which come when they are read."""
        self.client.send(client_frame(PING))
        frames = []
        while (received := self.client.frame())[0] != PONG:
            frame = json.loads(received[1])
            if frame["type"] == "snapshot":
                assert self.wanted[address_of(frame["channel"])].is_live, "a snapshot of what is not watched"
            else:
                frames.append(frame)
        return frames

    def begin_checks(self) -> None:
        """Move the next check of the model on, and meet the call."""
        while self.waiting and len(self.checked) < AT_ONCE:
            life, call = self.waiting.popleft(), self.arrived.get(timeout=DEADLINE)
            assert call.key == life.address[1]
            self.checked.append((life, call))

    # -- events

    @rule(address=ADDRESSES, by_text=st.booleans())
    def subscribe(self, address: Address, *, by_text: bool) -> None:
        name, key = address
        text = f"projection.{name}.{key}"
        known, full = address in self.wanted, len(self.wanted) >= MOST
        if not known and not full:
            life = self.wanted[address] = Life(address, is_live=name == OPEN)
            if name == CHECKED:
                self.waiting.append(life)
        named = {"channel": text} if by_text else {"projection": name, "key": key, "channel": "mine"}
        answers = self.say(type="subscribe", **named)
        if known or full:
            assert [answer["code"] for answer in answers] == ["subscribed_already" if known else "limit"]
        else:
            assert [answer["type"] for answer in answers] == (["subscribed"] if name == OPEN else [])
        assert {answer["channel"] for answer in answers} <= {text}
        self.begin_checks()

    @rule(address=ADDRESSES)
    def unsubscribe(self, address: Address) -> None:
        text = f"projection.{address[0]}.{address[1]}"
        [answer] = self.say(type="unsubscribe", channel=text)
        life = self.wanted.pop(address, None)
        assert answer["channel"] == text
        assert answer["type"] == "unsubscribed" if life else answer["code"] == "not_subscribed"
        self.waiting = deque(one for one in self.waiting if one is not life)

    @precondition(lambda self: self.wanted)
    @rule(slot=st.integers(0, MOST - 1))
    def begin_another_life(self, slot: int) -> None:
        """As a page does that is drawn twice, or that scrolls back."""
        address = list(self.wanted)[slot % len(self.wanted)]
        self.unsubscribe(address)
        self.subscribe(address, by_text=True)

    @rule(address=ADDRESSES)
    def resync(self, address: Address) -> None:
        answers = self.say(type="resync", channel=f"projection.{address[0]}.{address[1]}")
        assert [answer["code"] for answer in answers] == (
            [] if address in self.wanted else ["not_subscribed"]
        )

    @rule()
    def resync_all(self) -> None:
        assert self.say(type="resync") == []

    @precondition(lambda self: self.checked)
    @rule(slot=st.integers(0, AT_ONCE - 1), may=st.booleans())
    def decide(self, slot: int, *, may: bool) -> None:
        life, call = self.checked.pop(slot % len(self.checked))
        lives = self.wanted.get(life.address) is life
        life.is_live = may
        call.answer(may=may)
        running = len(self.checked) + min(1, len(self.waiting))
        wait_until(lambda: call.is_taken and self.hub.checks.running == running)
        answers = self.answers()
        if lives:
            [answer] = answers
            assert answer["type"] == "subscribed" if may else answer["code"] == "forbidden"
            if not may:
                del self.wanted[life.address]
        else:
            assert answers == []
        self.begin_checks()

    def teardown(self) -> None:
        try:
            self.end()
        finally:
            for _, call in self.checked:
                call.answer(may=False)
            self.client.close()
            self.system.close()
            self.directory.cleanup()

    def end(self) -> None:
        """Decide all, then commit to every key: exactly the wanted ones get it. Then go: nothing is left."""
        while self.checked:
            self.decide(0, may=True)
        assert all(life.is_live for life in self.wanted.values())
        wait_until(
            lambda: (
                self.hub.stats()["buffering"] == 0
                and not any((read := c._read) is not None and read.subscriptions for c in self.channels())
            )
        )
        assert self.hub.stats()["subscriptions"] == len(self.wanted) == len(self.connection.subscriptions)
        assert self.answers() == []
        for name in (CHECKED, OPEN):
            for key in "abc":
                self.system.runtime(name).apply_event(Added(key), DEADLINE)
        heard = [json.loads(self.client.frame()[1]) for _ in self.wanted]
        assert {frame["type"] for frame in heard} <= {"delta"}
        assert {address_of(frame["channel"]) for frame in heard} == set(self.wanted)
        self.client.send(client_frame(CLOSE))
        assert self.client.close_code() == 1005
        self.client.close()
        wait_until(lambda: self.hub.stats()["open"] == 0)
        assert self.hub.stats()["subscriptions"] == self.hub.checks.waiting == self.hub.checks.running == 0

    def channels(self) -> list[Any]:
        return list(self.hub.channels._channels.copy().values())


def address_of(channel: str) -> tuple[str, str]:
    name, _, key = channel.removeprefix("projection.").rpartition(".")
    return name, key


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=40, stateful_step_count=25, deadline=None)
