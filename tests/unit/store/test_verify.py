"""Encoded objects read back as they were, or are refused by an error that names the field."""

from __future__ import annotations

import enum
import json
import math
import sys
from collections import Counter, OrderedDict, defaultdict
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from typing import Any
from uuid import UUID
from zoneinfo import ZoneInfo

import msgspec
import pytest
from hypothesis import example, given, settings
from hypothesis import strategies as st
from keyfold.store import DecodeError, EncodeError
from keyfold.store.codec import MAX_NESTING, Codec
from keyfold.store.errors import describe

ID = UUID("12345678123456781234567812345678")
UNTYPED: Any = 1
INEXACT: Any = 0.1
NOT_A_NUMBER: Any = math.nan
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)


class Region(enum.StrEnum):
    NORTH = "north"


class Level(enum.IntEnum):
    HIGH = 1


class Plain(enum.Enum):
    ONE = 1


@dataclass
class Line:
    sku: str
    price: Decimal | None = None


@dataclass
class GiftLine(Line):
    note: str = ""


class Place(msgspec.Struct):
    name: str


class Table(Place):
    seats: int = 4


@dataclass
class Typed:
    text: str = ""
    number: int = 0
    flag: bool = False
    share: float = 0.0
    mean: float | None = None
    tags: list[str] = field(default_factory=list)
    totals: dict[str, int] = field(default_factory=dict)
    by_number: dict[int, str] = field(default_factory=dict)
    pair: tuple[int, ...] = ()
    names: set[str] = field(default_factory=set)
    line: Line = field(default_factory=lambda: Line("a"))
    lines: dict[str, Line] = field(default_factory=dict)
    place: Place = field(default_factory=lambda: Place("a"))
    amount: Decimal = Decimal(0)
    at: datetime = NOON
    id: UUID = ID
    region: Region = Region.NORTH
    anything: Any = None


def nested(levels: int, leaf: Any = None) -> Any:
    """Lists in each other, so many."""
    value: Any = [] if leaf is None else [leaf]
    for _ in range(levels - 1):
        value = [value]
    return value


def verified(codec: Codec, value: Any) -> bytes:
    encoded = codec.encode(value)
    codec.verify(value, encoded)
    return encoded


