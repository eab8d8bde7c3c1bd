"""States, events and deltas as JSON, by msgspec, and the checks that they come back as they were."""

from __future__ import annotations

import dataclasses
import enum
import math
import re
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from functools import partial
from typing import Any

import msgspec

from .errors import describe

EncodeHook = Callable[[Any], Any]
DecodeHook = Callable[[type[Any], Any], Any]

_MAX_SEARCH_DEPTH = 50
_MAX_SHOWN = 100
_Difference = tuple[str, str]

MAX_NESTING = 200
"""The maximal nesting of lists, dicts and objects.

The decoder of msgspec recurses per level. A state that a thread with a nearly empty stack has written must be
readable for a request handler deep inside of middleware: of the 1,000 levels that Python allows by default,
the data may take this many.
"""

# Each level takes an opening and a closing bracket: shorter JSON can't be nested deeper than MAX_NESTING.
_SHALLOW_LENGTH = 2 * MAX_NESTING

_ANNOTATE_IT = (
    "annotate its type, or use only the types of JSON: "
    "dicts with str keys, lists, str, int, float, bool, None"
)


class EncodeError(ValueError):
    """A part of an object can't be encoded as JSON; the message names the field."""


class ReadBackError(EncodeError):
    """An object can be encoded as JSON, but would not read back equal; the message names the field."""


class DecodeError(ValueError):
    """JSON does not fit the type to decode it as; the message names the field."""


