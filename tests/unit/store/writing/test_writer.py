"""The writer: group commit, the row at fault alone, an answer to each message."""

from __future__ import annotations

import queue
import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from typing import NamedTuple

import psycopg2
import pykka
import pytest
from keyfold.store import Position, SnapshotStore, StoreError, StoreRejected, StoreUnavailable
from keyfold.store.rows import DeadLetter, Save
from keyfold.store.writing.writer import SnapshotWriter, WriterInbox
from keyfold.store.writing.writer_messages import CONFLICT, SAVED, Answer, Load, Loaded, Rejected, Write
from keyfold.store.writing.writer_stats import WriterStats
from support.parking import DEADLINE, Parking
from support.postgres import PostgresServer

Start = Callable[[SnapshotStore], "Writer"]


class Writer:
    """A running writer, and the answers it gave."""

    def __init__(self, store: SnapshotStore) -> None:
        self.facts = WriterStats()
        self.give_up = threading.Event()
        self.answers: queue.SimpleQueue[tuple[str, Answer]] = queue.SimpleQueue()
        self.ref = SnapshotWriter.start(store, commit_limit=100, give_up=self.give_up, stats=self.facts)

    def write(self, key: str, state: bytes = b"1", base: Position | None = None, version: int = 1) -> None:
        """Ask for a row to be written."""
        self.ref.tell(Write(Save("test", key, base, "e", version, state), self._reply(key)))

    def load(self, key: str, *letters: DeadLetter) -> None:
        """Ask for a row to be read."""
        self.ref.tell(Load(("test", key), letters, self._reply(key)))

    def park(self) -> Parking:
        """Hold the writer in its answer to a load, so that a group forms behind it."""
        parking = Parking()
        self.ref.tell(Load(("test", "parked"), (), lambda _answer: parking.park()))
        parking.wait_for_arrival()
        return parking

    def take(self, count: int) -> dict[str, Answer]:
        """Return so many answers by key."""
        return dict(self.answers.get(timeout=DEADLINE) for _ in range(count))

    def _reply(self, key: str) -> Callable[[Answer], None]:
        return lambda answer: self.answers.put((key, answer))


@pytest.fixture
def start_writer() -> Iterator[Start]:
    """Start writers; all are stopped afterwards."""
    started: list[Writer] = []

    def start(store: SnapshotStore) -> Writer:
        started.append(Writer(store))
        return started[-1]

    yield start
    for writer in started:
        writer.give_up.set()
        writer.ref.stop(timeout=DEADLINE)


def test_messages_that_wait_are_one_commit(store: SnapshotStore, start_writer: Start) -> None:
    """Fifty writes and a load that arrive during a commit are one transaction, each answered for itself."""
    writer = start_writer(store)
    writer.write("old")
    writer.take(1)
    commits = writer.facts.commits
    parking = writer.park()
    for number in range(50):
        writer.write(f"k{number}")
    writer.write("old", base=Position("e", 1), version=2)
    writer.write("gone", base=Position("e", 1), version=2)
    writer.load("old")
    parking.release()
    answers = {}
    for _ in range(53):
        key, answer = writer.answers.get(timeout=DEADLINE)
        answers[key, type(answer)] = answer
    assert writer.facts.commits == commits + 1
    assert answers["gone", type(CONFLICT)] is CONFLICT
    assert answers["old", type(SAVED)] is SAVED
    loaded = answers["old", Loaded]
    assert isinstance(loaded, Loaded)
    assert loaded.row is not None
    assert all((f"k{number}", type(SAVED)) in answers for number in range(50))


def test_the_row_at_fault_stands_alone(postgres_url: str, start_writer: Start) -> None:
    """One ``\\u0000`` among twenty, on PostgreSQL: nineteen are saved, one is rejected."""
    writer = start_writer(SnapshotStore(postgres_url))
    parking = writer.park()
    for number in range(20):
        writer.write(f"k{number}", b'"\\u0000"' if number == 13 else b'"good"')
    parking.release()
    answers = writer.take(20)
    rejected = answers.pop("k13")
    assert isinstance(rejected, Rejected)
    assert isinstance(rejected.error, StoreRejected)
    assert set(answers.values()) == {SAVED}
    assert writer.facts.rejected == 1


def test_a_load_buries_its_letters_before_it_is_answered(store: SnapshotStore, start_writer: Start) -> None:
    """Promise 4 for dead letters: they are committed when the Receipt hears of them."""
    writer = start_writer(store)
    writer.load("a", DeadLetter("test", "a", "Event", "{}", "error", "trace"))
    assert writer.take(1) == {"a": Loaded(None)}
    with store.database.connection_context():
        [count] = store.database.execute_sql("SELECT count(*) FROM projection_dead_letters").fetchone()
    assert count == 1


def test_an_answer_that_raises_harms_nobody(
    store: SnapshotStore, start_writer: Start, caplog: pytest.LogCaptureFixture
) -> None:
    """An actor that has ended meanwhile does not end the writer."""
    writer = start_writer(store)

    def fail(_answer: Answer) -> None:
        raise pykka.ActorDeadError

    writer.ref.tell(Load(("test", "a"), (), fail))
    writer.write("b")
    assert writer.take(1) == {"b": SAVED}
    assert "could not be delivered" in caplog.text


def test_a_stop_in_the_middle_of_a_group_finishes_the_group(
    store: SnapshotStore, start_writer: Start
) -> None:
    """The messages before the stop are answered."""
    writer = start_writer(store)
    parking = writer.park()
    writer.write("a")
    stopped = writer.ref.stop(block=False)
    parking.release()
    assert writer.take(1) == {"a": SAVED}
    assert stopped.get(timeout=DEADLINE)