@pytest.mark.parametrize(
    ("odd", "named"),
    [
        ({"text": ["a", "list"]}, r"^field 'text': Expected `str`, got `array`"),
        ({"text": 1}, r"^field 'text': Expected `str`, got `int`"),
        ({"text": None}, r"^field 'text': Expected `str`, got `null`"),
        ({"text": ID}, r"^field 'text': a UUID comes back as a str"),
        ({"text": NOON}, r"^field 'text': a datetime comes back as a str"),
        ({"text": b"bytes"}, r"^field 'text': a bytes comes back as a str"),
        ({"text": Decimal("1.5")}, r"^field 'text': a Decimal comes back as a str"),
        ({"number": True}, r"^field 'number': Expected `int`, got `bool`"),
        ({"number": 1.5}, r"^field 'number': Expected `int`, got `float`"),
        ({"number": Decimal(1)}, r"^field 'number': Expected `int`, got `str`"),
        ({"flag": 1}, r"^field 'flag': Expected `bool`, got `int`"),
        ({"share": math.nan}, r"^field 'share': nan is no number in JSON"),
        ({"share": 2**53 + 1}, r"^field 'share': a int comes back as a float"),
        ({"mean": math.inf}, r"^field 'mean': inf is no number in JSON"),
        ({"mean": -math.inf}, r"^field 'mean': -inf is no number in JSON"),
        ({"tags": ["a", 1]}, r"^field 'tags\[1\]': Expected `str`, got `int`"),
        ({"tags": ("a",)}, r"^field 'tags': a tuple comes back as a list"),
        ({"tags": {"a"}}, r"^field 'tags': a set comes back as a list"),
        ({"totals": {"a": 1, "b": "2", "c": 3}}, r"""^field "totals\['b'\]": Expected `int`, got `str`"""),
        ({"totals": {7: 1}}, r"^field 'totals\[7\]': int keys don't come back as int: use str keys"),
        ({"by_number": {"7": "a"}}, r"""^field "by_number\['7'\]": str keys don't come back as str"""),
        ({"by_number": {7: "a", "7": "b"}}, r"""^field "by_number\['7'\]": str keys"""),
        ({"pair": [1]}, r"^field 'pair': a list comes back as a tuple"),
        ({"names": ["a"]}, r"^field 'names': a list comes back as a set"),
        ({"line": GiftLine("a")}, r"^field 'line': a GiftLine comes back as a Line"),
        ({"line": {"sku": "a"}}, r"^field 'line': a dict comes back as a Line"),
        ({"line": Line("a", INEXACT)}, r"^field 'line.price': a float comes back as a Decimal"),
        (
            {"lines": {"x": Line("a"), "y": Line(UNTYPED)}},
            r"""^field "lines\['y'\]\.sku": Expected `str`, got `int`""",
        ),
        ({"lines": {"x": GiftLine("a")}}, r"""^field "lines\['x'\]": a GiftLine comes back as a Line"""),
        ({"place": Table("a")}, r"^field 'place': a Table comes back as a Place"),
        ({"at": "2024-05-01"}, r"^field 'at': "),
        ({"region": "south"}, r"^field 'region': Invalid enum value 'south'"),
        ({"region": Plain.ONE}, r"^field 'region': Expected `str`, got `int`"),
        ({"anything": {7: 1}}, r"^field 'anything\[7\]': int keys don't come back as int"),
        ({"anything": {7: 1, "7": 2}}, r"^field 'anything\[7\]': int keys"),
        ({"anything": {1.5: 1}}, r"^field 'anything\[1.5\]': float keys"),
        ({"anything": {ID: 1}}, r"^field .*: UUID keys don't come back as UUID"),
        ({"anything": [{"a": (1, 2)}]}, r"""^field "anything\[0\]\['a'\]": a tuple comes back as a list"""),
        ({"anything": {"a": {1}}}, r"""^field "anything\['a'\]": a set comes back as a list"""),
        ({"anything": NOON}, r"^field 'anything': a datetime comes back as a str"),
        ({"anything": [ID]}, r"^field 'anything\[0\]': a UUID comes back as a str"),
        ({"anything": b"x"}, r"^field 'anything': a bytes comes back as a str"),
        ({"anything": Decimal(1)}, r"^field 'anything': a Decimal comes back as a str"),
        ({"anything": Line("a")}, r"^field 'anything': a Line comes back as a dict"),
        ({"anything": Plain.ONE}, r"^field 'anything': a Plain comes back as a int"),
        ({"anything": {"a": [None, math.nan]}}, r"""^field "anything\['a'\]\[1\]": nan is no number"""),
        ({"anything": [2**70, None, math.inf]}, r"^field 'anything\[2\]': inf is no number"),
        ({"anything": nested(MAX_NESTING)}, r"^field '?.*nested deeper than 200 levels"),
    ],
)
def test_values_that_would_not_read_back_are_refused_and_the_field_named(
    odd: dict[str, Any], named: str
) -> None:
    """Each of these encodes, and has bricked its key, or changed its state, at the next load."""
    with pytest.raises(EncodeError, match=named):
        verified(Codec(Typed), Typed(**odd))


