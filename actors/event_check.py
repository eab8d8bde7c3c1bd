"""The check before an event is accepted: it can be kept, and read back."""

from __future__ import annotations

import enum
from collections.abc import Callable, Sequence
from datetime import UTC, date, datetime
from decimal import Decimal
from inspect import getattr_static
from keyword import iskeyword
from types import MemberDescriptorType
from typing import Any
from uuid import UUID

import msgspec
from msgspec import inspect

from ..store.codec import Codec, DecodeError, EncodeError, ReadBackError, name_field

EventCheck = Callable[[Any], str | None]
"""Returns None if the event is fine, else the reason why it is not. ``dispatch`` calls it for every event."""


def make_event_check(event_class: type, codec: Codec | None, max_bytes: int, *, required: bool) -> EventCheck:
    """Return the check for the events of one class.

    An event is fine if its JSON decodes as its class, holds no float that is not finite, and has at most
    ``max_bytes`` bytes: then it can be kept as a dead letter, or parked, and be folded later. It need not be
    equal then; a list in place of a tuple is fine.

    A flat class has only fields of text, numbers, times and the like. It gets a function of its own, which
    looks at the types of the fields and encodes nothing. An event that this function can't decide about is
    encoded and decoded.

    Args:
        event_class: The exact class of the events. A subclass has a check of its own.
        codec: Encodes and decodes the class; None if msgspec can't handle the class.
        max_bytes: The longest JSON allowed, in bytes.
        required: Whether an event without any form in JSON is refused. Otherwise it is fine: as a dead letter
            it can't be retried, and it harms nothing else.

    Returns:
        A function that returns None for an event that is fine, else the reason, which names the field.
    """
    if codec is None:
        reason = f"msgspec can't read objects of class {event_class.__qualname__} back from JSON"
        return lambda _event: reason if required else None
    thorough = _thorough_check(codec, max_bytes, required=required)
    fields = _flat_fields(event_class)
    if fields is None:
        return thorough
    try:
        return _Generator(event_class, fields, max_bytes).compile(thorough)
    except _NotFlatError:
        return thorough


def has_json_form(event_class: type) -> bool:
    """Return whether msgspec knows how objects of a class look in JSON. Their parts do not matter."""
    try:
        return not isinstance(inspect.type_info(event_class), inspect.CustomType)
    except Exception:
        return False


def _thorough_check(codec: Codec, max_bytes: int, *, required: bool) -> EventCheck:
    encode, decode = codec.encode, codec.decode

    def check(event: Any) -> str | None:
        try:
            encoded = encode(event)
            if len(encoded) > max_bytes:
                return f"its JSON has {len(encoded):,} bytes, and KEYFOLD_EVENT_BYTES allows {max_bytes:,}"
            decode(encoded)
        except ReadBackError as error:
            return str(error)
        except EncodeError as error:
            _raise_exit(error)
            return str(error) if required else None
        except DecodeError as error:
            _raise_exit(error)
            return name_field(str(error))
        return None

    return check


def _raise_exit(error: ValueError) -> None:
    """Raise a SystemExit again that a signal handler raised within a hook: the process is told to end."""
    cause = error.__cause__
    if cause is not None and not isinstance(cause, Exception):
        raise cause


# -- flat classes


class _NotFlatError(Exception):
    """A field has parts, or a property that only decoding can check."""


def _flat_fields(event_class: type) -> Sequence[inspect.Field] | None:
    """Return the fields of a class if only they decide whether an event decodes; else None."""
    try:
        info = inspect.type_info(event_class)
    except Exception:
        return None
    if not isinstance(info, (inspect.DataclassType, inspect.StructType)) or info.cls is not event_class:
        return None
    base: Any = msgspec.Struct if isinstance(info, inspect.StructType) else object
    plain = (
        event_class.__new__ is base.__new__
        and event_class.__getattribute__ is base.__getattribute__
        and not hasattr(event_class, "__getattr__")
        and not hasattr(event_class, "__post_init__")
        and (event_class.__setattr__ is base.__setattr__ or _is_frozen_dataclass(event_class))
        and all(_is_plain_attribute(event_class, field.name) for field in info.fields)
    )
    return info.fields if plain else None


def _is_frozen_dataclass(event_class: type) -> bool:
    parameters: Any = getattr(event_class, "__dataclass_params__", None)
    return parameters is not None and "__setattr__" in vars(event_class) and bool(parameters.frozen)


def _is_plain_attribute(event_class: type, name: str) -> bool:
    """Return whether reading the attribute calls no code: it is a slot, a default, or in the dict."""
    if not name.isidentifier() or iskeyword(name):
        return False
    found = getattr_static(event_class, name, None)
    return isinstance(found, MemberDescriptorType) or not hasattr(type(found), "__get__")


def _is_small_decimal(value: Decimal) -> bool:
    return value.__sizeof__() <= _SMALL_DECIMAL


def _is_text(value: str) -> bool:
    """Return whether text that is not ASCII has a form in UTF-8: a lone surrogate has none."""
    try:
        value.encode()
    except UnicodeEncodeError:
        return False
    return True


# A Decimal that keeps its digits in itself, in four words, has 76 of them at most. In a Python without the C
# module its size tells nothing.
_SMALL_DECIMAL = Decimal(1).__sizeof__()
_SIZE_SHOWS_DIGITS = Decimal("1" * 77).__sizeof__() > _SMALL_DECIMAL
# The most bytes of JSON of a part that is no text: a Decimal of 76 digits with a sign, a point and an
# exponent of up to 20 characters.
_MAX_PART = 120
# The most bytes of a character: \u0000 has six.
_MAX_CHARACTER = 6