class Codec:
    """Encodes objects as JSON, decodes them as one type, and checks whether they come back as they were.

    It supports the types of msgspec: dataclasses, Structs, dicts, lists, sets, datetime, UUID, Decimal,
    enums. The hooks add others. Any exception of a hook becomes an EncodeError or a DecodeError with the
    hook's exception as its cause; only KeyboardInterrupt passes, as it does not come from the hook.

    Args:
        type_: The type to decode JSON as.
        encode_hook: Is called with an object of a type that msgspec does not know, on the thread that
            encodes, and returns an object of types that it does know.
        decode_hook: Is called with a type that msgspec does not know and with decoded JSON, on the thread
            that decodes, and returns an object of that type.
    """

    def __init__(
        self,
        type_: Any,
        *,
        encode_hook: EncodeHook | None = None,
        decode_hook: DecodeHook | None = None,
    ) -> None:
        self._hook = encode_hook
        self._encode = msgspec.json.Encoder(enc_hook=encode_hook).encode
        self._packer = msgspec.msgpack.Encoder(enc_hook=encode_hook)
        self._decode = msgspec.json.Decoder(type_, dec_hook=decode_hook).decode
        self._many = msgspec.json.Decoder(list[type_], dec_hook=decode_hook)
        info = _type_info(type_)
        # Longer JSON has to be checked for its nesting.
        self._shallow = _SHALLOW_LENGTH if _can_nest(info, ()) else sys.maxsize
        self._opening = _opening(info)
        self._shapes = _Shapes(digits_are_free=_digits_are_free(info))
        self.decode_fast: Callable[[bytes], Any] = self._decode
        """As ``decode``, for data that is known to decode: its errors are the decoder's own."""
        hides = self._shallow < sys.maxsize or _may_hide_null(info)
        self.encode_part: Callable[[Any], bytes] = self.encode if hides else self._encode
        """As ``encode``, for JSON that is passed to ``decodes`` afterwards.

        It is the encoder alone if the decoder detects everything that ``encode`` checks. Its errors are the
        encoder's own: see ``explain``.
        """

    def encode(self, value: Any) -> bytes:
        """Return an object as JSON.

        Args:
            value: An object of the type. ``encode`` does not check that; ``verify`` does.

        Raises:
            EncodeError: The object can't be encoded. The message names the field.
            ReadBackError: It holds a float that is not finite, which would be written as null, or it is
                nested deeper than MAX_NESTING. The message names the field.
        """
        try:
            encoded = self._encode(value)
            if len(encoded) > self._shallow or _NULL(encoded) is not None:
                self._check(value, encoded)
        except (KeyboardInterrupt, ReadBackError):
            raise
        except BaseException as error:
            raise self._explain(value, error) from error
        return encoded

    def decode(self, data: bytes | str) -> Any:
        """Return JSON as an object of the type.

        Raises:
            DecodeError: The data does not fit the type; the message names the field.
        """
        try:
            return self._decode(data)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            raise DecodeError(_text(error)) from error

    def verify(self, value: Any, encoded: bytes) -> None:
        """Check that the JSON of an object reads back as an equal object.

        This takes one decoding and one comparison, both in C, unless the two differ. Objects whose class does
        not define equality (``dataclass(eq=False)``) are compared field by field, in Python.

        Args:
            value: The object.
            encoded: The result of ``encode(value)``.

        Raises:
            ReadBackError: ``encoded`` does not decode as the type, or decodes as an object that does not
                equal ``value``. The message names the field.
        """
        try:
            decoded = self._decode(encoded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            msg = f"{self._refusal(encoded, error)}: it could not be read back"
            raise ReadBackError(msg) from error
        if not _equal(value, decoded):
            self._compare(value, decoded)

    def decodes(self, encoded: Sequence[bytes]) -> tuple[int, DecodeError] | None:
        """Check whether the JSON of several objects decodes as the type.

        Args:
            encoded: The results of ``encode`` or ``encode_part``, one per object.

        Returns:
            None if all of them decode; else the index of the first one that does not, and its error.
        """
        opening = self._opening
        if opening is not None:
            if not opening or {data[0] for data in encoded} <= opening:
                return None
        else:
            joined = b",".join(encoded)
            if self._shapes.know(encoded, joined):
                return None
            try:
                self._many.decode(b"[" + joined + b"]")
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: S110  # the loop below finds its index
                pass
            else:
                self._shapes.learn(encoded)
                return None
        for index, data in enumerate(encoded):
            try:
                self.decode(data)
            except DecodeError as error:
                return index, error
        return None

    # -- values that encode and would not come back

    def _check(self, value: Any, encoded: bytes) -> None:
        if len(encoded) > self._shallow and _nested_too_deep(encoded):
            path = self._too_deep(value)
            msg = (
                f"{_where(path)}nested deeper than {MAX_NESTING} levels, "
                "which a reader may not be able to decode"
            )
            raise ReadBackError(msg)
        if _NULL(encoded) is not None and self._may_hold_non_finite(value):
            found = self._non_finite(value)
            if found is not None:
                path, number = found
                msg = (
                    f"{_where(path)}{number!r} is no number in JSON, and would come back as null: "
                    "use None, or leave it out"
                )
                raise ReadBackError(msg)

    def _may_hold_non_finite(self, value: Any) -> bool:
        """Return whether a value may hold a NaN or an infinity, found at the speed of C.

        In MessagePack a float is 0xCB and its eight bytes. Of exactly the floats that are not finite, the
        first byte is 0x7F or 0xFF and the second at least 0xF0. Text never has three such bytes in a row.
        Bytes, times and integers may have them, so the result may be wrongly True.
        """
        try:
            return _NON_FINITE.search(self._packer.encode(value)) is not None
        except KeyboardInterrupt:
            raise
        except BaseException:
            return True  # MessagePack can't encode it, for instance an integer of more than 64 bits

    def _non_finite(self, value: Any) -> tuple[str, float] | None:
        for path, part, _ in self._walk(value):
            if isinstance(part, float) and not math.isfinite(part):
                return path, part
        return None

    def _too_deep(self, value: Any) -> str:
        for path, part, depth in self._walk(value):
            if depth >= MAX_NESTING and not isinstance(part, _LEAVES):
                return path if len(path) <= _MAX_SHOWN else f"{path[:_MAX_SHOWN]}…"
        return ""

    def _walk(self, value: Any) -> Iterator[tuple[str, Any, int]]:
        """Yield the parts of a value in any order, each with its path and its depth."""
        waiting = [("", value, 0)]
        while waiting:
            path, part, depth = waiting.pop()
            yield path, part, depth
            if depth <= MAX_NESTING:
                waiting += [(path + step, inner, depth + 1) for step, inner in self._parts(part)]

    def _parts(self, value: Any) -> Iterator[tuple[str, Any]]:
        if isinstance(value, _LEAVES):
            return
        parts = _parts(value)
        if parts is not None:
            yield from parts
        elif self._hook is not None and _is_foreign(value):
            yield "", self._hook(value)

    # -- values that come back as something else

    def _compare(self, value: Any, decoded: Any) -> None:
        """Raise ReadBackError, unless the two differ only because their class does not define equality."""
        try:
            difference = self._difference("", value, decoded)
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            msg = f"it does not come back equal, and looking for the field raised {describe(error)}"
            raise ReadBackError(msg) from error
        if difference is not None:
            path, why = difference
            msg = f"{_where(path)}{why}"
            raise ReadBackError(msg)

    def _difference(self, path: str, value: Any, decoded: Any) -> _Difference | None:
        """Return the path and the kind of the first difference; None if only equality is undefined."""
        if _equal(value, decoded):
            return None
        if isinstance(value, dict) and isinstance(decoded, dict):
            return self._dicts_differ(path, value, decoded)
        if type(value) is not type(decoded):
            return path, f"a {_kind(value)} comes back as a {_kind(decoded)}: {_ANNOTATE_IT}"
        if isinstance(value, (list, tuple)):
            return self._lists_differ(path, value, decoded)
        names = _field_names(value)
        if names is None:
            return self._leaves_differ(path, value, decoded)
        lost = object()
        return self._first(
            path,
            [f".{name}" for name in names],
            [getattr(value, name, lost) for name in names],
            [getattr(decoded, name, lost) for name in names],
        )

    def _first(
        self, path: str, steps: Iterable[str], values: Iterable[Any], decoded: Iterable[Any]
    ) -> _Difference | None:
        for step, value, other in zip(steps, values, decoded, strict=True):
            difference = self._difference(path + step, value, other)
            if difference is not None:
                return difference
        return None

    def _lists_differ(self, path: str, value: Sequence[Any], decoded: Sequence[Any]) -> _Difference | None:
        if len(value) != len(decoded):
            return path, f"{len(value)} elements come back as {len(decoded)}"
        return self._first(path, (f"[{index}]" for index in range(len(value))), value, decoded)

    def _dicts_differ(self, path: str, value: dict[Any, Any], decoded: dict[Any, Any]) -> _Difference | None:
        for key in value:
            if key not in decoded:
                kind = _kind(key)
                return (
                    f"{path}[{key!r}]",
                    f"{kind} keys don't come back as {kind}: use str keys, or annotate them",
                )
        if len(value) != len(decoded):
            return path, f"{len(value)} keys come back as {len(decoded)}"
        return self._first(
            path, (f"[{key!r}]" for key in value), value.values(), (decoded[key] for key in value)
        )

    def _leaves_differ(self, path: str, value: Any, decoded: Any) -> _Difference | None:
        """Compare two values without parts.

        A class of the app defines what is equal, if it defines equality. All other values are the same if
        their encodings are: a Decimal that is not a number, or a time in the hour that comes twice when
        clocks go back.
        """
        if not _is_foreign(value) or _without_equality(value, decoded):
            try:
                if self._forms(value) == self._forms(decoded):
                    return None
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: S110  # without an encoding they differ
                pass
        return path, f"{_shown(value)} comes back as {_shown(decoded)}"

    def _forms(self, value: Any) -> list[bytes]:
        parts = value if isinstance(value, (set, frozenset)) else (value,)
        return sorted(type(part).__qualname__.encode() + self._encode(part) for part in parts)

    # -- messages of errors

    def explain(self, value: Any, error: BaseException) -> BaseException:
        """Return an EncodeError that names the field for which ``encode_part`` raised an error.

        Args:
            value: The object that was encoded.
            error: The error that was raised.
        """
        if isinstance(error, EncodeError):
            return error
        explained = self._explain(value, error)
        explained.__cause__ = error
        return explained

    def _refusal(self, encoded: bytes, error: BaseException) -> str:
        """Return the decoder's message behind the field's path, with keys instead of msgspec's ``[...]``."""
        message = _text(error)
        match = _PATH.fullmatch(message)
        if match is None:
            return message
        complaint, path = match.groups()
        return f"{_where(self._exact_path(encoded, message, path))}{complaint}"

    def _exact_path(self, encoded: bytes, message: str, path: str) -> str:
        """Return the path with the keys of the parts that don't decode, or unchanged if none are found."""
        exact = ""
        try:
            node = plain = msgspec.json.decode(encoded)
            for step in _STEPS.findall(path):
                if step != "[...]":
                    exact += step
                    node = node[int(step[1:-1])] if step[0] == "[" else node[step[1:]]
                elif isinstance(node, dict):
                    key, node = self._bisect(plain, node, message)
                    exact += f"[{key!r}]"
                else:
                    return path
        except (LookupError, ValueError, TypeError):
            return path
        return exact

    def _bisect(self, plain: Any, node: dict[str, Any], message: str) -> tuple[str, Any]:
        """Reduce a dict within ``plain`` to the first item that the decoder refuses, and return that item."""
        items = list(node.items())
        while len(items) > 1:
            middle = len(items) // 2
            node.clear()
            node.update(items[:middle])
            items = items[:middle] if self._complaint(plain) == message else items[middle:]
        node.clear()
        node.update(items)
        if self._complaint(plain) != message:
            raise LookupError
        return items[0]

    def _complaint(self, plain: Any) -> str | None:
        try:
            self._decode(msgspec.json.encode(plain))
        except KeyboardInterrupt:
            raise
        except BaseException as error:
            return _text(error)
        return None

    def _explain(self, value: Any, error: BaseException) -> EncodeError:
        path, part = self._find("", value, _MAX_SEARCH_DEPTH)
        return EncodeError(
            f"{_where(path)}a {_kind(part)} can't be encoded as JSON: {_text(error, plain=TypeError)}"
        )

    def _find(self, path: str, value: Any, depth: int) -> tuple[str, Any]:
        """Return the path and the value of the deepest part that can't be encoded on its own."""
        if depth:
            for step, part in _parts(value) or ():
                try:
                    self._encode(part)
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    return self._find(path + step, part, depth - 1)
        return path, value


# Twice as fast as ``b"null" in encoded``, which first tries to take the right side as a number.
_NULL = re.compile(rb"null").search
_NO_EQUALITY: Any = object.__eq__
_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_LEAVES = (str, int, float, bytes, bytearray, type(None))
_STEPS = re.compile(r"\[\.\.\.\]|\[\d+\]|\.[^.\[]+")
_PATH = re.compile(r"(?s)(.*) - at `(?:key in )?\$(.*)`")


def name_field(message: str) -> str:
    """Return msgspec's message about data that does not fit, with the field at its beginning.

    Args:
        message: The text of a ``msgspec.ValidationError``.
    """
    match = _PATH.fullmatch(message)
    return f"{_where(match[2])}{match[1]}" if match else message


def _where(path: str) -> str:
    return f"field {path.lstrip('.')!r}: " if path else ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _MAX_SHOWN else f"{shown[:_MAX_SHOWN]}…"


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _text(error: BaseException, *, plain: type[Exception] = msgspec.MsgspecError) -> str:
    """Return the text of an error, with its class unless it is one of msgspec's own."""
    words = describe(error)
    return words.partition(": ")[2] or words if isinstance(error, (plain, msgspec.MsgspecError)) else words


def _is_foreign(value: Any) -> bool:
    """Return whether msgspec calls the hook for a value."""
    try:
        msgspec.json.encode(value)
    except TypeError:
        return True
    return False


def _equal(value: Any, decoded: Any) -> bool:
    try:
        return bool(value == decoded)
    except KeyboardInterrupt:
        raise
    except BaseException:
        return False  # a signalling Decimal or an array, for instance


def _without_equality(value: Any, decoded: Any) -> bool:
    """Return whether the class of the two values does not define equality, or its ``__eq__`` raises."""
    if type(value).__eq__ is _NO_EQUALITY:
        return True
    try:
        bool(value == decoded)
    except Exception:
        return True
    return False


def _field_names(value: Any) -> Sequence[str] | None:
    """Return the names of an object's fields, or None if they are not known."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    attributes = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _parts(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the parts of a value, each with its step of a path; None if they are not known."""
    if isinstance(value, dict):
        return ((f"[{key!r}]", part) for key, part in value.items())
    if isinstance(value, (list, tuple)):
        return ((f"[{index}]", part) for index, part in enumerate(value))
    if isinstance(value, (set, frozenset)):
        return (("", part) for part in value)
    if isinstance(value, enum.Enum):
        return iter((("", value.value),))
    names = _field_names(value)
    return None if names is None else ((f".{name}", getattr(value, name, None)) for name in names)


def _nested_too_deep(encoded: bytes) -> bool:
    """Return whether JSON is nested deeper than MAX_NESTING, by a few passes in C.

    It removes everything but the brackets, also the brackets within text. Then each pass removes the
    innermost pairs, so that the number of passes is the depth.
    """
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_NESTING:
        return False
    if b"\\" in encoded:
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = encoded.translate(_AS_BRACKETS, _NO_BRACKETS)
    if 2 * brackets.count(b'""') == brackets.count(b'"'):  # there are no brackets within text
        brackets = brackets.translate(None, b'"')
    else:
        brackets = _TEXT.sub(b"", brackets)
    for _ in range(MAX_NESTING):
        if not brackets:
            return False
        brackets = brackets.replace(b"[]", b"")
    return bool(brackets)


_AS_BRACKETS = bytes.maketrans(b"{}", b"[]")
_NO_BRACKETS = bytes(set(range(256)) - set(b'[]{}"'))
_TEXT = re.compile(rb'"[^"]*"')


# -- types


def _type_info(type_: Any) -> Any:
    try:
        return msgspec.inspect.type_info(type_)
    except Exception:
        return None


def _can_nest(info: Any, outer: tuple[Any, ...]) -> bool:
    """Return whether objects of the type may be nested without a bound: by Any, hooks or recursion."""
    if info is None or isinstance(info, _UNBOUNDED) or any(info is other for other in outer):
        return True
    inner = partial(_can_nest, outer=(*outer, info))
    return any(map(inner, _inner_types(info)))


class _Shapes:
    """The shapes of JSON that has decoded: its bytes without their digits.

    If a type allows any number in the place of a number, JSON that differs in its digits only decodes as
    well. So most batches of deltas are recognised by one pass over their bytes, which makes no objects.
    """

    def __init__(self, *, digits_are_free: bool) -> None:
        self._free = digits_are_free
        self._known: set[bytes] = set()
        self._misses = 0

    def know(self, encoded: Sequence[bytes], joined: bytes) -> bool:
        """Return whether all of these have the same shape, and JSON of that shape has decoded before."""
        if not self._free or not encoded:
            return False
        shape = encoded[0].translate(None, _DIGITS)
        if shape in self._known and joined.translate(None, _DIGITS) == b",".join([shape] * len(encoded)):
            self._misses = 0
            return True
        self._misses += 1
        self._free = self._misses < _MAX_MISSES  # they hold names and texts, which have no common shape
        return False

    def learn(self, encoded: Sequence[bytes]) -> None:
        """Remember the shape of the first of several that have all decoded."""
        if self._free and encoded and len(self._known) < _MAX_SHAPES:
            self._known.add(encoded[0].translate(None, _DIGITS))


_DIGITS = b"0123456789"
_MAX_MISSES, _MAX_SHAPES = 100, 100


def _digits_are_free(info: Any) -> bool:
    """Return whether digits have no influence on decoding.

    They have none in dicts from str to int, str or bool, also nested ones. In lists they do: without its
    digits ``[5]`` has the shape of an empty list.
    """
    return (
        isinstance(info, msgspec.inspect.DictType)
        and info.key_type == msgspec.inspect.StrType()
        and (info.value_type in _FREE or _digits_are_free(info.value_type))
        and info.min_length is None
        and info.max_length is None
    )


_FREE = (msgspec.inspect.IntType(), msgspec.inspect.StrType(), msgspec.inspect.BoolType())


def _may_hide_null(info: Any) -> bool:
    """Return whether null may decode as the type. A float that is not finite is written as null.

    Any type beside None matters, as the float may be in the place of an int or a str.
    """
    optional = isinstance(info, msgspec.inspect.UnionType) and info.includes_none
    return optional or any(map(_may_hide_null, _inner_types(info)))


_UNBOUNDED = (msgspec.inspect.AnyType, msgspec.inspect.RawType, msgspec.inspect.CustomType)


def _inner_types(info: Any) -> Iterator[Any]:
    for name in info.__struct_fields__:
        part = getattr(info, name)
        for inner in part if isinstance(part, tuple) else (part,):
            if isinstance(inner, msgspec.inspect.Field):
                yield inner.type
            elif isinstance(inner, msgspec.inspect.Type):
                yield inner


def _opening(info: Any) -> frozenset[int] | None:
    """Return the first bytes of JSON that always decodes as the type.

    They are known for untyped values, dicts and lists, whose parts may be anything.

    Returns:
        The possible first bytes; an empty set if all JSON decodes; None if they are not known.
    """
    any_type = msgspec.inspect.AnyType()
    if info == any_type:
        return frozenset()
    keys = (any_type, msgspec.inspect.StrType())
    if info in [msgspec.inspect.DictType(key, any_type) for key in keys]:
        return frozenset(b"{")
    if info == msgspec.inspect.ListType(any_type):
        return frozenset(b"[")
    return None