@pytest.mark.parametrize(
    "odd",
    [
        {"text": Region.NORTH},
        {"text": 'null, "[{" \\'},
        {"number": Level.HIGH},
        {"number": 2**70},
        {"share": 3},
        {"share": -0.0},
        {"mean": None, "anything": ["null", None, 1e308, -1.7e308, 2**70, b"\xcb\x7f\xff".hex()]},
        {"amount": Decimal("NaN")},
        {"amount": Decimal("sNaN")},
        {"amount": Decimal("-Infinity")},
        {"amount": 1},
        {"totals": defaultdict(int, a=1)},
        {"totals": OrderedDict(a=1)},
        {"totals": Counter("abca")},
        {"totals": {Region.NORTH: 1}},
        {"by_number": {7: "a", -(2**70): "b"}},
        {"names": frozenset("abc")},
        {"lines": {"a": Line("a", Decimal("NaN"))}},
        {"at": datetime(2024, 10, 27, 2, 30, fold=1, tzinfo=ZoneInfo("Europe/Berlin"))},
        {"anything": nested(MAX_NESTING - 1)},
        {"anything": ["[" * 500, '"[{' * 500, "\\" * 500 + "[" * 500, "]}" * 500]},
        {"anything": [[{"a": []}]] * 1_000},
    ],
)
def test_values_that_read_back_equal_are_accepted(odd: dict[str, Any]) -> None:
    """Equal is enough: an int in a float field, a str Enum, a defaultdict. So are values without equality."""
    verified(Codec(Typed), Typed(**odd))


def test_a_dict_state_with_int_keys_is_refused_at_its_first_event() -> None:
    """It lost counts at each reload, and said nothing."""
    state: dict[Any, int] = {}
    state[7] = state.get(7, 0) + 1
    for type_ in (dict, dict[str, int], Any):
        with pytest.raises(EncodeError, match=r"field '\[7\]': int keys don't come back as int"):
            verified(Codec(type_), state)


# -- equality that can't tell


@dataclass(eq=False)
class Silent:
    number: Any = 0
    inner: Any = None
    amount: Decimal = Decimal(0)


class SilentStruct(msgspec.Struct, eq=False):
    number: int = 0
    names: frozenset[str] = frozenset()


class Money:
    """Has no form in JSON, and no equality."""

    def __init__(self, cents: int, currency: str = "EUR") -> None:
        self.cents = cents
        self.currency = currency


class Vector:
    """Its equality answers with something that is neither true nor false, as an array does."""

    def __init__(self, parts: list[int]) -> None:
        self.parts = parts

    def __eq__(self, other: object) -> Any:
        class Unsaid:
            def __bool__(self) -> bool:
                raise ValueError("ambiguous")

        return Unsaid()

    __hash__ = None  # type: ignore[assignment]


class Exact(Money):
    def __eq__(self, other: object) -> bool:
        return isinstance(other, Exact) and (self.cents, self.currency) == (other.cents, other.currency)

    __hash__ = None  # type: ignore[assignment]


def to_plain(value: Any) -> Any:
    return value.parts if isinstance(value, Vector) else value.cents


def from_plain(type_: type[Any], plain: Any) -> Any:
    return type_(plain)


def hooked(type_: Any) -> Codec:
    return Codec(type_, encode_hook=to_plain, decode_hook=from_plain)


@pytest.mark.parametrize(
    ("type_", "value"),
    [
        (Silent, Silent(1, {"a": [1]}, Decimal("NaN"))),
        (list[Silent], [Silent(1), Silent(2)]),
        (dict[str, SilentStruct], {"a": SilentStruct(1, frozenset("abc"))}),
        (tuple[Silent, int], (Silent(), 1)),
        (dict[str, Money], {"a": Money(5)}),
        (list[Vector], [Vector([1, 2])]),
        (dict[str, Exact], {"a": Exact(5)}),
    ],
)
def test_classes_without_equality_are_compared_by_their_fields(type_: Any, value: Any) -> None:
    """A class that says nothing about equality is not refused for it."""
    verified(hooked(type_), value)


