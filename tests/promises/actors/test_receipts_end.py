"""Every Receipt ends.

After a close with a backlog, an interrupt, a start that fails; and the counts are right.
"""

from __future__ import annotations

import dis
import gc
import linecache
import signal
import sys
import threading
import traceback
import weakref
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path
from time import monotonic
from types import FrameType
from typing import Any

import keyfold.actors
import pytest
from keyfold.actors import (
    ApplyError,
    Closed,
    MailboxFull,
    ProjectionError,
    ProjectionRuntime,
    ProjectionSystem,
    Receipt,
    StoreError,
)
from keyfold.actors.errors import WouldDeadlock
from support.counting import Added, Total, Totals, park_in, poison
from support.parking import DEADLINE, Parking, wait_until

MakeSystem = Callable[..., ProjectionSystem]
Runtime = ProjectionRuntime[Added, Total]

_SOURCES = Path(keyfold.actors.__file__).parent


def outcomes(receipts: list[Receipt]) -> list[str]:
    """What became of each; a TimeoutError if one has not ended."""
    errors = [receipt.exception(0) for receipt in receipts]
    return ["StoreError" if isinstance(error, StoreError) else type(error).__name__ for error in errors]


# -- close


def test_a_close_with_a_backlog_ends_every_receipt_by_what_the_row_says(make_system: MakeSystem) -> None:
    """Each raised StoreError or is in the row; those in the row know it."""
    system = make_system(turn_limit=2, tuning={"dispatcher_threads": 1})
    system.register(Totals())
    parking = Parking()
    held = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    receipts = [system.bus.dispatch(Added(f"{'a' if n % 2 else n}")) for n in range(400)]
    engine = system._engine
    assert engine is not None

    def release() -> None:
        engine._give_up.wait(DEADLINE)
        parking.release()

    releaser = threading.Thread(target=release)
    releaser.start()
    started = monotonic()
    system.close(0.4)
    assert monotonic() - started < 5
    releaser.join(DEADLINE)
    ends = outcomes([held, *receipts])
    assert set(ends) <= {"NoneType", "StoreError"}, set(ends)
    assert system.settle(0)
    assert system.stats()["in_flight"] == 0
    again = make_system()
    row = again.register(Totals()).read("a")
    committed = [
        receipt
        for receipt, end in zip([held, *receipts], ends, strict=True)
        if end == "NoneType" and receipt.result()[0].key == "a"
    ]
    assert len(committed) == (0 if row is None else len(row.amounts))


def test_an_apply_that_hangs_leaves_no_receipt_of_another_key_open(make_system: MakeSystem) -> None:
    """The close ends them, as nothing will ever fold them; the hanging one's too."""
    system = make_system(tuning={"dispatcher_threads": 1})
    system.register(Totals())
    parking = Parking()
    hanging = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    others = [system.bus.dispatch(Added(f"b{n}")) for n in range(10)]
    system.close(0.3)
    assert outcomes([hanging, *others]) == ["StoreError"] * 11
    assert system.stats()["in_flight"] == 0
    parking.release()
    for thread in threading.enumerate():
        if thread.name.startswith("keyfold-dispatcher"):
            thread.join(DEADLINE)
    assert outcomes([hanging]) == ["StoreError"]  # an outcome never changes


def test_a_dispatch_that_waits_for_room_is_refused_by_the_close(make_system: MakeSystem) -> None:
    """It wakes on a sealed mailbox, and must not put its event where nobody looks."""
    system = make_system(mailbox_limit=1, dispatch_timeout=DEADLINE)
    system.register(Totals())
    parking = Parking()
    first = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    second = system.bus.dispatch(Added("a"))
    with ThreadPoolExecutor(1) as pool:
        late = pool.submit(system.bus.dispatch, Added("a"))
        mailbox = system.runtime("test.totals").running().actors["a"].actor_inbox
        room: Any = mailbox
        wait_until(lambda: room._room is not None and bool(room._room._waiters))
        system.close(0.2)
        parking.release()
        error = late.exception(DEADLINE)
        if error is None:
            error = late.result().exception(0)
        assert isinstance(error, (Closed, StoreError, MailboxFull))
    assert outcomes([second]) == ["StoreError"]
    assert first.exception(0) is not None


def test_a_second_close_waits_for_the_first(make_system: MakeSystem) -> None:
    """When it returns, everything has ended."""
    system = make_system(turn_limit=2)
    system.register(Totals())
    parking = Parking()
    held = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    with ThreadPoolExecutor(2) as pool:
        first = pool.submit(system.close, DEADLINE)
        wait_until(lambda: system.closed)
        second = pool.submit(system.close, DEADLINE)
        assert not first.done()
        parking.release()
        second.result(DEADLINE)
        assert held.done()
        assert first.done() or first.result(DEADLINE) is None


