"""States go to JSON and back, and rows of other schemas are upgraded or refused."""

from __future__ import annotations

from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

import pytest
from keyfold.actors import Projection
from keyfold.actors.errors import NewerRow
from keyfold.actors.projection_codec import ProjectionCodec
from keyfold.store.codec import EncodeError
from keyfold.store.rows import Row


@dataclass
class Noted:
    """An event."""

    text: str


@dataclass
class Notes:
    """A state."""

    texts: list[str] = field(default_factory=list)
    extra: Any = None


class Pad(Projection[Noted, Notes]):
    """Its rows had a plain list before."""

    name = "test.pad"
    schema_version = 2

    def key(self, event: Noted) -> str:
        return "a"

    def apply(self, state: Notes, event: Noted) -> dict[str, int]:
        state.texts.append(event.text)
        return {"count": len(state.texts)}

    def upgrade(self, state: Any, from_version: int) -> Any:
        assert from_version == 1
        return {"texts": state}


class Trusting(Pad):
    """Its states are not read back."""

    verify = False


def row(state: bytes, schema_version: int, version: int = 3) -> Row:
    """Return a row of this schema."""
    return Row("e", version, schema_version, state, datetime.now(UTC))


def test_a_new_key_has_a_new_state() -> None:
    """And a row has the state that was encoded."""
    codec = ProjectionCodec(Pad())
    assert codec.state_of(None) == Notes()
    encoded = codec.encode_state(Notes(["x"]))
    assert codec.state_of(row(encoded, 2)) == Notes(["x"])


def test_an_old_row_is_upgraded_and_a_newer_one_is_refused() -> None:
    """The upgraded row has the shape and the number of this release."""
    codec = ProjectionCodec(Pad())
    upgraded = codec.upgraded(row(b'["x"]', 1))
    assert (codec.state_of(upgraded), upgraded.schema_version) == (Notes(["x"]), 2)
    with pytest.raises(NewerRow, match="schema 3"):
        codec.upgraded(row(b"{}", 3))


def test_a_state_that_does_not_come_back_is_refused_unless_the_projection_trusts() -> None:
    """A tuple in an untyped field comes back as a list."""
    state = Notes(extra=(1, 2))
    with pytest.raises(EncodeError, match="extra"):
        ProjectionCodec(Pad()).encode_state(state)
    assert ProjectionCodec(Trusting()).encode_state(state)


def test_the_first_delta_that_does_not_decode_is_found() -> None:
    """By its index; a projection that trusts looks at none."""
    deltas = [b'{"count":1}', b'{"count":"x"}']
    found = ProjectionCodec(Pad()).first_undecodable(deltas)
    assert found is not None
    assert found[0] == 1
    assert ProjectionCodec(Pad()).first_undecodable(deltas[:1]) is None
    assert ProjectionCodec(Trusting()).first_undecodable(deltas) is None
