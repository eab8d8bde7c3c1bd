"""Promise 8 where it is kept: one channel, any order of commits, publishes, reads, joins and losses."""

from __future__ import annotations

import itertools
import json
from collections import Counter, deque
from collections.abc import Callable
from concurrent.futures import Future
from datetime import UTC, datetime
from types import SimpleNamespace
from typing import Any

import pytest
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import Bundle, RuleBasedStateMachine, consumes, invariant, rule
from keyfold.store import Position
from keyfold.store.rows import Row
from keyfold.web.live.channels.batch import Batch
from keyfold.web.live.channels.channel import Channel, ChannelContext
from keyfold.web.live.channels.channels import Channels
from keyfold.web.live.channels.deltas import Deltas, Missed, Replaced
from keyfold.web.live.connections.subscription import Subscription
from keyfold.web.live.log_throttle import LogThrottle
from keyfold.web.live.protocol.messages import delta_messages
from keyfold.web.live.protocol.websocket_frames import payload_of, text_frame
from keyfold.web.settings import WebSettings

CHANNEL = "projection.test.totals.a"
NOW = datetime(2026, 1, 1, tzinfo=UTC)


class Client:
    """A connection and the browser behind it: it checks the rules of the wire as it takes frames."""

    def __init__(self, since: Position | None = None, state: list[int] | None = None) -> None:
        self.position = since
        self.state = state
        self.begun = False
        self.blocked = False
        self.lost = False
        self.frames: list[dict[str, Any]] = []

    def deliver(self, batch: Batch, subscription: Subscription) -> None:
        if self.blocked:
            self.lost = True
            subscription.leave()
            return
        for frame in batch._frames:
            self.take(json.loads(payload_of(frame)))

    def take(self, frame: dict[str, Any]) -> None:
        self.frames.append(frame)
        there = Position(frame["epoch"], frame["version"])
        if frame["type"] == "snapshot":
            self.position, self.state = there, frame["state"]
        elif frame["type"] == "resumed":
            assert not self.begun
            assert self.position is not None
            assert self.position.version == frame["from"]
        elif frame["type"] == "delta":
            assert self.begun, "a delta before the first snapshot"
            assert self.position in (Position(frame["epoch"], frame["prev"]), Position("", 0))
            assert frame["version"] == frame["prev"] + 1
            self.position, self.state = there, [*(self.state or []), frame["data"]]
        else:
            assert frame["type"] == "heartbeat"
            assert self.position == there
        self.begun = True


class Desk:
    """The collaborators of one channel. The test answers reads when it wants, with the row of any moment."""

    def __init__(self, **limits: Any) -> None:
        sync: Any = SimpleNamespace(patience=limits.pop("patience", 0.0), unwatch=lambda _channel: None)
        itself: Any = self
        self.counts: Counter[str] = Counter()
        self.now = 0.0
        self.reads: deque[Channel] = deque()
        self.calls: deque[Callable[[], None]] = deque()
        self.timers: list[Callable[[], None]] = []
        self.context = ChannelContext(
            settings=WebSettings(**limits),
            clock=self.clock,
            reactor=itself,
            row_reader=itself,
            cross_process_sync=sync,
            counts=self.counts,
            resyncs=Counter(),
            gone_back_log=LogThrottle(self.clock),
        )
        source: Any = SimpleNamespace(is_published=True)
        self.channel_ = Channel("test.totals", "a", source, self.context)

    def clock(self) -> float:
        return self.now

    def call(self, function: Callable[[], None]) -> None:
        self.calls.append(function)

    def run_calls(self) -> None:
        while self.calls:
            self.calls.popleft()()

    def read(self, channel: Channel, _lost: Any) -> None:
        self.reads.append(channel)

    def call_later(self, _seconds: float, function: Callable[[], None]) -> None:
        self.timers.append(function)


