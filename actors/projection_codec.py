"""The JSON of one projection: its states, deltas and events."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from msgspec import json as _json

from ..store.codec import Codec
from ..store.rows import Row
from .errors import newer_row
from .projection import Projection, delta_type


class ProjectionCodec:
    """Encodes and decodes the objects of one projection, and upgrades the rows of older releases.

    Args:
        projection: Its hooks, its types and its options are read here, once.
    """

    def __init__(self, projection: Projection[Any, Any]) -> None:
        self.projection = projection
        self.name = projection.name
        self.state = self.codec_of(projection.state_type)
        self.delta = self.codec_of(delta_type(projection))
        self.schema_version = projection.schema_version
        # Off: for states too large to be decoded after each turn, of an app that knows them to come back.
        self.verifies = projection.verify

    def codec_of(self, type_: Any) -> Codec:
        """Return the codec of a type, with the hooks of the projection."""
        encode, decode = self.projection.encode_hook, self.projection.decode_hook
        return Codec(type_, encode_hook=encode, decode_hook=decode)

    def encode_state(self, state: Any) -> bytes:
        """Return a state as JSON that reads back as the same state.

        Raises EncodeError that names the field.
        """
        encoded = self.state.encode(state)
        if self.verifies:
            self.state.verify(state, encoded)
        return encoded

    def state_of(self, row: Row | None) -> Any:
        """Return the state that a row holds; a new one if there is no row. Raises as ``upgraded`` does."""
        return self.projection.state_type() if row is None else self.state.decode(self.upgraded(row).state)

    def upgraded(self, row: Row) -> Row:
        """Return the row with its state in the shape of this release.

        Raises NewerRow for a row of a newer schema, and everything that ``upgrade`` of the projection raises:
        the caller knows the key, and names it.
        """
        known = self.schema_version
        if row.schema_version == known or row.is_tombstone:
            return row
        if row.schema_version > known:
            raise newer_row(self.name, None, row.schema_version, known)
        upgraded = self.projection.upgrade(_json.decode(row.state), row.schema_version)
        return row._replace(state=self.state.encode(upgraded), schema_version=known)

    def first_undecodable(self, deltas: Sequence[bytes]) -> tuple[int, Exception] | None:
        """Return the index of the first delta that does not decode, and its error; None if all decode."""
        return self.delta.decodes(deltas) if self.verifies else None

    def encode_event(self, event: Any) -> bytes:
        """Return an event as JSON. Raises EncodeError."""
        return self.delta.encode(event)  # an encoder takes objects of any type