@pytest.mark.parametrize(
    ("type_", "value", "named"),
    [
        (Silent, Silent((1,)), r"field 'number': a tuple comes back as a list"),
        (Silent, Silent(1, {"a": {7: 1}}), r"""field "inner\['a'\]\[7\]": int keys"""),
        (list[Silent], [Silent(1), Silent({1})], r"field '\[1\].number': a set comes back as a list"),
        (dict[str, SilentStruct], {"a": SilentStruct(True)}, r"""field "\['a'\].number": Expected `int`"""),
        (dict[str, Exact], {"a": Exact(5, "USD")}, r"""field "\['a'\]": .* comes back as """),
        (list[Exact | None], [None, Exact(5, "USD")], r"field '\[1\]': "),
    ],
)
def test_classes_without_equality_are_refused_for_a_field(type_: Any, value: Any, named: str) -> None:
    """The field is found all the same."""
    with pytest.raises(EncodeError, match=named):
        verified(hooked(type_), value)


# -- nesting


@pytest.mark.parametrize("type_", [Any, dict, list, dict[str, Any]])
def test_nesting_is_bounded_where_the_type_does_not_bound_it(type_: Any) -> None:
    """JSON that a bare thread has written must be readable for a request handler deep in middleware."""
    codec = Codec(type_)
    wrap: Callable[[Any], Any] = (lambda value: [value]) if type_ is list else (lambda value: {"a": value})
    assert codec.decode(verified(codec, wrap(nested(MAX_NESTING - 1)))) == wrap(nested(MAX_NESTING - 1))
    for levels in (MAX_NESTING, MAX_NESTING + 1, 700):
        with pytest.raises(EncodeError, match=r"^field .*: nested deeper than 200 levels"):
            codec.encode(wrap(nested(levels)))


class Node(msgspec.Struct):
    child: Node | None = None


def test_nesting_is_bounded_for_recursive_types() -> None:
    """A list of its own kind is as deep as its data."""
    node = Node()
    for _ in range(MAX_NESTING - 1):
        node = Node(node)
    verified(Codec(Node), node)
    with pytest.raises(EncodeError, match="nested deeper than 200 levels"):
        Codec(Node).encode(Node(node))


def test_values_nested_to_the_bound_are_read_on_a_deep_stack() -> None:
    """Within half of the frames that Python allows."""
    codec = Codec(Any)
    encoded = verified(codec, nested(MAX_NESTING, leaf="x"))

    def deep(frames: int) -> Any:
        return deep(frames - 1) if frames else codec.decode(encoded)

    assert deep(sys.getrecursionlimit() // 2) == nested(MAX_NESTING, leaf="x")


plain_values = st.recursive(
    st.none() | st.booleans() | st.text(alphabet='ab[]{}"\\\n,:') | st.integers(),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(alphabet='[{"\\'), inner, max_size=4),
    max_leaves=30,
)


@settings(deadline=None)
@given(plain_values, st.integers(MAX_NESTING - 12, MAX_NESTING + 5))
def test_the_depth_is_measured_exactly(leaf: Any, levels: int) -> None:
    """Brackets and quotes in text don't count, side by side or not."""

    def depth(value: Any) -> int:
        inner = value.values() if isinstance(value, dict) else value if isinstance(value, list) else None
        return 0 if inner is None else 1 + max(map(depth, inner), default=0)

    value = [nested(levels - 1, leaf=leaf), [[]] * 300, "[" * 500]
    try:
        Codec(Any).encode(value)
    except EncodeError:
        assert depth(value) > MAX_NESTING
    else:
        assert depth(value) <= MAX_NESTING


# -- many at once


def test_deltas_are_looked_at_together() -> None:
    """The first that doesn't decode is told by its index, with its field."""
    codec = Codec(dict[str, int])
    good = codec.encode({"a": 1})
    assert codec.decodes([]) is None
    assert codec.decodes([good] * 3) is None
    found = codec.decodes([good, good, codec.encode({"a": 1.5}), codec.encode({"a": "x"})])
    assert found is not None
    index, error = found
    assert index == 2
    assert isinstance(error, DecodeError)
    assert "Expected `int`, got `float`" in str(error)