class World:
    """A row, its commits that are still on their way to the channel, and the channel."""

    def __init__(self, **limits: Any) -> None:
        self.desk = Desk(**limits)
        self.channel = self.desk.channel_
        self.row: Row | None = None
        self.values: list[int] = []
        self.epochs = self.commits = 0
        self.on_the_way: deque[Any] = deque()

    @property
    def position(self) -> Position:
        return Position("", 0) if self.row is None else Position(self.row.epoch, self.row.version)

    @property
    def commit_id(self) -> str | None:
        return None if self.row is None else self.row.commit_id

    def _write(self, epoch: str, version: int) -> None:
        self.commits += 1
        self.row = Row(epoch, version, 1, json.dumps(self.values).encode(), NOW, commit_id=str(self.commits))

    def read(self) -> Row | None:
        """Return the row. It leaves its epoch first if it has lost the commit that the channel names."""
        lost = None if self.channel._read is None else self.channel._read.lost
        if self.row is not None and lost is not None and lost.is_gone_from(self.row.head):
            self.row = self.row._replace(epoch=self.new_epoch())
        return self.row

    def backup(self) -> tuple[Row | None, list[int]]:
        return self.row, self.values

    def restore(self, backup: tuple[Row | None, list[int]]) -> None:
        self.row, self.values = backup

    def new_epoch(self) -> str:
        self.epochs += 1
        return f"e{self.epochs}"

    def commit(self, values: list[int], *, here: bool = True) -> None:
        before, base_commit_id = self.position, self.commit_id
        epoch = self.new_epoch() if self.row is None else before.epoch
        self.values = [*self.values, *values]
        self._write(epoch, before.version + len(values))
        payloads = delta_messages(
            CHANNEL, "delta", epoch, before.version, [b"%d" % value for value in values]
        )
        if here:
            frames = [text_frame(payload) for payload in payloads]
            self.on_the_way.append(Deltas(epoch, before.version, frames, base_commit_id, self.commit_id))

    def rebuild(self, values: list[int], *, here: bool = True) -> None:
        self.values = list(values)
        self._write(self.new_epoch(), len(values))
        assert self.row is not None
        state = self.row.state if values else b"null"
        if here:
            self.on_the_way.append(Replaced(self.position, state, "rebuild"))

    def publish(self, most: int = 1) -> None:
        """Let so many of the turns that are on their way arrive together."""
        for _ in range(min(most, len(self.on_the_way))):
            self.channel.notify(self.on_the_way.popleft())
        self.desk.run_calls()

    def answer(self, row: Row | None) -> None:
        self.desk.reads.popleft().row_came(row)

    def join(self, client: Client, since: Position | None = None) -> Subscription:
        subscription = Subscription(client, self.channel, since)  # type: ignore[arg-type]
        self.channel.request_row(subscription, "initial")
        return subscription

    def settle(self) -> None:
        for turn in itertools.count():
            assert turn < 100, "it reads the row again and again"
            if not (self.on_the_way or self.desk.reads):
                return
            while self.on_the_way:
                self.publish()
            if self.desk.reads:
                self.answer(self.read())


values = st.lists(st.integers(0, 9), min_size=1, max_size=7)


