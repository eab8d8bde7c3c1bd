"""The gate before a fork."""

from __future__ import annotations

import threading
from time import monotonic

from keyfold.store.dialects.fork_gate import ForkGate
from support.parking import DEADLINE


def test_a_closed_gate_lets_no_thread_in_until_it_is_opened() -> None:
    """A thread that is inside may enter again: the fork waits for it."""
    gate = ForkGate()
    inside, may_leave = threading.Event(), threading.Event()

    def work() -> None:
        gate.enter()
        inside.set()
        may_leave.wait(DEADLINE)
        gate.enter()  # nested, although the gate is closed by now
        gate.leave()
        gate.leave()

    entered = threading.Event()

    def come_late() -> None:
        gate.enter()
        entered.set()
        gate.leave()

    worker = threading.Thread(target=work)
    worker.start()
    assert inside.wait(DEADLINE)
    gate.close()
    late = threading.Thread(target=come_late)
    late.start()
    assert worker.ident in gate.wait_until_empty(monotonic())
    may_leave.set()
    assert gate.wait_until_empty(monotonic() + DEADLINE) == set()
    worker.join(DEADLINE)
    assert not entered.is_set()
    gate.open()
    late.join(DEADLINE)
    assert entered.is_set()


def test_the_forking_thread_itself_may_be_inside() -> None:
    """It does not wait for itself, and stays inside in the child."""
    gate = ForkGate()
    gate.enter()
    gate.close()
    assert gate.wait_until_empty(monotonic() + DEADLINE) == set()
    gate.renew()
    gate.leave()
    assert gate.wait_until_empty(monotonic()) == set()
