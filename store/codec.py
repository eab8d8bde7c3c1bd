"""States, events and deltas as JSON, by msgspec."""

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

_DEPTH = 50
_LONGEST_SHOWN = 100
_Difference = tuple[str, str]

MAX_NESTING = 200
"""How deep lists, dicts and objects may stand in each other. The decoder of msgspec calls itself for each level,
and what is written by a nearly empty stack has to be read by a request handler that stands deep in middleware:
of the 1,000 levels that Python allows by default, this many are the data's."""

# Each level takes an opening and a closing bracket.
_SHALLOW = 2 * MAX_NESTING

_SAY_WHAT_IT_IS = "annotate it as what it is, or keep what JSON has: dicts with str keys, lists, str, int, float, bool, None"


class EncodeError(ValueError):
    """An object has a part that JSON has no form for; the message names the field."""


class ReadBackError(EncodeError):
    """An object has a form in JSON that does not read back as the object; the message names the field."""


class DecodeError(ValueError):
    """JSON does not fit the type; the message names the field."""


class Codec:
    """Encodes objects as JSON, decodes them as one type, and tells whether they come back as they were.

    Knows what msgspec knows: dataclasses, Structs, dicts, lists, sets, datetime, UUID, Decimal, enums.
    ``encode_hook(object) -> plain`` and ``decode_hook(type, plain) -> object`` add others. A hook may raise
    whatever it likes: it is an EncodeError or a DecodeError, with the hook's exception as its cause. Only
    KeyboardInterrupt, which comes from outside, passes.
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
        # The length from which the nesting has to be looked at.
        self._shallow = _SHALLOW if _can_nest(info, ()) else sys.maxsize
        self._opening = _opening(info)
        self._shapes = _Shapes(digits_are_free=_digits_are_free(info))
        self.decode_fast: Callable[[bytes], Any] = self._decode
        """As ``decode``, for what is known to decode: errors are the decoder's own."""
        hides = self._shallow < sys.maxsize or _may_hide_null(info)
        self.encode_part: Callable[[Any], bytes] = self.encode if hides else self._encode
        """As ``encode``, for what ``decodes`` is asked about afterwards: the encoder alone, where the decoder
        finds all that ``encode`` looks for. Its errors are the encoder's own: see ``explain``."""

    def encode(self, value: Any) -> bytes:
        """Return value as JSON.

        Args:
            value: An object of the type. Whether it is one is for ``verify`` to say.

        Raises:
            EncodeError: It has no form in JSON; as a ReadBackError: it holds a float that is not finite, which
                would be written as null, or is nested deeper than MAX_NESTING. The message names the field.
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
        """Return data as an object of the type.

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
        """Make sure that what was encoded reads back as what it was.

        Costs a decoding and a comparison, both in C, unless they differ. Objects whose class says nothing about
        equality (``dataclass(eq=False)``) are compared field by field, in Python.

        Args:
            value: The object.
            encoded: What ``encode`` has returned for it.

        Raises:
            EncodeError: A ReadBackError, if ``encoded`` does not decode as the type, or as an object that does
                not equal ``value``. The message names the field.
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
        """Tell whether all of these decode as the type.

        Args:
            encoded: What ``encode`` has returned, once for each of some objects.

        Returns:
            None if all decode; else the index of the first one that does not, and why.
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
            except BaseException:  # noqa: S110  # said below, with its index
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

    # -- what encodes and would not come back

    def _check(self, value: Any, encoded: bytes) -> None:
        if len(encoded) > self._shallow and _nested_too_deep(encoded):
            path = self._too_deep(value)
            msg = f"{_where(path)}nested deeper than {MAX_NESTING} levels, which a reader may not be able to decode"
            raise ReadBackError(msg)
        if _NULL(encoded) is not None and self._may_hold_non_finite(value):
            found = self._non_finite(value)
            if found is not None:
                path, number = found
                msg = f"{_where(path)}{number!r} is no number in JSON, and would come back as null: use None, or leave it out"
                raise ReadBackError(msg)

    def _may_hold_non_finite(self, value: Any) -> bool:
        """Look for a NaN or an infinity by means of C: as MessagePack a float is 0xCB and its eight bytes.

        All that are not finite begin with 0x7F or 0xFF, and then a byte from 0xF0 on. Text has no such bytes
        in a row; bytes, times and integers may, so that this errs on one side.
        """
        try:
            return _NON_FINITE.search(self._packer.encode(value)) is not None
        except KeyboardInterrupt:
            raise
        except BaseException:
            return True  # an integer of more than 64 bits, for one

    def _non_finite(self, value: Any) -> tuple[str, float] | None:
        for path, part, _ in self._walk(value):
            if isinstance(part, float) and not math.isfinite(part):
                return path, part
        return None

    def _too_deep(self, value: Any) -> str:
        for path, part, depth in self._walk(value):
            if depth >= MAX_NESTING and not isinstance(part, _LEAVES):
                return path if len(path) <= _LONGEST_SHOWN else f"{path[:_LONGEST_SHOWN]}…"
        return ""

    def _walk(self, value: Any) -> Iterator[tuple[str, Any, int]]:
        """Yield the parts of value, in no special order, each with its path and how deep it stands."""
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

    # -- what comes back as something else

    def _compare(self, value: Any, decoded: Any) -> None:
        """Raise ReadBackError unless the two differ only where equality can't tell."""
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
        """Return where the two differ, and how; None if it is only that equality can't tell."""
        if _equal(value, decoded):
            return None
        if isinstance(value, dict) and isinstance(decoded, dict):
            return self._dicts_differ(path, value, decoded)
        if type(value) is not type(decoded):
            return path, f"a {_kind(value)} comes back as a {_kind(decoded)}: {_SAY_WHAT_IT_IS}"
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
        """Compare what has no parts.

        A class of the app says itself what is equal, if it says anything. All else is the same if its encoding
        is: a Decimal that is no number, a time that is there twice when the clocks go back.
        """
        if not _is_foreign(value) or _without_equality(value, decoded):
            try:
                if self._forms(value) == self._forms(decoded):
                    return None
            except KeyboardInterrupt:
                raise
            except BaseException:  # noqa: S110  # then they differ
                pass
        return path, f"{_shown(value)} comes back as {_shown(decoded)}"

    def _forms(self, value: Any) -> list[bytes]:
        parts = value if isinstance(value, (set, frozenset)) else (value,)
        return sorted(type(part).__qualname__.encode() + self._encode(part) for part in parts)

    # -- words

    def explain(self, value: Any, error: BaseException) -> BaseException:
        """Return an EncodeError that names the field because of which ``encode_part`` raised this error."""
        if isinstance(error, EncodeError):
            return error
        explained = self._explain(value, error)
        explained.__cause__ = error
        return explained

    def _refusal(self, encoded: bytes, error: BaseException) -> str:
        """Return the decoder's message with the field in front, and with the keys where msgspec says ``[...]``."""
        message = _text(error)
        match = _PATH.fullmatch(message)
        if match is None:
            return message
        what, path = match.groups()
        return f"{_where(self._exact_path(encoded, message, path))}{what}"

    def _exact_path(self, encoded: bytes, message: str, path: str) -> str:
        """Return the path with the keys of the parts that don't decode, or as it is if they are not found."""
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
        """Leave but one item in a dict that is a part of plain: the first that the decoder complains of."""
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
        path, guilty = self._find("", value, _DEPTH)
        return EncodeError(
            f"{_where(path)}a {_kind(guilty)} can't be encoded as JSON: {_text(error, plain=TypeError)}"
        )

    def _find(self, path: str, value: Any, depth: int) -> tuple[str, Any]:
        """Descend to the deepest part of value that can't be encoded by itself."""
        if depth:
            for step, part in _parts(value) or ():
                try:
                    self._encode(part)
                except KeyboardInterrupt:
                    raise
                except BaseException:
                    return self._find(path + step, part, depth - 1)
        return path, value