class AnyOrder(RuleBasedStateMachine):
    """In any order of events, in the end the state of every client is the row's."""

    clients = Bundle("clients")

    def __init__(self) -> None:
        super().__init__()
        self.world = World(ring_frames=4)
        self.taken: deque[Row | None] = deque()
        self.alone = True
        self.went_back = False
        self.watching: dict[Client, Subscription] = {}

    @rule(values=values)
    def commit(self, values: list[int]) -> None:
        self.world.commit(values)

    @rule(values=values)
    def another_process_commits(self, values: list[int]) -> None:
        self.world.commit(values, here=False)
        self.alone = False

    @rule(values=st.lists(st.integers(0, 9), max_size=3), here=st.booleans())
    def rebuild_or_wipe(self, values: list[int], *, here: bool) -> None:
        self.world.rebuild(values, here=here)
        self.alone &= here

    @rule(most=st.integers(1, 3))
    def publish(self, most: int) -> None:
        self.world.publish(most)

    @rule()
    def fail_to_publish(self) -> None:
        if self.world.on_the_way:
            self.world.on_the_way[0] = Missed()

    @rule()
    def the_database_reads(self) -> None:
        """The row of this moment, which will arrive at another."""
        if self.world.desk.reads and not self.taken:
            self.taken.append(self.world.read())

    @rule()
    def the_row_arrives(self) -> None:
        if self.taken:
            self.world.answer(self.taken.popleft())

    @rule()
    def the_database_is_away(self) -> None:
        if self.world.desk.reads and not self.taken:
            self.world.desk.reads.popleft().no_row_came(OSError("away"))

    @rule()
    def time_for_another_try(self) -> None:
        while self.world.desk.timers:
            self.world.desk.timers.pop()()

    @rule()
    def beat(self) -> None:
        self.world.channel.heartbeat()

    @rule(target=clients)
    def join(self) -> Client:
        client = Client()
        self.watching[client] = self.world.join(client)
        return client

    @rule(target=clients, old=consumes(clients))
    def reconnect(self, old: Client) -> Client:
        self.world.channel.leave(self.watching.pop(old))
        client = Client(old.position, old.state)
        self.watching[client] = self.world.join(client, old.position)
        return client

    @rule(client=clients)
    def block(self, client: Client) -> None:
        client.blocked = True

    @rule(client=clients)
    def unblock(self, client: Client) -> None:
        client.blocked = False
        if client.lost:
            client.lost = False
            self.world.channel.request_row(self.watching[client], "slow")

    @rule(client=clients)
    def resync(self, client: Client) -> None:
        if not client.lost:
            self.world.channel.request_row(self.watching[client], "resync")

    @invariant()
    def nobody_stands_in_two_places(self) -> None:
        channel = self.world.channel
        slots = [
            *channel.live,
            *channel.ahead,
            *channel.waiting,
            *(channel._read.subscriptions if channel._read else {}),
        ]
        assert len(slots) == len(set(slots))

    @invariant()
    def no_row_is_said_to_have_gone_back_that_did_not(self) -> None:
        assert self.went_back or not self.world.desk.counts["gone_back"]

    def teardown(self) -> None:
        while self.taken:
            self.world.answer(self.taken.popleft())
        for client in self.watching:
            self.unblock(client)
        self.world.settle()
        self.time_for_another_try()
        self.world.settle()
        # No client had to come for it: each row that was found to have gone back has left its epoch.
        assert not self.world.desk.reads
        assert self.world.channel.is_needed == self.world.channel.is_watched
        if not self.alone:  # the commits of another process come with the next heartbeat
            self.world.channel.heartbeat()
            self.world.settle()
        for client in self.watching:
            assert client.position == self.world.position
            assert (client.state or []) == self.world.values
            assert self.watching[client] in self.world.channel.live
        super().teardown()


class RowsGoBack(AnyOrder):
    """The same where backups are made, and restored at any moment."""

    def __init__(self) -> None:
        super().__init__()
        self.backups: list[tuple[Row | None, list[int]]] = [self.world.backup()]

    @rule()
    def back_up(self) -> None:
        self.backups.append(self.world.backup())

    @rule(data=st.data())
    def restore(self, data: st.DataObject) -> None:
        self.world.restore(data.draw(st.sampled_from(self.backups)))
        self.went_back, self.alone = True, False


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = hypothesis_settings(max_examples=300, stateful_step_count=40, deadline=None)
TestRowsGoBack = RowsGoBack.TestCase
TestRowsGoBack.settings = hypothesis_settings(max_examples=200, stateful_step_count=40, deadline=None)


def brought_up(world: World, client: Client) -> None:
    world.join(client)
    world.settle()


def kinds(client: Client) -> list[tuple[str, int]]:
    return [(frame.get("reason", frame["type"]), frame["version"]) for frame in client.frames]


