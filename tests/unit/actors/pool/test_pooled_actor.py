"""PooledActor: Pykka's semantics on the threads of a dispatcher."""

from __future__ import annotations

import gc
import logging
import threading
import weakref
from collections.abc import Iterator
from time import monotonic
from typing import Any

import pykka
import pytest
from keyfold.actors.errors import MailboxSealed
from keyfold.actors.pool.dispatcher import Dispatcher
from keyfold.actors.pool.pooled_actor import PooledActor
from keyfold.actors.pool.threads import on_dispatcher_thread

DEADLINE = 10.0


@pytest.fixture
def dispatcher() -> Iterator[Dispatcher]:
    """Two threads, ended afterwards."""
    made = Dispatcher(threads=2, turn_limit=8, turn_seconds=1.0)
    made.start()
    yield made
    assert made.stop(monotonic() + DEADLINE)


class Recorder(PooledActor):
    """Records its messages; parks, raises and replies on demand."""

    def __init__(self, dispatcher: Dispatcher, mailbox_limit: int = 100) -> None:
        super().__init__(dispatcher=dispatcher, mailbox_limit=mailbox_limit)
        self.seen: list[Any] = []
        self.undelivered: list[Any] = []
        self.lives: list[str] = []
        self.ended = threading.Event()

    def on_start(self) -> None:
        self.lives.append("start")

    def on_stop(self) -> None:
        self.lives.append("stop")
        self.ended.set()

    def on_failure(self, exception_type: Any, exception_value: Any, traceback: Any) -> None:
        self.lives.append("failure")
        self.ended.set()

    def on_undelivered(self, message: Any) -> None:
        self.undelivered.append(message)

    def on_receive(self, message: Any) -> Any:
        self.seen.append(message)
        if isinstance(message, BaseException):
            raise message
        if isinstance(message, Parking):
            message.park()
        return ("reply", message)

    def twice(self, number: int) -> int:
        """Double it, for a proxy to call."""
        return 2 * number


class Parking:
    """Holds the actor in the middle of a message until it is let go."""

    def __init__(self) -> None:
        self.arrived = threading.Event()
        self.leave = threading.Event()

    def park(self) -> None:
        """Wait here."""
        self.arrived.set()
        assert self.leave.wait(DEADLINE)


def test_tell_ask_proxy_and_stop_work_as_in_pykka(dispatcher: Dispatcher) -> None:
    """A user of Pykka meets the actor that he knows: hooks, replies, proxies, ActorDeadError."""
    ref = Recorder.start(dispatcher)
    actor = ref._actor_weakref()
    assert actor is not None
    ref.tell("one")
    assert ref.ask("two", timeout=DEADLINE) == ("reply", "two")
    assert ref.proxy().twice(21).get(timeout=DEADLINE) == 42
    assert ref.is_alive()
    assert ref.stop(timeout=DEADLINE) is True
    assert actor.seen == ["one", "two"]
    assert actor.lives == ["start", "stop"]
    assert not ref.is_alive()
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("three")
    with pytest.raises(pykka.ActorDeadError):
        ref.ask("four", timeout=DEADLINE)


def test_an_exception_goes_to_who_asked_and_the_actor_lives_on(dispatcher: Dispatcher) -> None:
    """As in Pykka: an ask raises at the asker."""
    ref = Recorder.start(dispatcher)
    with pytest.raises(ValueError, match="asked"):
        ref.ask(ValueError("asked"), timeout=DEADLINE)
    assert ref.ask("still here", timeout=DEADLINE) == ("reply", "still here")


def test_an_exception_that_nobody_asked_for_ends_the_actor(
    dispatcher: Dispatcher, caplog: pytest.LogCaptureFixture
) -> None:
    """As in Pykka: a tell that raises is logged, on_failure runs, the actor is dead."""
    ref = Recorder.start(dispatcher)
    actor = ref._actor_weakref()
    assert actor is not None
    with caplog.at_level(logging.ERROR, "keyfold.actor"):
        ref.tell(ValueError("told"))
        assert actor.ended.wait(DEADLINE)
    assert actor.lives == ["start", "failure"]
    assert "told" in caplog.text
    with pytest.raises(pykka.ActorDeadError):
        ref.tell("more")


def test_a_base_exception_ends_one_actor_and_no_other(dispatcher: Dispatcher) -> None:
    """Not inherited from Pykka: SystemExit in one actor would stop every actor of the process."""
    ref, bystander = Recorder.start(dispatcher), Recorder.start(dispatcher)
    elsewhere = _Thread.start()
    with pytest.raises(SystemExit):
        ref.ask(SystemExit("one actor"), timeout=DEADLINE)
    assert not ref.is_alive()
    assert bystander.ask("alive", timeout=DEADLINE) == ("reply", "alive")
    assert elsewhere.is_alive()
    elsewhere.stop(timeout=DEADLINE)


class _Thread(pykka.ThreadingActor):
    """An ordinary actor of the app."""

    use_daemon_thread = True