# Searching is twice as fast as ``b"null" in``, which first tries the right side as a number.
_NULL = re.compile(rb"null").search
_NO_EQUALITY: Any = object.__eq__
_NON_FINITE = re.compile(rb"\xcb[\x7f\xff][\xf0-\xff]")
_LEAVES = (str, int, float, bytes, bytearray, type(None))
_STEPS = re.compile(r"\[\.\.\.\]|\[\d+\]|\.[^.\[]+")
_PATH = re.compile(r"(?s)(.*) - at `(?:key in )?\$(.*)`")


def name_field(message: str) -> str:
    """Return msgspec's message about data that does not fit with the field in front of it."""
    match = _PATH.fullmatch(message)
    return f"{_where(match[2])}{match[1]}" if match else message


def _where(path: str) -> str:
    return f"field {path.lstrip('.')!r}: " if path else ""


def _shown(value: Any) -> str:
    shown = repr(value)
    return shown if len(shown) <= _LONGEST_SHOWN else f"{shown[:_LONGEST_SHOWN]}…"


def _kind(value: Any) -> str:
    return type(value).__qualname__


def _text(error: BaseException, *, plain: type[Exception] = msgspec.MsgspecError) -> str:
    """Return what the error says; of msgspec's own ones without the class, which tells nothing."""
    words = describe(error)
    return words.partition(": ")[2] or words if isinstance(error, (plain, msgspec.MsgspecError)) else words