@pytest.mark.parametrize("call", ["close", "settle"])
def test_waiting_for_everything_in_a_hook_is_an_error_and_no_deadlock(
    system: ProjectionSystem, totals: Runtime, call: str
) -> None:
    """A dispatcher thread would wait for itself; afterwards the system goes on and closes well."""
    caught: list[Exception] = []

    def hook(_key: str, _state: Total) -> None:
        try:
            getattr(system, call)()
        except WouldDeadlock as error:
            caught.append(error)

    totals.on_applied(hook)
    system.bus.dispatch(Added("a")).result(DEADLINE)
    assert len(caught) == 1
    system.bus.dispatch(Added("a")).result(DEADLINE)
    assert system.settle(DEADLINE)
    started = monotonic()
    system.close(DEADLINE)
    assert monotonic() - started < DEADLINE / 2


# -- interrupts


class Interrupt(BaseException):
    """An exception of a signal handler."""


def _lines_of_a_dispatch(system: ProjectionSystem, key: str) -> list[tuple[str, int]]:
    lines: list[tuple[str, int]] = []
    _traced(lines.append, lambda: system.bus.dispatch(Added(key)))
    return lines


def _traced(at: Callable[[tuple[str, int]], object], work: Callable[[], object]) -> None:
    def trace(frame: FrameType, event: str, _argument: Any) -> Any:
        if not frame.f_code.co_filename.startswith(str(_SOURCES)):
            return None
        if event == "line" and not _leaves_with(frame):
            at((frame.f_code.co_filename, frame.f_lineno))
        return trace

    sys.settrace(trace)
    try:
        work()
    finally:
        sys.settrace(None)


def _leaves_with(frame: FrameType) -> bool:
    """A trace function is called between the body of a with statement and its __exit__; a signal never is."""
    line = linecache.getline(frame.f_code.co_filename, frame.f_lineno)
    return line.lstrip().startswith("with ") and frame.f_code.co_code[frame.f_lasti] == _LOAD_CONST


_LOAD_CONST = dis.opmap["LOAD_CONST"]


@pytest.mark.parametrize("known", [False, True])
def test_an_interrupt_at_any_line_of_a_dispatch_leaves_the_counts_right(
    make_system: MakeSystem, *, known: bool
) -> None:
    """As Ctrl-C, or sys.exit in a handler, may come anywhere: nothing is counted twice, and no key hangs."""
    system = make_system(idle_seconds=3600)
    totals = system.register(Totals())
    system.bus.dispatch(Added("known")).result(DEADLINE)
    lines = _lines_of_a_dispatch(system, "known" if known else "other")
    assert system.settle(DEADLINE)
    assert len(lines) > 10
    for number in range(len(lines)):
        key = "known" if known else f"new {number}"
        left = number

        def interrupt(_place: tuple[str, int]) -> None:
            nonlocal left
            left -= 1
            if left == -1:
                raise Interrupt

        before = 0 if (state := totals.read(key)) is None else state.total
        with suppress(Interrupt):
            _traced(interrupt, lambda key=key: system.bus.dispatch(Added(key)))  # type: ignore[misc]
        assert system.settle(DEADLINE), lines[number]
        assert system.stats()["in_flight"] == 0, lines[number]
        [applied] = system.bus.dispatch(Added(key)).result(DEADLINE)
        # The interrupted one may be accepted, or not; once at most.
        assert applied.version == totals.read_required(key).total
        assert applied.version - before in (1, 2), lines[number]


def test_a_close_in_a_signal_handler_ends_though_it_interrupted_a_mailbox(make_system: MakeSystem) -> None:
    """The lock that the close would wait for is held by the very thread that it runs on."""
    system = make_system()
    totals = system.register(Totals())
    receipts = [system.bus.dispatch(Added("a")) for _ in range(100)]
    mailbox = totals.running().actors["a"].actor_inbox
    closed = threading.Event()

    def handler(_number: int, _frame: FrameType | None) -> None:
        system.close(DEADLINE)
        closed.set()

    before = signal.signal(signal.SIGUSR1, handler)
    try:
        sent = False

        def at(place: tuple[str, int]) -> None:
            nonlocal sent
            if not sent and place[0].endswith("mailbox.py") and mailbox._lock.locked():
                sent = True
                signal.raise_signal(signal.SIGUSR1)

        def work() -> None:
            for _ in range(3):
                receipts.append(system.bus.dispatch(Added("a")))  # noqa: PERF401  # those before it count

        with pytest.raises((Closed, StoreError)):
            _traced(at, work)
    finally:
        signal.signal(signal.SIGUSR1, before)
    assert closed.wait(DEADLINE)
    for receipt in receipts:
        receipt.result(DEADLINE)
    system.close(DEADLINE)  # waits for the other


# -- starts