def test_a_row_read_before_the_commits_is_led_on_by_the_deltas() -> None:
    """Initial, U1, U2, though both commit and are published while the row is on its way."""
    world, client = World(), Client()
    world.commit([1])
    world.join(client)
    old = world.row
    world.commit([2])
    world.commit([3])
    world.publish()
    world.publish()
    world.publish()
    world.answer(old)
    assert kinds(client) == [("initial", 1), ("delta", 2), ("delta", 3)]


def test_a_row_read_after_the_commits_makes_their_deltas_old() -> None:
    """Ahead of the published deltas: those that come later are not sent again."""
    world, first, second = World(), Client(), Client()
    world.commit([1])
    brought_up(world, first)
    world.join(second)
    world.commit([2])
    world.answer(world.row)
    assert kinds(second) == [("initial", 2)]
    world.settle()
    world.commit([3])
    world.settle()
    assert kinds(second) == [("initial", 2), ("delta", 3)]
    assert kinds(first) == [("initial", 1), ("delta", 2), ("delta", 3)]


def test_a_row_that_the_ring_does_not_reach_back_to_is_followed_by_a_newer_one() -> None:
    """A hot key commits more than the ring holds while the row is read: snapshots, never a stale end."""
    world, client, lively = World(ring_frames=4), Client(), Client()
    world.commit([1])
    brought_up(world, lively)
    world.join(client)
    old = world.row
    world.commit([2, 3, 4, 5, 6, 7])
    world.publish()
    world.answer(old)
    assert kinds(client) == [("initial", 1)]
    world.settle()
    assert kinds(client) == [("initial", 1), ("gap", 7)]
    assert kinds(lively) == [("initial", 1), *(("delta", version) for version in range(2, 8))]


def test_one_read_serves_all_who_wait_and_those_who_come_later_get_the_next() -> None:
    """A crowd that comes back costs two reads; a read that began before somebody came is not for him."""
    world = World()
    world.commit([1])
    crowd = [Client() for _ in range(100)]
    for client in crowd:
        world.join(client)
    assert len(world.desk.reads) == 1
    world.answer(world.row)
    assert [bool(client.frames) for client in crowd] == [True] + [False] * 99
    world.answer(world.row)
    assert all(kinds(client) == [("initial", 1)] for client in crowd)
    assert not world.desk.reads


@pytest.mark.parametrize(
    ("limits", "seconds", "expected"),
    [
        ({}, 0, "resumed"),
        ({"ring_frames": 9}, 0, "expired"),
        ({"ring_bytes": 500}, 0, "expired"),
        ({"ring_seconds": 60}, 61, "expired"),
    ],
)
def test_resume_within_the_bounds_of_the_ring(limits: dict[str, int], seconds: int, expected: str) -> None:
    """Ten deltas are sent again if they are all still there, else a snapshot says so."""
    world, client = World(**limits), Client()
    world.commit([1])
    brought_up(world, client)
    assert client.position is not None
    for value in range(10):
        world.commit([value])
        world.settle()
    world.desk.now += seconds
    assert world.channel.recent_deltas is not None
    world.channel.recent_deltas.trim(world.desk.now)
    again = Client(client.position, client.state)
    again.position, again.state = Position(client.position.epoch, 1), [1]
    world.join(again, again.position)
    world.settle()
    assert kinds(again)[0] == (expected, 11)
    assert (again.position, again.state) == (world.position, world.values)
    assert len(again.frames) == (11 if expected == "resumed" else 1)


def test_to_resume_where_nothing_was_missed_is_one_frame() -> None:
    """Also for a key that has no row yet, and after the channel was forgotten here."""
    empty = World()
    client = Client(Position("", 0))
    empty.join(client, client.position)
    empty.settle()
    assert kinds(client) == [("resumed", 0)]
    world = World()
    world.commit([1, 2])
    world.on_the_way.clear()
    client = Client(world.position, [1, 2])
    world.join(client, world.position)
    world.settle()
    assert kinds(client) == [("resumed", 2)]


