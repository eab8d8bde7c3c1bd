"""JSON by msgspec: round trips, hooks, and errors that name the field."""

from __future__ import annotations

import enum
import json
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyfold.store import DecodeError, EncodeError
from keyfold.store.codec import Codec


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


@dataclass
class Inner:
    amount: Decimal
    colour: Colour
    at: datetime | None = None


@dataclass
class Everything:
    number: int
    share: float
    text: str
    id: UUID
    inner: list[Inner] = field(default_factory=list)
    by_number: dict[int, str] = field(default_factory=dict)
    tags: set[str] = field(default_factory=set)


class Struct(msgspec.Struct):
    name: str
    anything: Any = None


inners = st.builds(
    Inner,
    amount=st.decimals(allow_nan=False, allow_infinity=False),
    colour=st.sampled_from(Colour),
    at=st.none() | st.datetimes(timezones=st.just(UTC)),
)
everything = st.builds(
    Everything,
    number=st.integers(-(2**63), 2**63 - 1),
    share=st.floats(allow_nan=False, allow_infinity=False),
    text=st.text(),
    id=st.uuids(),
    inner=st.lists(inners, max_size=3),
    by_number=st.dictionaries(st.integers(-(2**63), 2**63 - 1), st.text(), max_size=3),
    tags=st.sets(st.text(), max_size=3),
)


@given(everything)
def test_an_encoded_object_decodes_as_an_equal_one(value: Everything) -> None:
    """Dataclasses with datetime, UUID, Decimal, enum, sets and integer keys come back equal."""
    codec = Codec(Everything)
    assert codec.decode(codec.encode(value)) == value


@given(
    st.recursive(
        st.none() | st.booleans() | st.integers(-(2**53), 2**53) | st.text(),
        lambda inner: st.lists(inner) | st.dictionaries(st.text(), inner),
    )
)
def test_plain_values_are_ordinary_json(value: Any) -> None:
    """Any other JSON reader can read the result."""
    assert json.loads(Codec(Any).encode(value)) == value


def test_structs_and_hooks() -> None:
    """A hook encodes an object that JSON has no form for, and another one decodes it."""

    def encode(value: Any) -> Any:
        return {"re": value.real, "im": value.imag}

    def decode(_type: type[Any], plain: Any) -> Any:
        return complex(plain["re"], plain["im"])

    codec = Codec(dict[str, complex], encode_hook=encode, decode_hook=decode)
    assert codec.decode(codec.encode({"z": 1 + 2j})) == {"z": 1 + 2j}
    struct = Codec(Struct)
    assert struct.decode(struct.encode(Struct("a", [1]))) == Struct("a", [1])


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ({"a": {"b": [1, object()]}}, r"field \"\['a'\]\['b'\]\[1\]\": a object"),
        (Struct("x", anything=object()), "field 'anything': a object"),
        (
            Everything(1, 0.5, "", uuid4(), tags={object()}),  # type: ignore[arg-type]
            "field 'tags': a object",
        ),
        (object(), "a object can't be encoded"),
        ({"text": "\ud800"}, r"\['text'\]"),
    ],
)
def test_a_part_that_cannot_be_encoded_is_named(value: Any, named: str) -> None:
    """The message says which field, however deep."""
    with pytest.raises(EncodeError, match=named):
        Codec(Any).encode(value)


def test_a_cycle_ends_in_an_error() -> None:
    """Not in a crash, nor in an endless search for the field."""
    value: list[Any] = []
    value.append(value)
    with pytest.raises(EncodeError):
        Codec(Any).encode(value)


def test_a_part_that_does_not_decode_is_named() -> None:
    """msgspec's path is kept."""
    with pytest.raises(DecodeError, match=r"\$\.number"):
        Codec(Everything).decode(b'{"number":"x","share":1,"text":"","id":"","inner":[]}')