def _is_foreign(value: Any) -> bool:
    """Tell whether msgspec asks the hook for a form of value."""
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
        return False  # a signalling Decimal, an array: it can't tell


def _without_equality(value: Any, decoded: Any) -> bool:
    """Tell whether the class of the two leaves open what is equal, or can't answer."""
    if type(value).__eq__ is _NO_EQUALITY:
        return True
    try:
        bool(value == decoded)
    except Exception:
        return True
    return False


def _field_names(value: Any) -> Sequence[str] | None:
    """Return the names of the fields of an object, or None if it has none that are known."""
    if isinstance(value, msgspec.Struct):
        return value.__struct_fields__
    if dataclasses.is_dataclass(value):
        return [field.name for field in dataclasses.fields(value)]
    attributes = getattr(type(value), "__attrs_attrs__", None)
    return None if attributes is None else [attribute.name for attribute in attributes]


def _parts(value: Any) -> Iterator[tuple[str, Any]] | None:
    """Return the parts of value, each with the step that leads to it; None if it has none that are known."""
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
    """Tell whether brackets stand in each other deeper than MAX_NESTING: by a few passes in C.

    Brackets within text don't count. What remains are the brackets; each pass takes out the innermost pairs,
    so that the number of passes is the depth.
    """
    if encoded.count(b"[") + encoded.count(b"{") <= MAX_NESTING:
        return False
    if b"\\" in encoded:
        encoded = encoded.replace(b"\\\\", b"").replace(b'\\"', b"")
    brackets = encoded.translate(_AS_BRACKETS, _NO_BRACKETS)
    if 2 * brackets.count(b'""') == brackets.count(b'"'):  # no text holds a bracket
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
    """Tell whether objects of the type may be nested without a bound: untyped parts, hooks, recursion."""
    if info is None or isinstance(info, _UNBOUNDED) or any(info is other for other in outer):
        return True
    inner = partial(_can_nest, outer=(*outer, info))
    return any(map(inner, _inner_types(info)))


class _Shapes:
    """What JSON that decodes looks like without its digits.

    Where a type leaves it open which number stands in a place, whatever differs in its digits alone decodes as well.
    So most batches of deltas are known by one pass over their bytes, which makes no objects.
    """

    def __init__(self, *, digits_are_free: bool) -> None:
        self._free = digits_are_free
        self._known: set[bytes] = set()
        self._misses = 0

    def know(self, encoded: Sequence[bytes], joined: bytes) -> bool:
        """Return whether all of these look alike, and like something that has decoded."""
        if not self._free or not encoded:
            return False
        shape = encoded[0].translate(None, _DIGITS)
        if shape in self._known and joined.translate(None, _DIGITS) == b",".join([shape] * len(encoded)):
            self._misses = 0
            return True
        self._misses += 1
        self._free = self._misses < _MAX_MISSES  # they hold names and texts: it would only cost
        return False

    def learn(self, encoded: Sequence[bytes]) -> None:
        """Take note of the first of some that have all decoded."""
        if self._free and encoded and len(self._known) < _MAX_SHAPES:
            self._known.add(encoded[0].translate(None, _DIGITS))


_DIGITS = b"0123456789"
_MAX_MISSES, _MAX_SHAPES = 100, 100


def _digits_are_free(info: Any) -> bool:
    """Tell whether digits decide nothing: in dicts by text of plain numbers, texts and truth values.

    Not so in lists: without its digits ``[5]`` looks as the empty one does.
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
    """Tell whether the null that a float is written as that is not finite may decode all the same.

    Whatever else is annotated beside None: the float may stand where an int or a text should.
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
    """Return the first bytes of JSON that decodes as the type for certain; empty: all; None: it can't be told.

    So it is with untyped dicts and lists, whose parts may be anything.
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