def test_an_epoch_that_is_gone_does_not_resume() -> None:
    """Same version, another life of the key."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    world.rebuild([7])
    world.settle()
    old = Client(Position("e1", 1), [1])
    world.join(old, old.position)
    world.settle()
    assert kinds(old) == [("expired", 1)]
    assert old.state == [7]


def test_what_another_process_commits_comes_with_the_heartbeat() -> None:
    """Without a backplane nobody tells; the row does."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    world.commit([2], here=False)
    world.channel.heartbeat()
    world.settle()
    assert kinds(client)[-2:] == [("gap", 2), ("heartbeat", 2)]
    world.channel.heartbeat()
    world.settle()
    assert kinds(client)[-1] == ("heartbeat", 2)


def test_more_news_than_may_wait_is_replaced_by_a_read_of_the_row() -> None:
    """Promise 9: the reactor is held up, an actor goes on publishing; memory stays bounded."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    frame = text_frame(b'"%b"' % (b"x" * 100_000))
    for version in range(1, 200):
        world.channel.notify(Deltas(world.position.epoch, version, [frame]))
    waiting = world.channel._inbox._notices
    assert sum(len(item.frames[0]) for item in waiting if isinstance(item, Deltas)) < 5_000_000
    world.desk.run_calls()
    world.settle()
    assert kinds(client)[-1] == ("gap", 1)


def test_deltas_and_the_rebuild_behind_them_go_out_in_their_order() -> None:
    """Though they arrive together."""
    world, client = World(), Client()
    brought_up(world, client)
    world.commit([1])
    world.rebuild([7, 8])
    world.commit([9])
    world.publish(3)
    assert kinds(client)[1:] == [("delta", 1), ("rebuild", 2), ("delta", 3)]


def test_a_rebuild_that_the_row_has_told_already_is_not_sent_again() -> None:
    """The reader was faster than the announcement."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    world.rebuild([7, 8])
    world.commit([9])
    world.channel.heartbeat()
    world.answer(world.row)
    world.settle()
    assert kinds(client)[1:] == [("gap", 3), ("heartbeat", 3)]


def test_who_is_ahead_is_not_forgotten_when_the_versions_in_between_never_come() -> None:
    """He got the row from before a gap, or of an epoch that ends: a new row brings him on."""
    for gap in ("versions", "epoch"):
        world, first, second = World(), Client(), Client()
        world.commit([1])
        brought_up(world, first)
        world.join(second)
        world.commit([2], here=False)
        world.answer(world.row)
        assert len(world.channel.ahead) == 1
        if gap == "versions":
            world.commit([3], here=False)
        else:
            world.rebuild([5], here=False)
        world.commit([4])
        world.settle()
        for client in (first, second):
            assert (client.position, client.state) == (world.position, world.values)


def test_turns_of_two_processes_that_cross_are_put_in_order() -> None:
    """The later one waits for the one before it, which is on its way: two deltas, and no snapshot."""
    world, client = World(patience=1.0), Client()
    world.commit([1])
    brought_up(world, client)
    for value in (2, 3, 4):
        world.commit([value])
    world.on_the_way.rotate(-1)  # 3, 4, 2
    world.publish(2)
    assert kinds(client) == [("initial", 1)]
    world.publish()
    assert kinds(client) == [("initial", 1), ("delta", 2), ("delta", 3), ("delta", 4)]
    assert client.state == world.values
    world.desk.now = 1.0
    for timer in world.desk.timers:
        timer()
    assert not world.desk.reads  # nothing was missing when the time was over


def test_the_first_turns_of_a_key_may_cross_too() -> None:
    """There is no row yet, and the second commit arrives before the one that made the row."""
    world, client = World(patience=1.0), Client()
    brought_up(world, client)
    world.commit([1])
    world.commit([2])
    world.on_the_way.rotate(1)
    world.publish(2)
    assert kinds(client) == [("initial", 0), ("delta", 1), ("delta", 2)]