def test_it_waits_for_the_database_until_it_is_told_to_give_up(
    postgres_server: PostgresServer, start_writer: Start
) -> None:
    """Unavailable: kept and tried again; given up: answered, so that no actor waits for ever."""
    writer = start_writer(SnapshotStore(postgres_server.url))
    writer.write("a")
    assert writer.take(1) == {"a": SAVED}
    postgres_server.kill()
    writer.write("b")
    writer.load("c")
    writer.give_up.set()
    answers = writer.take(2)
    for answer in answers.values():
        assert isinstance(answer, Rejected)
        assert isinstance(answer.error, StoreUnavailable)
    assert writer.facts.trouble
    assert writer.facts.retries >= 1


def test_the_ledger_row_goes_with_the_writer(postgres_url: str, start_writer: Start) -> None:
    """A clean end leaves nothing behind in projection_writers."""
    store = SnapshotStore(postgres_url)
    writer = start_writer(store)
    writer.write("a")
    writer.take(1)

    def registered() -> int:
        with store.database.connection_context():
            [count] = store.database.execute_sql("SELECT count(*) FROM projection_writers").fetchone()
        return int(count)

    assert registered() == 1
    writer.ref.stop(timeout=DEADLINE)
    assert registered() == 0


def test_an_error_that_nobody_expects_ends_the_group_and_not_the_writer(
    store: SnapshotStore, start_writer: Start, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A MemoryError, even a SystemExit: the whole group is answered, and the next group is written."""
    writer = start_writer(store)
    parking = writer.park()
    writer.write("a")
    writer.write("b")
    errors: list[BaseException] = [MemoryError("no more"), SystemExit()]

    def fail(*_arguments: object, **_keywords: object) -> list[bool]:
        raise errors.pop(0)

    with monkeypatch.context() as patched:
        patched.setattr(store, "rows", fail)
        parking.release()
        answers = writer.take(2)
        writer.write("c")
        answers |= writer.take(1)
    assert len(answers) == 3
    for answer in answers.values():
        assert isinstance(answer, Rejected)
        assert isinstance(answer.error, StoreError)
        assert not isinstance(answer.error, (StoreRejected, StoreUnavailable))
    writer.write("d")
    assert writer.take(1) == {"d": SAVED}


def test_a_message_that_waits_for_a_locked_row_is_answered_when_the_writer_gives_up_or_stops(
    postgres_url: str, start_writer: Start
) -> None:
    """At once, while the row is still locked; and nothing of it is written."""
    store = SnapshotStore(postgres_url)
    store.commit([Save("test", key, None, "e", 1, b"1") for key in ("a", "b")])
    with closing(psycopg2.connect(postgres_url)) as blocker:
        blocker.cursor().execute("SELECT 1 FROM projection_snapshots FOR UPDATE")
        for key, end in (("a", "give up"), ("b", "stop")):
            writer = start_writer(store)
            writer.write(key, b"2", Position("e", 1), 2)
            writer.write("free " + key)
            assert writer.take(1) == {"free " + key: SAVED}
            assert writer.facts.waiting == 1
            if end == "stop":
                writer.ref.stop(block=False)
            else:
                writer.give_up.set()
            answer = writer.take(1)[key]
            assert isinstance(answer, Rejected)
            assert isinstance(answer.error, StoreError)
    row = store.row("test", "a")
    assert row is not None
    assert row.version == 1


def test_a_message_behind_a_stop_is_answered(store: SnapshotStore, start_writer: Start) -> None:
    """Pykka drops it; the writer says that it is not written."""
    writer = start_writer(store)
    parking = writer.park()
    writer.ref.stop(block=False)
    writer.write("late")
    parking.release()
    answer = writer.take(1)["late"]
    assert isinstance(answer, Rejected)


def test_everything_refused_is_trouble_and_one_row_is_not(postgres_url: str, start_writer: Start) -> None:
    """A lock on the whole table: nothing is lost, and trouble says so until something is written."""
    store = SnapshotStore(postgres_url)
    store.commit([Save("test", f"k{n}", None, "e", 1, b"1") for n in range(40)])
    writer = start_writer(store)
    with closing(psycopg2.connect(postgres_url)) as blocker:
        blocker.cursor().execute("LOCK TABLE projection_snapshots IN SHARE MODE")
        parking = writer.park()
        for number in range(40):
            writer.write(f"k{number}", b"2", Position("e", 1), 2)
        parking.release()
        deadline = threading.Event()
        for _ in range(2_000):
            if writer.facts.trouble:
                break
            deadline.wait(0.01)
        assert "lock" in writer.facts.trouble
        assert writer.facts.waiting
    assert set(writer.take(40).values()) == {SAVED}
    assert not writer.facts.trouble


class _Envelope(NamedTuple):
    message: object


def test_the_inbox_wakes_the_writer_at_a_given_time() -> None:
    """Once before the messages that wait, and never twice in a row while messages wait."""
    inbox = WriterInbox()
    first, second = _Envelope("first"), _Envelope("second")
    inbox.put(first)
    inbox.put(second)
    inbox.wake_at(0.0)
    retry = inbox.get()
    assert retry not in (first, second)
    assert [inbox.get(), inbox.get(), inbox.get()] == [first, retry, second]
    assert [inbox.get(), inbox.get()] == [retry, retry]
    inbox.wake_at(None)
    inbox.put(first)
    assert inbox.get() is first


def test_the_inbox_gives_up_the_messages_of_some_types_only() -> None:
    """The others stay, in their order."""
    inbox = WriterInbox()
    for message in ("a", 1, "b", 2):
        inbox.put(_Envelope(message))
    assert inbox.take_all((str,)) == ["a", "b"]
    assert [inbox.get_nowait().message for _ in range(2)] == [1, 2]
    assert inbox.empty()