@pytest.mark.parametrize(
    ("type_", "fine", "odd"),
    [
        (Any, [b"1", b"{}", b"null"], None),
        (dict, [b"{}", b'{"a":[1]}'], b"[]"),
        (dict[str, Any], [b"{}", b'{"a":[1]}'], b"null"),
        (list, [b"[]", b'[{"a":1}]'], b"{}"),
        (None, [b"null"], b"1"),
        (Line, [b'{"sku":"a"}'], b'{"sku":1}'),
        (int | None, [b"1", b"null"], b"true"),
    ],
)
def test_deltas_of_every_kind(type_: Any, fine: list[bytes], odd: bytes | None) -> None:
    """Untyped ones are told by their first byte, which no decoder would add anything to."""
    codec = Codec(type_)
    assert codec.decodes(fine) is None
    for data in fine:
        codec.decode(data)
    if odd is not None:
        found = codec.decodes([*fine, odd, odd])
        assert found is not None
        assert found[0] == len(fine)
        with pytest.raises(DecodeError):
            codec.decode(odd)


@pytest.mark.parametrize(
    ("type_", "delta"),
    [
        (float, math.nan),
        (float | None, math.nan),
        (int | None, math.inf),
        (dict[str, str | None], {"a": math.nan}),
        (Line, Line("a", NOT_A_NUMBER)),
        (dict, {"a": [math.inf]}),
        (Any, math.nan),
        (list[Silent], [Silent(math.nan)]),
    ],
)
def test_a_delta_that_is_not_finite_is_found_by_one_of_the_two_looks(type_: Any, delta: Any) -> None:
    """``encode_part`` leaves only such checks to ``decodes`` that it is certain to make."""
    codec = Codec(type_)
    with pytest.raises(ValueError):  # noqa: PT012  # which of the two it is depends on the type
        found = codec.decodes([codec.encode_part(delta)])
        if found is not None:
            raise found[1]


def test_a_delta_need_not_come_back_equal() -> None:
    """A tuple may come back as a list: it is not folded."""
    codec = Codec(Any)
    assert codec.decodes([codec.encode({"a": (1, 2), 7: {"x"}})]) is None


# -- errors


class Broken(Exception):
    def __str__(self) -> str:
        raise AttributeError("text")


def test_an_error_is_described_whatever_it_does() -> None:
    """Reporting an error never adds one."""
    assert describe(ValueError("text")) == "ValueError: text"
    assert describe(ValueError()) == "ValueError"
    assert describe(Broken()) == "<Broken whose str() raises>"


@pytest.mark.parametrize("error", [ValueError("x"), TypeError("x"), Broken(), SystemExit(3), GeneratorExit()])
def test_a_hook_may_raise_anything(error: BaseException) -> None:
    """It is an EncodeError or a DecodeError, with the hook's own as its cause."""

    def fail(*_: Any) -> Any:
        raise error

    codec = Codec(dict[str, Money], encode_hook=fail, decode_hook=fail)
    with pytest.raises(EncodeError, match=r"field \"\['a'\]\": a Money can't be encoded") as encoding:
        codec.encode({"a": Money(1)})
    assert encoding.value.__cause__ is error
    with pytest.raises(DecodeError) as decoding:
        codec.decode(b'{"a":1}')
    assert decoding.value.__cause__ is not None
    with pytest.raises(EncodeError):
        codec.verify({"a": Money(1)}, b'{"a":1}')
    found = codec.decodes([b'{"a":1}'])
    assert found is not None
    assert found[0] == 0