def test_a_start_that_fails_half_way_accepts_nothing_and_leaves_nothing(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The process may have no more threads: the first dispatch says so, and so does the second."""
    system = make_system()
    totals = system.register(Totals())
    system.store.ensure_tables()
    before = set(threading.enumerate())
    for allowed in range(4):
        real, left = threading.Thread.start, allowed

        def start(thread: threading.Thread, real: Callable[..., None] = real) -> None:
            nonlocal left
            if left == 0:
                msg = "can't start new thread"
                raise RuntimeError(msg)
            left -= 1
            real(thread)

        with monkeypatch.context() as patch:
            patch.setattr(threading.Thread, "start", start)
            for _ in range(2):
                left = allowed
                with pytest.raises(RuntimeError):
                    system.bus.dispatch(Added("a"))
        assert system.settle(0)
        wait_until(lambda: set(threading.enumerate()) <= before)
    assert totals.apply_event(Added("a"), DEADLINE)[0].version == 1


# -- one error for many


def test_each_receipt_of_a_failed_batch_raises_an_error_of_its_own(make_system: MakeSystem) -> None:
    """One object for all would grow a traceback with the frames and locals of every request that asks."""
    system = make_system(tuning={"dispatcher_threads": 1})
    system.register(Totals())
    parking = Parking()
    hanging = system.bus.dispatch(Added("a", 1, park_in(parking)))
    parking.wait_for_arrival()
    receipts = [system.bus.dispatch(Added("a")) for _ in range(50)]
    system.close(0.1)
    parking.release()
    errors = []
    for receipt in [hanging, *receipts]:
        for _ in range(2):
            with pytest.raises(StoreError) as caught:
                receipt.result(0)
            errors.append(caught.value)
    assert len({id(error) for error in errors}) == len(errors)
    assert max(len(traceback.extract_tb(error.__traceback__)) for error in errors) < 6


def test_an_error_keeps_its_facts_and_its_cause(totals: Runtime, system: ProjectionSystem) -> None:
    """The copy that a Receipt raises tells as much as the error itself."""
    receipt = system.bus.dispatch(event := Added("a", 1, poison))
    first, second = receipt.exception(DEADLINE), receipt.exception(0)
    assert isinstance(first, ApplyError)
    assert isinstance(second, ApplyError)
    assert first is not second
    assert (first.key, first.version, first.event, str(first)) == ("a", 1, event, str(second))
    assert isinstance(first.__cause__, ValueError)
    assert "in poison" in "".join(traceback.format_exception(first))


class Heavy:
    """A part of a state that can be missed."""


def test_a_failed_receipt_keeps_neither_the_state_nor_the_batch(
    totals: Runtime, system: ProjectionSystem
) -> None:
    """The traceback of its cause names files and lines, and holds no local variable."""
    seen: list[weakref.ref[Any]] = []

    def fail(state: Total) -> None:
        local = Heavy()
        seen.append(weakref.ref(local))
        seen.append(weakref.ref(state))
        raise ValueError

    receipt = system.bus.dispatch(Added("a", 1, fail))
    error = receipt.exception(DEADLINE)
    assert error is not None
    assert system.settle(DEADLINE)
    gc.collect()
    assert [alive() for alive in seen] == [None] * len(seen)
    assert "fail" in "".join(traceback.format_exception(error))


# -- waiting


def test_polling_a_receipt_keeps_nothing(totals: Runtime, system: ProjectionSystem) -> None:
    """Neither a poll nor a wait that timed out leaves a callback behind."""
    parking = Parking()
    receipt = system.bus.dispatch(Added("a", 1, park_in(parking)))
    for timeout in (0, 0, -1, 1e-6, 1e-6):
        with pytest.raises(TimeoutError):
            receipt.result(timeout)
    assert not receipt._callbacks
    parking.release()
    assert receipt.result(float("inf"))[0].version == 1


class Many(Totals):
    """One event for many keys."""

    name = "test.many"

    def keys(self, event: Added) -> Iterator[str]:
        return (f"{event.key} {number}" for number in range(event.amount))


def test_the_receipt_of_many_keys_looks_at_each_part_a_few_times(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In linear time: 4,000 keys held a dispatcher thread for 0.4 s once."""
    from keyfold.actors.receipt import Delivery  # noqa: PLC0415

    system = make_system()
    system.register(Many())
    looks = 0
    done = Delivery.done

    def counted(delivery: Delivery) -> bool:
        nonlocal looks
        looks += 1
        return done(delivery)

    monkeypatch.setattr(Delivery, "done", counted)
    receipt = system.bus.dispatch(Added("k", 1_000))
    called = threading.Event()
    receipt.add_done_callback(lambda _: called.set())
    assert len(receipt.result(DEADLINE)) == 1_000
    assert called.wait(DEADLINE)
    assert looks < 10_000


def test_errors_of_this_module_are_projection_errors() -> None:
    """Those who catch the root catch all of them."""
    assert issubclass(WouldDeadlock, ProjectionError)
