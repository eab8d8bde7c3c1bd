"""Calls are made when they are due, and the remaining ones at the end."""

from __future__ import annotations

import threading
from time import monotonic

from keyfold.actors.pool.timer import Timer
from support.parking import DEADLINE


def test_calls_are_made_in_their_order_and_at_the_end_at_once() -> None:
    """A call that is due earlier overtakes one that was added before; a call that raises harms no other."""
    timer, made, called = Timer(), list[str](), threading.Event()

    def fail() -> None:
        msg = "poison"
        raise ValueError(msg)

    timer.after(3600.0, lambda: made.append("late"))
    timer.after(0.0, fail)
    timer.after(0.01, called.set)
    timer.after(0.0, lambda: made.append("soon"))
    assert called.wait(DEADLINE)
    assert made == ["soon"]
    assert [loop.alive for loop in timer.loops(monotonic())] == [True]
    assert timer.stop(monotonic() + DEADLINE)
    assert made == ["soon", "late"]
    ended = threading.Event()
    timer.after(3600.0, ended.set)  # an actor that pauses at the very end is not left in its pause
    assert ended.wait(DEADLINE)
    assert timer.stop(monotonic() + DEADLINE)
