"""States, events and deltas as JSON, by msgspec."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import msgspec

EncodeHook = Callable[[Any], Any]
DecodeHook = Callable[[type[Any], Any], Any]

_DEPTH = 50


class EncodeError(ValueError):
    """An object has a part that JSON has no form for; the message names the field."""


class DecodeError(ValueError):
    """JSON does not fit the type; the message names the field."""


class Codec:
    """Encodes objects as JSON and decodes them as one type.

    Knows what msgspec knows: dataclasses, Structs, dicts, lists, sets, datetime, UUID, Decimal, enums.
    ``encode_hook(object) -> plain`` and ``decode_hook(type, plain) -> object`` add others.

    A float that is NaN or infinite has no form in JSON and is written as null, as msgspec does it:
    looking for one would cost more than the encoding itself.
    """

    def __init__(
        self,
        type_: Any,
        *,
        encode_hook: EncodeHook | None = None,
        decode_hook: DecodeHook | None = None,
    ) -> None:
        self._encoder = msgspec.json.Encoder(enc_hook=encode_hook)
        self._decoder = msgspec.json.Decoder(type_, dec_hook=decode_hook)

    def encode(self, value: Any) -> bytes:
        """Return value as JSON. Raises EncodeError that names the field which can't be encoded."""
        try:
            return self._encoder.encode(value)
        except Exception as error:
            raise self._explain(value, error) from error

    def decode(self, data: bytes | str) -> Any:
        """Return data as an object of the type. Raises DecodeError that names the field that doesn't fit."""
        try:
            return self._decoder.decode(data)
        except Exception as error:
            msg = f"{error}"
            raise DecodeError(msg) from error

    def _explain(self, value: Any, error: Exception) -> EncodeError:
        path, guilty = self._find("", value, _DEPTH)
        kind = type(guilty).__qualname__
        where = f"field {path.lstrip('.')!r}: " if path else ""
        return EncodeError(f"{where}a {kind} can't be encoded as JSON: {error}")

    def _find(self, path: str, value: Any, depth: int) -> tuple[str, Any]:
        """Descend to the deepest part of value that can't be encoded by itself."""
        if depth:
            for step, part in _parts(value):
                try:
                    self._encoder.encode(part)
                except Exception:
                    return self._find(path + step, part, depth - 1)
        return path, value


def _parts(value: Any) -> Iterator[tuple[str, Any]]:
    if isinstance(value, Mapping):
        for key, part in value.items():
            yield f"[{key!r}]", part
    elif isinstance(value, (list, tuple)):
        for index, part in enumerate(value):
            yield f"[{index}]", part
    elif dataclasses.is_dataclass(value):
        for field in dataclasses.fields(value):
            yield f".{field.name}", getattr(value, field.name, None)
    elif isinstance(value, msgspec.Struct):
        for name in value.__struct_fields__:
            yield f".{name}", getattr(value, name, None)