_IS_INT = "type({v}) is int and -0x8000000000000000 <= {v} <= 0x7fffffffffffffff"
_NO_MISSING: Any = enum.Enum._missing_
# The condition for an exact value, by its type without constraints; ``v`` is the value.
_CONDITIONS: tuple[tuple[inspect.Type, str], ...] = (
    (inspect.StrType(), "type({v}) is str and len({v}) <= room and ({v}.isascii() or is_text({v}))"),
    (inspect.IntType(), _IS_INT),
    # Infinity less infinity is not a number, and so is not zero.
    (inspect.FloatType(), f"type({{v}}) is float and {{v}} - {{v}} == 0.0 or {_IS_INT}"),
    (inspect.BoolType(), "{v} is True or {v} is False"),
    (inspect.NoneType(), "{v} is None"),
    (inspect.DateTimeType(), "type({v}) is datetime and ({v}.tzinfo is None or {v}.tzinfo is UTC)"),
    (inspect.DateType(), "type({v}) is date"),
    (inspect.UUIDType(), "type({v}) is UUID"),
    *([(inspect.DecimalType(), "type({v}) is Decimal and is_small({v})")] if _SIZE_SHOWS_DIGITS else []),
)
_NAMES: dict[str, Any] = {
    "datetime": datetime,
    "date": date,
    "UTC": UTC,
    "UUID": UUID,
    "Decimal": Decimal,
    "is_small": _is_small_decimal,
    "is_text": _is_text,
}

# A part that was deleted raises AttributeError, which costs nothing where it is not raised. Defaults are read
# faster than builtins and variables of make; that is a tenth of the whole.
_SOURCE = """
def make({names}):
    def check(event, type=type, str=str, int=int, len=len, room=room):
        try:
            {reads}
            if {conditions}:
                return None
        except AttributeError:
            pass
        return thorough(event)
    return check
"""


class _Generator:
    """Writes the function that checks the events of a flat class: one condition per field.

    The function is compiled from source, as the methods of dataclasses are: nothing else is fast enough for
    each dispatch. Only the names of the fields, which are identifiers, get into the source; types and values
    are variables.

    If all conditions hold, the event decodes and is small enough. Otherwise nothing is known, and the
    thorough check decides. So types are compared exactly, as a subclass may be encoded as anything; and a
    length is compared with a bound that holds for the longest form of each character.
    """

    def __init__(self, event_class: type, fields: Sequence[inspect.Field], max_bytes: int) -> None:
        self._class = event_class
        self._fields = fields
        self._names = dict(_NAMES)
        config = getattr(event_class, "__struct_config__", None)
        self._taken = len(msgspec.json.encode([config.tag_field, config.tag])) if config else 0
        self._max_bytes = max_bytes

    def compile(self, thorough: EventCheck) -> EventCheck:
        """Return the function. Raises _NotFlatError if it could never decide by itself."""
        reads, conditions = [], []
        for number, field in enumerate(self._fields):
            value = f"v{number}"
            reads.append(f"{value} = event.{field.name}")
            conditions.append(self._condition(value, field.type))
            self._taken += len(msgspec.json.encode(field.encode_name)) + len(":,") + _MAX_PART
        room = (self._max_bytes - self._taken - len("{}")) // (_MAX_CHARACTER * max(1, len(reads)))
        if room < 0:
            raise _NotFlatError
        names = {**self._names, "thorough": thorough, "room": room}
        source = _SOURCE.format(
            names=", ".join(names),
            reads="; ".join(reads) or "pass",
            conditions=" and ".join(conditions) or "True",
        )
        namespace: dict[str, Any] = {}
        exec(compile(source, f"<check of {self._class.__qualname__}>", "exec"), namespace)  # noqa: S102
        check: EventCheck = namespace["make"](**names)
        return check

    def _condition(self, value: str, info: inspect.Type) -> str:
        """Return an expression that is true only for values that decode as the type."""
        if isinstance(info, inspect.Metadata):
            return self._condition(value, info.type)
        if isinstance(info, inspect.UnionType):
            return f"({' or '.join(self._condition(value, member) for member in info.types)})"
        if isinstance(info, inspect.EnumType):
            return f"type({value}) is {self._name(_closed(info.cls), list(info.cls))}"
        if isinstance(info, inspect.LiteralType):
            kinds = [(type(literal), literal) for literal in info.values]
            name = self._name(frozenset(kinds), list(info.values))
            return f"({value} is None or type({value}) in (str, int)) and (type({value}), {value}) in {name}"
        for unconstrained, condition in _CONDITIONS:
            if info == unconstrained:
                return f"({condition.format(v=value)})"
        raise _NotFlatError

    def _name(self, constant: Any, values: list[Any]) -> str:
        """Return the name of a constant in the function; the longest of its values is taken from the room."""
        self._taken += max(len(msgspec.json.encode(value)) for value in values)
        name = f"c{len(self._names)}"
        self._names[name] = constant
        return name


def _closed(cls: type[enum.Enum]) -> type[enum.Enum]:
    """Return cls if an object of it is one of its members, and each of them decodes. Raises _NotFlatError."""
    missing: Any = cls._missing_
    made_up = issubclass(cls, enum.Flag) or missing.__func__ is not _NO_MISSING.__func__
    if type(cls) is not enum.EnumType or made_up or not len(cls):
        raise _NotFlatError
    members: Any = list(cls)
    try:
        encoded = msgspec.json.encode(members)
        decoded = msgspec.json.decode(encoded, type=list[cls])  # type: ignore[valid-type]
    except Exception as error:
        raise _NotFlatError from error
    if decoded != members:
        raise _NotFlatError
    return cls