def test_a_rebuild_that_another_process_has_replaced_already_is_not_the_last_word() -> None:
    """Its news overtook those of this process, and was of a row that had been read."""
    world, client = World(patience=1.0), Client()
    world.commit([1])
    brought_up(world, client)
    world.rebuild([2])
    world.rebuild([3], here=False)
    world.settle()
    assert client.state == [3]
    assert client.position == world.position


def test_a_turn_that_never_comes_is_waited_for_no_longer_than_that() -> None:
    world, client = World(patience=1.0), Client()
    world.commit([1])
    brought_up(world, client)
    world.commit([2], here=False)
    world.commit([3])
    world.publish()
    assert kinds(client) == [("initial", 1)]
    world.desk.now = 1.0
    for timer in world.desk.timers:
        timer()
    world.settle()
    assert kinds(client)[-1] == ("gap", 3)
    assert client.state == world.values


def test_only_a_few_turns_wait_for_the_one_before_them() -> None:
    """Over the bound the row is read at once."""
    world, client = World(patience=1.0), Client()
    world.commit([1])
    brought_up(world, client)
    world.commit([2], here=False)
    for value in range(65):
        world.commit([value])
    world.settle()
    assert kinds(client)[-1] == ("gap", 67)
    assert client.state == world.values


def test_an_error_while_frames_go_out_costs_a_snapshot_and_no_more() -> None:
    """A subscriber whose state is uncertain gets the row."""
    world, client = World(), Client()
    brought_up(world, client)
    deliver, client.deliver = client.deliver, None  # type: ignore[assignment, method-assign]
    world.commit([1])
    world.channel.notify(world.on_the_way.popleft())
    with pytest.raises(TypeError):
        world.desk.run_calls()
    client.deliver = deliver  # type: ignore[method-assign]
    world.settle()
    assert kinds(client) == [("initial", 0), ("gap", 1)]


def test_an_error_while_a_row_is_brought_loses_nobody() -> None:
    """The subscriptions of the read, and the live ones, wait for another read."""
    world, first, second, live = World(), Client(), Client(), Client()
    world.commit([1])
    brought_up(world, live)
    world.join(Client())
    world.join(first)
    world.join(second)
    world.answer(world.row)
    deliver, first.deliver = first.deliver, None  # type: ignore[assignment, method-assign]
    world.commit([2])
    with pytest.raises(TypeError):
        world.answer(world.row)
    first.deliver = deliver  # type: ignore[method-assign]
    for timer in world.desk.timers:
        timer()
    world.settle()
    for client in (first, second, live):
        assert (client.position, client.state) == (world.position, world.values)


def test_a_turn_of_another_history_is_not_swallowed() -> None:
    """It follows, leads to, or goes over, another commit than the one that was shown: the row has it."""
    for lost, found in (([2, 3], [4, 5]), ([2], [4, 5]), ([2, 3], [4])):
        world, client = World(), Client()
        world.commit([1])
        brought_up(world, client)
        backup = world.backup()
        world.commit(lost)
        world.settle()
        world.restore(backup)
        world.commit(found)
        world.settle()
        if len(found) < len(lost):  # it may just be late: the next one shows that it was not
            world.commit([6, 7])
            world.settle()
        assert client.position == world.position
        assert client.state == world.values
        assert client.frames[-1]["type"] == "snapshot"
        assert world.desk.counts["gone_back"] == 1