def test_messages_behind_a_stop_are_handed_over_and_not_dropped(dispatcher: Dispatcher) -> None:
    """Not inherited from Pykka: tells that a stop overtook vanish there without a trace."""
    ref = Recorder.start(dispatcher)
    actor = ref._actor_weakref()
    assert actor is not None
    parking = Parking()
    ref.tell(parking)
    assert parking.arrived.wait(DEADLINE)
    ref.stop(block=False)
    ref.tell("behind")
    asked = ref.ask("asked behind", block=False)
    parking.leave.set()
    with pytest.raises(pykka.ActorDeadError):
        asked.get(timeout=DEADLINE)
    assert actor.ended.wait(DEADLINE)
    assert actor.undelivered == ["behind", "asked behind"]


def test_one_actor_never_runs_on_two_threads(dispatcher: Dispatcher) -> None:
    """Promise 1: while one thread is parked inside the actor, the other does not enter it."""
    ref = Recorder.start(dispatcher)
    actor = ref._actor_weakref()
    assert actor is not None
    parking = Parking()
    ref.tell(parking)
    assert parking.arrived.wait(DEADLINE)
    ref.tell("later")
    other = Recorder.start(dispatcher)
    assert other.ask("the other thread is free", timeout=DEADLINE)
    assert actor.seen == [parking]
    parking.leave.set()
    assert ref.ask("last", timeout=DEADLINE)
    assert actor.seen == [parking, "later", "last"]


def test_a_flooded_actor_does_not_starve_another() -> None:
    """A turn is bounded: on one thread, a quiet actor is served before a flood is through."""
    dispatcher = Dispatcher(threads=1, turn_limit=8, turn_seconds=60.0)
    hot = Recorder.start(dispatcher)
    hot_actor = hot._actor_weakref()
    assert hot_actor is not None

    seen = hot_actor.seen

    class Cold(Recorder):
        def on_receive(self, message: Any) -> Any:
            return len(seen)

    for number in range(80):
        hot.tell(number)
    seen_by_then = Cold.start(dispatcher).ask("how many by now?", block=False)
    dispatcher.start()
    assert seen_by_then.get(timeout=DEADLINE) <= 16
    hot.ask("end", timeout=DEADLINE)
    assert hot_actor.seen == [*range(80), "end"]
    assert dispatcher.stop(monotonic() + DEADLINE)


def test_a_turn_is_bounded_in_time() -> None:
    """A turn whose time is over puts the rest back, in order."""
    dispatcher = Dispatcher(threads=1, turn_limit=1000, turn_seconds=0.0)
    ref = Recorder.start(dispatcher)
    actor = ref._actor_weakref()
    assert actor is not None
    for number in range(20):
        ref.tell(number)
    last = ref.ask("last", block=False)
    dispatcher.start()
    last.get(timeout=DEADLINE)
    assert actor.seen == [*range(20), "last"]
    assert dispatcher.stop(monotonic() + DEADLINE)


def test_a_pooled_actor_is_not_in_the_global_registry(dispatcher: Dispatcher) -> None:
    """The registry is a list: at 100,000 actors leaving it costs 2.3 ms."""
    ref = Recorder.start(dispatcher)
    assert ref not in pykka.ActorRegistry.get_all()


def test_an_ended_actor_is_freed_without_the_garbage_collector(dispatcher: Dispatcher) -> None:
    """A collection costs seconds at a million actors: an ended one must be no part of a cycle."""
    ref = Recorder.start(dispatcher)
    ref.ask("hello", timeout=DEADLINE)
    freed = threading.Event()
    weakref.finalize(ref._actor_weakref(), freed.set)
    gc.disable()
    try:
        ref.stop(timeout=DEADLINE)
        assert freed.wait(DEADLINE)
    finally:
        gc.enable()


def test_dispatcher_threads_know_what_they_are(dispatcher: Dispatcher) -> None:
    """So that nothing ever waits on them for work that only they can do."""

    class Asker(Recorder):
        def on_receive(self, message: Any) -> Any:
            return on_dispatcher_thread()

    assert Asker.start(dispatcher).ask("?", timeout=DEADLINE) is True
    assert on_dispatcher_thread() is False


def test_a_defect_in_a_turn_costs_no_thread(caplog: pytest.LogCaptureFixture) -> None:
    """One broken actor is logged; its thread goes on to the next."""
    dispatcher = Dispatcher(threads=1, turn_limit=8, turn_seconds=1.0)

    class Broken(Recorder):
        def run_turn(self) -> None:
            raise SystemExit

    dispatcher.start()
    with caplog.at_level(logging.ERROR, "keyfold.dispatcher"):
        Broken.start(dispatcher)
        assert Recorder.start(dispatcher).ask("ok", timeout=DEADLINE) == ("reply", "ok")
    assert "Broken" in caplog.text
    assert dispatcher.stop(monotonic() + DEADLINE)


def test_putting_into_an_ended_actor_raises_actor_dead(dispatcher: Dispatcher) -> None:
    """MailboxSealed is an ActorDeadError, so Pykka's users need not know it."""
    assert issubclass(MailboxSealed, pykka.ActorDeadError)
    ref = Recorder.start(dispatcher)
    ref.stop(timeout=DEADLINE)
    with pytest.raises(pykka.ActorDeadError):
        ref.actor_inbox.put("anything")  # type: ignore[arg-type]
