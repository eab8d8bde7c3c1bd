"""The cost of an event, counted and not timed: Python and C calls, and bytes that are still held.

The counts are the same on every run of one Python, so a regression shows without noise. A commit that
makes the hot path dearer on purpose raises the budget here, and says why.
"""

from __future__ import annotations

import gc
import sys
import tracemalloc
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import pykka
import pytest
from keyfold.actors import Projection, ProjectionSystem, Receipt, engine
from keyfold.actors.pool.dispatcher import Dispatcher
from keyfold.actors.upkeep.sweeper import Sweeper
from keyfold.store.writing.writer_messages import SAVED, Load, Loaded
from support.counting import Total

EVENTS = 1_000


@dataclass
class Added:
    """Add an amount to a key: a flat event, as most are."""

    key: str
    amount: int = 1


class Totals(Projection[Added, Total]):
    """Folds Added into Total."""

    name = "test.budget"

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Total, event: Added) -> dict[str, int]:
        state.total += event.amount
        state.amounts.append(event.amount)
        return {"total": state.total}


# Calls per event (Python's and C's), with a tenth to spare for other versions of Python.
DISPATCH_CALLS = 16.5  # five of them check that the event can be read back: a type for each field, a length
FOLD_CALLS = 4.5
RESULT_CALLS = 5.5
# Bytes per event: its Receipt, which is also its place in the mailbox, while it waits; its delta as well
# after that (and 8 bytes of the state that this projection collects). A third of the first is its place in
# the set by which a close ends every Receipt, wherever an event got lost.
WAITING_BYTES = 125
DONE_BYTES = 190


class InlineWriter:
    """Answers at once, on the thread that asks."""

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        self.actor_urn = "inline"

    @classmethod
    def start(cls, *_arguments: Any, **_options: Any) -> InlineWriter:
        return cls()

    def tell(self, message: Any) -> None:
        message.reply(Loaded(None) if type(message) is Load else SAVED)

    def stop(self, *, block: bool) -> Any:
        class Ended:
            def get(self, timeout: float) -> None:
                return

        return Ended()


class Bench:
    """A system without threads: an actor that is ready runs when ``fold`` is called."""

    def __init__(self, system: ProjectionSystem, ready: list[Any]) -> None:
        self.system, self._ready = system, ready

    def dispatch(self, events: list[Added]) -> list[Receipt]:
        dispatch = self.system.bus.dispatch
        return [dispatch(event) for event in events]

    def fold(self) -> None:
        while self._ready:
            self._ready.pop(0).run_turn()


@pytest.fixture
def bench(monkeypatch: pytest.MonkeyPatch) -> Iterator[Bench]:
    """One that is warm: its key is loaded."""
    ready: list[Any] = []

    def start(dispatcher: Dispatcher) -> None:
        vars(dispatcher)["submit"] = ready.append

    monkeypatch.setattr(engine, "SnapshotWriter", InlineWriter)
    monkeypatch.setattr(pykka.ActorRegistry, "unregister", lambda _ref: None)
    monkeypatch.setattr(Dispatcher, "start", start)
    monkeypatch.setattr(Dispatcher, "stop", lambda _self, _deadline: True)
    monkeypatch.setattr(Sweeper, "start", lambda _self: None)
    monkeypatch.setattr(Sweeper, "stop", lambda _self, _deadline: True)
    with ProjectionSystem(
        "sqlite://", turn_limit=EVENTS, tuning={"report_seconds": 0, "turn_seconds": 60}
    ) as system:
        system.register(Totals())
        made = Bench(system, ready)
        system.start()
        made.dispatch([Added("a")])
        made.fold()
        yield made


def calls(work: Callable[[], Any]) -> tuple[float, Any]:
    """Return the number of calls per event that work makes, and its result."""
    count = 0

    def note(_frame: Any, event: str, _argument: Any) -> None:
        nonlocal count
        count += event in ("call", "c_call")

    sys.setprofile(note)
    try:
        result = work()
    finally:
        sys.setprofile(None)
    return count / EVENTS, result


def test_the_calls_an_event_takes(bench: Bench) -> None:
    """To be dispatched, folded, and asked for its result."""
    events = [Added("a") for _ in range(EVENTS)]
    dispatched, receipts = calls(lambda: bench.dispatch(events))
    folded, _ = calls(bench.fold)
    asked, results = calls(lambda: [receipt.result() for receipt in receipts])
    assert [applied.version for [applied] in results] == list(range(2, EVENTS + 2))
    spent = {"dispatch": dispatched, "fold": folded, "result": asked}
    assert dispatched <= DISPATCH_CALLS, spent
    assert folded <= FOLD_CALLS, spent
    assert asked <= RESULT_CALLS, spent


def test_the_bytes_an_event_holds(bench: Bench) -> None:
    """While it waits, and when it is done and its Receipt is still kept."""
    events = [Added("a") for _ in range(EVENTS)]
    gc.collect()
    tracemalloc.start()
    try:
        before, _ = tracemalloc.get_traced_memory()
        receipts = bench.dispatch(events)
        waiting = (tracemalloc.get_traced_memory()[0] - before) / EVENTS
        bench.fold()
        gc.collect()
        done = (tracemalloc.get_traced_memory()[0] - before) / EVENTS
    finally:
        tracemalloc.stop()
    assert all(receipt.done() for receipt in receipts)
    spent = {"waiting": waiting, "done": done}
    assert waiting <= WAITING_BYTES, spent
    assert done <= DONE_BYTES, spent
