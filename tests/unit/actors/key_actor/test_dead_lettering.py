"""The dead letter of any event, whatever the event and its error do."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from keyfold.actors.key_actor.dead_lettering import make_letter, release_frames
from keyfold.actors.projection_codec import ProjectionCodec
from support.counting import Added, Totals


class Hostile:
    """Raises when it is printed."""

    def __repr__(self) -> str:
        raise SystemExit


def letter_of(event: object, error: Exception) -> Any:
    context: Any = SimpleNamespace(name="test.totals", codec=ProjectionCodec(Totals()))
    delivery: Any = SimpleNamespace(event=event)
    return make_letter(context, "a", delivery, error).letter


def test_an_event_is_kept_as_json_with_the_cause_of_its_error() -> None:
    """So that it can be folded later."""
    error = RuntimeError("apply failed")
    error.__cause__ = ValueError("no stock")
    letter = letter_of(Added("a", 3), error)
    assert letter.event == '{"key":"a","amount":3,"then":null}'
    assert letter.event_type == "support.counting.Added"
    assert letter.error == "ValueError: no stock"


def test_an_event_without_json_and_repr_still_has_a_letter() -> None:
    """Making a letter never raises."""

    assert letter_of(Hostile(), ValueError()).event == "<Hostile whose repr raises SystemExit>"


@pytest.mark.parametrize(
    ("text", "kept"),
    [("nul \x00", "nul \\x00"), ("lone \ud800", "lone \\ud800")],
    ids=["NUL", "a lone surrogate"],
)
def test_text_that_a_database_refuses_is_escaped(text: str, kept: str) -> None:
    """PostgreSQL has no NUL in a text, and no database a lone surrogate."""
    assert letter_of(Added("a"), ValueError(text)).error == f"ValueError: {kept}"


def test_a_long_text_keeps_its_ends() -> None:
    """20,000 characters, and the number of those left out."""
    error = letter_of(Added("a"), ValueError("x" * 30_000 + "the end")).error
    assert len(error) < 20_100
    assert "characters left out" in error
    assert error.endswith("the end")


def test_an_error_that_an_app_keeps_holds_no_state() -> None:
    """The local variables of all calls are cleared, also those of a cause and in a circle of errors."""

    class State:
        pass

    def fail() -> None:
        state = State()
        raise ValueError(state.__class__.__name__)

    with pytest.raises(ValueError, match="State") as caught:
        fail()
    error = caught.value
    error.__context__ = error
    step = error.__traceback__
    assert step is not None
    assert step.tb_next is not None
    inner = step.tb_next.tb_frame
    assert "state" in inner.f_locals
    release_frames(error)
    assert "state" not in inner.f_locals