def test_a_keyboard_interrupt_in_a_hook_passes() -> None:
    """It comes from outside, and has to stop the program."""

    def interrupt(*_: Any) -> Any:
        raise KeyboardInterrupt

    codec = Codec(dict[str, Money], encode_hook=interrupt, decode_hook=interrupt)
    with pytest.raises(KeyboardInterrupt):
        codec.encode({"a": Money(1)})
    with pytest.raises(KeyboardInterrupt):
        codec.decode(b'{"a":1}')


def test_the_results_of_a_hook_are_checked_as_well() -> None:
    """A NaN, or nesting, may come from there."""
    nan = Codec(dict[str, Any], encode_hook=lambda _: {"x": [math.nan]})
    with pytest.raises(EncodeError, match=r"""field "\['a'\]\['x'\]\[0\]": nan"""):
        nan.encode({"a": Money(1), "at": NOON})
    deep = Codec(dict[str, Any], encode_hook=lambda _: nested(300))
    with pytest.raises(EncodeError, match="nested deeper"):
        deep.encode({"a": Money(1)})


# -- any state

odd_values: st.SearchStrategy[Any] = st.recursive(
    st.sampled_from(
        [Region.NORTH, Level.HIGH, Plain.ONE, ID, NOON, b"x", Line("a"), GiftLine("a"), Table("a")]
    )
    | st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text(st.characters(), max_size=5)
    | st.decimals(allow_nan=False)
    | st.binary(max_size=4),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(
            st.text(max_size=2) | st.integers(-3, 3) | st.sampled_from(["1", "2"]), inner, max_size=3
        )
        | st.dictionaries(st.sampled_from([ID, 1.5, Region.NORTH, b"x"]), inner, max_size=2)
        | st.sets(st.text(max_size=2) | st.integers(), max_size=3)
    ),
    max_leaves=8,
)


@st.composite
def typed_states(draw: st.DrawFn) -> Typed:
    """A state with up to three fields that hold something else than they say."""
    names = list(Typed.__dataclass_fields__)
    return Typed(**{name: draw(odd_values) for name in draw(st.sets(st.sampled_from(names), max_size=3))})


def same_types(value: Any, decoded: Any) -> bool:
    """Whether untyped parts have the same types; subclasses of str, int and dict count as such."""
    if isinstance(value, dict):
        return isinstance(decoded, dict) and all(
            isinstance(key, str) and same_types(part, decoded[key]) for key, part in value.items()
        )
    if isinstance(value, list):
        return isinstance(decoded, list) and all(map(same_types, value, decoded))
    return isinstance(value, type(decoded)) and isinstance(value, str | int | float | None)


@settings(deadline=None)
@given(typed_states())
@example(Typed(share=1e16))
def test_any_typed_state_is_refused_or_reads_back(state: Typed) -> None:
    """There is no third way: no state is committed that the next load would not find as it was."""
    codec = Codec(Typed)
    try:
        encoded = verified(codec, state)
    except EncodeError:
        return
    decoded = codec.decode(encoded)
    assert decoded == state
    assert same_types(state.anything, decoded.anything)


@settings(deadline=None)
@given(odd_values, st.sampled_from([Any, dict, list, dict[str, Any], dict[str, int], list[str], str, float]))
def test_any_untyped_state_is_refused_or_reads_back(state: Any, type_: Any) -> None:
    """The same where nothing is annotated."""
    codec = Codec(type_)
    try:
        encoded = verified(codec, state)
    except EncodeError:
        return
    decoded = codec.decode(encoded)
    assert decoded == state
    if type_ in (Any, dict, list):
        assert same_types(state, decoded)


@settings(deadline=None)
@given(odd_values)
def test_no_float_that_is_not_finite_gets_through(value: Any) -> None:
    """Python's own encoder finds them as well."""
    try:
        Codec(Any).encode(value)
    except EncodeError as error:
        if "no number in JSON" not in str(error):
            return
        found = True
    else:
        found = False
    try:
        json.dumps(msgspec.to_builtins(value), allow_nan=False)
    except ValueError:
        assert found
    else:
        assert not found