def test_a_row_that_went_back_leaves_its_epoch_though_nobody_watches() -> None:
    """The page sleeps, and would be resumed on the lost history. The channel is kept until it is done."""
    world, client = World(), Client()
    world.commit([1])
    watching = world.join(client)
    world.settle()
    backup = world.backup()
    world.commit([2])
    world.settle()
    lost = client.position
    world.channel.leave(watching)
    world.restore(backup)
    world.commit([3])
    world.publish()
    assert world.desk.counts["gone_back"] == 1
    channels = channels_of(world)
    for _ in range(3):
        world.desk.reads.popleft().no_row_came(OSError("away"))
        channels.sweep()
        assert channels.find("test.totals", "a") is world.channel
        world.desk.timers.pop()()
    channels.sweep()
    assert channels.find("test.totals", "a") is world.channel
    world.settle()
    assert lost is not None
    assert world.position == Position("e2", lost.version)
    channels.sweep()
    assert channels.find("test.totals", "a") is None


def test_a_read_that_lags_makes_no_epoch() -> None:
    """The row has more than the read showed: all subscriptions get it, and nothing else happens."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    old = world.row
    world.commit([2])
    world.settle()
    world.channel.heartbeat()
    world.answer(old)
    world.settle()
    assert (client.position, client.state) == (world.position, [1, 2])
    assert world.position == Position("e1", 2)
    assert not world.channel.waiting


def test_a_row_that_moves_on_between_the_look_and_the_new_epoch_gets_it_all_the_same() -> None:
    """Another process commits all the time: the lost commit decides, not the one that was seen."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    backup = world.backup()
    world.commit([2, 3, 4, 5])
    world.settle()
    world.restore(backup)
    world.channel.heartbeat()
    world.answer(world.row)
    world.commit([6], here=False)
    world.settle()
    assert (client.position, client.state) == (world.position, [1, 6])
    assert world.position == Position("e2", 2)


def test_rows_that_go_back_are_logged_once_a_minute(caplog: pytest.LogCaptureFixture) -> None:
    """After a restore that may be every row: the count says how many."""
    world, client = World(), Client()
    world.commit([1])
    brought_up(world, client)
    backup = world.backup()

    def go_back() -> None:
        world.commit([2])
        world.settle()
        world.restore(backup)
        world.channel.heartbeat()
        world.settle()

    for now in (0.0, 1.0, 59.0, 60.0, 61.0):
        world.desk.now = now
        go_back()
    assert ["(1 so far)" in caplog.messages[0], "(4 so far)" in caplog.messages[1]] == [True, True]
    assert (len(caplog.messages), world.desk.counts["gone_back"]) == (2, 5)


def channels_of(world: World) -> Channels:
    """Where the hub keeps its channels, with this one in it."""
    nothing: Any = None
    system: Any = SimpleNamespace(submit=lambda _query: Future())
    channels = Channels(world.desk.context, nothing, system)
    channels._channels["test.totals", "a"] = world.channel
    return channels


def test_a_database_that_gives_no_new_epoch_still_gives_the_row() -> None:
    """As for a role that may not change rows: pages show the row, and it is not read again and again."""
    for in_place in ([2], None):
        world, client = World(), Client()
        world.commit([1])
        brought_up(world, client)
        backup = world.backup()
        if in_place is None:
            world.rebuild([7])
        else:
            world.commit(in_place)
        world.channel.heartbeat()
        world.settle()
        world.restore(backup)
        world.channel.heartbeat()
        for _ in range(3):
            if world.desk.reads:
                world.answer(world.row)
        assert not world.desk.reads
        assert (client.position, client.state) == (world.position, [1])


def test_what_only_a_read_of_the_row_has_shown_is_remembered_too() -> None:
    """Another process committed it without a delta here: a client with it is not resumed from another one."""
    world, live, other = World(), Client(), Client()
    world.commit([1])
    brought_up(world, live)
    backup = world.backup()
    world.commit([2], here=False)
    watching = world.join(other)
    world.answer(world.row)
    assert kinds(other) == [("initial", 2)]
    world.channel.leave(watching)
    world.restore(backup)
    world.commit([3], here=False)
    again = Client(other.position, other.state)
    world.join(again, other.position)
    world.settle()
    assert kinds(again)[0][0] == "expired"
    assert (again.position, again.state) == (world.position, [1, 3])
