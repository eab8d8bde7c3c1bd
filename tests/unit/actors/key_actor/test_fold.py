"""The fold by itself: the order, the end of a turn, and the event that is to blame."""

from __future__ import annotations

import math
from types import SimpleNamespace
from typing import Any

import pytest
from keyfold.actors.key_actor import fold as module
from keyfold.actors.key_actor.fold import fold
from keyfold.actors.projection_codec import ProjectionCodec
from support.counting import Added, Total, Totals


def batch_of(*events: Added) -> list[Any]:
    return [SimpleNamespace(event=event) for event in events]


def test_deltas_have_the_order_of_the_events() -> None:
    """And the state is changed in place."""
    state = Total()
    batch = batch_of(*(Added("a", n) for n in range(100)))
    deltas, error = fold(ProjectionCodec(Totals()), state, batch, math.inf)
    assert error is None
    assert (len(deltas), deltas[2], state.total) == (100, b'{"total":3}', 4950)


def test_a_turn_that_is_over_leaves_the_rest_of_the_batch(monkeypatch: pytest.MonkeyPatch) -> None:
    """The clock is read after each event while events are slow."""
    now = [0.0]
    monkeypatch.setattr(module, "monotonic", lambda: now[0])

    def take_a_second(_state: Total) -> None:
        now[0] += 1

    state = Total()
    batch = batch_of(*(Added("a", 1, take_a_second) for _ in range(10)))
    deltas, error = fold(ProjectionCodec(Totals()), state, batch, 2.5)
    assert (len(deltas), error, state.total) == (3, None, 3)


def test_the_deltas_before_an_error_are_kept() -> None:
    """Every exception counts, SystemExit too."""

    def leave(_state: Total) -> None:
        raise SystemExit

    batch = batch_of(Added("a"), Added("a"), Added("a", 1, leave), Added("a"))
    deltas, error = fold(ProjectionCodec(Totals()), Total(), batch, math.inf)
    assert len(deltas) == 2
    assert isinstance(error, SystemExit)


def test_a_delta_without_json_is_explained() -> None:
    """The error is the delta's, and names the field."""
    batch = batch_of(Added("a"), Added("a", 1, lambda _state: {"socket": object()}))
    deltas, error = fold(ProjectionCodec(Totals()), Total(), batch, math.inf)
    assert len(deltas) == 1
    assert "socket" in str(error)
