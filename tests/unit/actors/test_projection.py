"""A Projection class is checked before it runs, and its types come from its type arguments."""

from __future__ import annotations

from typing import Any

import pytest
from keyfold.actors import Projection
from keyfold.actors.errors import InvalidProjection
from keyfold.actors.projection import check_projection, delta_type, event_types


class Tally(Projection[int | str, dict[str, int]]):
    """A valid one."""

    name = "test.tally"

    def key(self, event: int | str) -> str:
        return str(event)

    def apply(self, state: dict[str, int], event: int | str) -> list[int]:
        state[str(event)] = 1
        return [1]


def test_types_come_from_the_type_arguments() -> None:
    """A union gives a tuple of event types, and the annotation of apply gives the type of the delta."""
    tally = Tally()
    assert check_projection(tally) is tally
    assert event_types(tally) == (int, str)
    assert tally.state_type() == {}
    assert delta_type(tally) == list[int]


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [
        ("name", "keyfold.own", "Keyfold's own"),
        ("on_error", "stop", "on_error must be"),
        ("verify", 1, "verify must be True or False"),
        ("schema_version", 0, "at least 1, not 0"),
        ("schema_version", True, "at least 1, not True"),
    ],
)
def test_a_wrong_option_is_named(attribute: str, value: Any, message: str) -> None:
    """Each option that can't run is refused with a message that names it."""
    projection = type("Wrong", (Tally,), {attribute: value})()
    with pytest.raises(InvalidProjection, match=message):
        check_projection(projection)


def test_a_class_is_no_instance() -> None:
    """The message for a class tells how to register an instance."""
    with pytest.raises(InvalidProjection, match=r"register an instance: Tally\(\)"):
        check_projection(Tally)
