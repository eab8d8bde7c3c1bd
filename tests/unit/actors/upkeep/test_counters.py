"""Totals are consistent, and events under way are bounded, waited for and ended."""

from __future__ import annotations

import threading
from time import monotonic

from keyfold.actors.upkeep.counters import Counters, InFlight
from support.parking import DEADLINE


class Message:
    """An accepted message: it keeps its first outcome."""

    def __init__(self) -> None:
        self.error: Exception | None = None
        self.over = False

    def fail(self, error: Exception) -> None:
        """Take an error as the outcome, unless there is one."""
        self.error = self.error or error
        self.over = True

    def is_over(self) -> bool:
        """Return whether there is an outcome."""
        return self.over


def test_totals_are_added_up() -> None:
    """Several in one call, and a copy does not change."""
    counters = Counters()
    counters.add(events=3, turns=1)
    before = counters.totals()
    counters.add(events=2)
    assert (before["events"], counters["events"], counters["turns"]) == (3, 5, 1)


def test_a_wait_for_room_ends_when_a_message_is_removed() -> None:
    """And not before; at the deadline it is False."""
    in_flight, message = InFlight(limit=1), Message()
    in_flight.open.add(message)
    assert not in_flight.wait_for_room(monotonic() + 0.01)
    remover = threading.Timer(0.01, in_flight.remove, [(message,)])
    remover.start()
    assert in_flight.wait_for_room(monotonic() + DEADLINE)
    remover.join()
    assert len(in_flight) == 0


def test_a_message_with_an_outcome_holds_up_no_close() -> None:
    """Its actor failed before it could remove it."""
    in_flight, over, open_ = InFlight(limit=10), Message(), Message()
    in_flight.open.update((over, open_))
    over.over = True
    assert not in_flight.wait_for_none(monotonic())
    assert in_flight.open == {open_}


def test_all_that_are_left_are_failed() -> None:
    """Each with the error, but for those that have one."""
    in_flight, first, second = InFlight(limit=10), Message(), Message()
    in_flight.open.update((first, second))
    early, late = ValueError("early"), ValueError("late")
    in_flight.fail([first], early)
    assert in_flight.open == {second}
    in_flight.open.add(first)
    in_flight.fail_all(late)
    assert (first.error, second.error, len(in_flight)) == (early, late, 0)
