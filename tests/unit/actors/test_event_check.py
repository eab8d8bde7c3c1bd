"""An event is accepted only if it can be kept and read back, and asking costs next to nothing."""

from __future__ import annotations

import dataclasses
import enum
import math
from collections.abc import Callable
from dataclasses import InitVar, dataclass, field, make_dataclass
from datetime import UTC, date, datetime, timedelta, timezone
from decimal import Decimal
from typing import Annotated, Any, Generic, Literal, NamedTuple, TypedDict, TypeVar
from unittest.mock import MagicMock, Mock
from uuid import UUID, uuid4

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from keyfold.actors import event_check
from keyfold.actors.event_check import make_event_check
from keyfold.store.codec import Codec

ROOM = 1 << 20
NOON = datetime(2024, 5, 1, 12, tzinfo=UTC)
T = TypeVar("T")


class Colour(enum.Enum):
    RED = "red"
    BLUE = "blue"


class Size(enum.IntEnum):
    SMALL = 1


class Right(enum.Flag):
    READ = 1
    WRITE = 2


class Kind(enum.Enum):
    KNOWN = "known"

    @classmethod
    def _missing_(cls, value: object) -> Any:
        made_up = object.__new__(cls)
        made_up._name_ = made_up._value_ = str(value)
        return made_up


@dataclass
class Ordered:
    table: str
    dish: str
    amount: int = 1


@dataclass(frozen=True, slots=True)
class Priced:
    dish: str
    price: Decimal
    share: float
    at: datetime | None = None


class Moved(msgspec.Struct, rename="camel", tag="moved"):
    box_id: UUID
    to_colour: Colour
    is_open: bool = False


class Plain:
    pass


def check_of(event_class: Any, *, required: bool = False, max_bytes: int = ROOM, **hooks: Any) -> Any:
    return make_event_check(event_class, Codec(event_class, **hooks), max_bytes, required=required)


def is_compiled(check: Callable[[Any], str | None]) -> bool:
    return check.__code__.co_filename.startswith("<check of")


# -- events that are fine, and events that are not


@pytest.mark.parametrize(
    "event",
    [
        Ordered("4", "soup"),
        Ordered("4", "Suppe für zwei 🍲", 2**62),
        Priced("soup", Decimal("1.50"), 0.5),
        Priced("soup", Decimal("NaN"), 3, NOON),
        Moved(uuid4(), Colour.RED, is_open=True),
    ],
)
def test_a_flat_event_is_fine_without_being_encoded(event: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    """The class's own function answers, without the thorough check."""

    def thorough(*_: Any, **__: Any) -> Callable[[Any], str]:
        return lambda _event: "it was encoded"

    monkeypatch.setattr(event_check, "_thorough_check", thorough)
    assert check_of(type(event))(event) is None


UNTYPED: Any = ["not", "a", "dish"]


@pytest.mark.parametrize(
    ("event", "reason"),
    [
        (Ordered("4", UNTYPED), "field 'dish': Expected `str`, got `array`"),
        (Ordered("4", "soup", 1.5), "field 'amount': Expected `int`, got `float`"),  # type: ignore[arg-type]
        (Ordered("4", "soup", True), "field 'amount': Expected `int`, got `bool`"),
        (Ordered(None, "soup"), "field 'table': Expected `str`, got `null`"),  # type: ignore[arg-type]
        (
            Priced("soup", Decimal(1), math.nan),
            "field 'share': nan is no number in JSON, and would come back as null: use None, or leave it out",
        ),
        (
            Priced("soup", Decimal(1), -math.inf),
            (
                "field 'share': -inf is no number in JSON, and would come back as null: "
                "use None, or leave it out"
            ),
        ),
        (Moved("x", Colour.RED), "field 'boxId': Invalid UUID"),  # type: ignore[arg-type]
    ],
)
def test_an_event_that_would_not_read_back_is_refused(event: Any, reason: str) -> None:
    """The reason names the field: the tutorial's form field with a list in it bricked its key."""
    assert check_of(type(event))(event) == reason
    assert check_of(type(event), required=True)(event) == reason


def test_an_event_may_be_a_mebibyte_long() -> None:
    """To the byte: a letter is kept whole, and above that the event is refused."""
    empty = len(Codec(Ordered).encode(Ordered("", "")))
    check = check_of(Ordered)
    assert check(Ordered("", "x" * (ROOM - empty))) is None
    assert check(Ordered("", "x" * (ROOM - empty + 1))) == (
        "its JSON has 1,048,577 bytes, and KEYFOLD_EVENT_BYTES allows 1,048,576"
    )
    assert check(Ordered("", "\0" * (ROOM // 6))) == (
        f"its JSON has {ROOM // 6 * 6 + empty:,} bytes, and KEYFOLD_EVENT_BYTES allows 1,048,576"
    )
    assert "KEYFOLD_EVENT_BYTES" in check(Ordered("", "ü" * (ROOM // 2)))


def test_an_event_without_a_form_in_json_is_fine_unless_it_has_to_be_kept() -> None:
    """A halted key's events are parked in the database, to be folded later.

    A dead letter is just not retried.
    """

    for event, reason in (
        (Plain(), "a Plain can't be encoded"),
        (Ordered("4", check_of), "field 'dish': a function can't be encoded"),  # type: ignore[arg-type]
        (Ordered("4", "\ud800"), "field 'dish': a str can't be encoded"),
    ):
        assert check_of(type(event))(event) is None
        assert reason in check_of(type(event), required=True)(event)


def test_a_class_that_msgspec_does_not_know() -> None:
    """Only whether it has to be kept counts."""

    @dataclass
    class Odd:
        number: int
        ratio: InitVar[float]

    assert make_event_check(Odd, None, ROOM, required=False)(Odd(1, 2.0)) is None
    reason = make_event_check(Odd, None, ROOM, required=True)(Odd(1, 2.0))
    assert reason is not None
    assert "Odd" in reason


class Pair(NamedTuple):
    table: str
    dish: str


class Form(TypedDict):
    table: str


@pytest.mark.parametrize(
    ("event_class", "fine", "odd"),
    [
        (dict, {"a": [1, None]}, {"a": math.nan}),
        (Form, {"table": "4"}, {"table": 4}),
        (Pair, Pair("4", "soup"), Pair("4", UNTYPED)),
        (str, "text", None),
        (list, [1, (2,)], [math.inf]),
        (dict, {7: (1,), "at": NOON}, {"deep": [[[]]], "in": [None, -math.inf]}),
    ],
)
def test_events_need_be_no_objects(event_class: Any, fine: Any, odd: Any) -> None:
    """It holds for dicts, tuples and text as well."""
    check = check_of(event_class)
    assert check(fine) is None
    if odd is not None:
        assert check(odd).startswith("field ")


def test_an_event_need_not_come_back_equal() -> None:
    """A tuple in a list's place, int keys of an untyped dict: it decodes, and only that counts."""

    @dataclass
    class Event:
        items: list[str]
        anything: Any

    assert check_of(Event)(Event(("a",), {7: {1}})) is None  # type: ignore[arg-type]


def test_nesting_is_refused() -> None:
    """As in a state: it may not be readable later."""
    event: Any = []
    for _ in range(300):
        event = [event]
    assert "nested deeper than 200" in check_of(list)(event)


@pytest.mark.parametrize("error", [SystemExit(1), GeneratorExit()])
def test_an_exit_within_a_hook_passes(error: BaseException) -> None:
    """A signal handler's sys.exit may meet the thread that dispatches while it is in a hook."""

    class Money:
        pass

    def fail(*_: Any) -> Any:
        raise error

    check = check_of(Money, encode_hook=fail)
    with pytest.raises(type(error)):
        check(Money())


# -- classes that only look flat


class Shouting(str):
    __slots__ = ()


def test_an_object_that_says_it_is_text_is_not_taken_for_it() -> None:
    """Neither a mock nor a proxy, whose ``__class__`` says so, nor a subclass."""
    check = check_of(Ordered, required=True)
    for text in (Mock(spec=str), MagicMock(spec=str), Shouting("soup")):
        assert "can't be encoded" in check(Ordered("4", text))


def odd_classes() -> list[tuple[type, Any]]:
    """Classes with flat fields that decode by more than their fields.

    Each with an event that doesn't decode.
    """

    @dataclass
    class Checked:
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

    negative = Checked(1)
    negative.number = -1

    class CheckedStruct(msgspec.Struct):
        number: int

        def __post_init__(self) -> None:
            if self.number < 0:
                raise ValueError("negative")

    negative_struct = CheckedStruct(1)
    negative_struct.number = -1

    @dataclass
    class Computed:
        number: int

        def __getattribute__(self, name: str) -> Any:
            return "text" if name == "number" else object.__getattribute__(self, name)

    @dataclass
    class Bounded:
        number: Annotated[int, msgspec.Meta(ge=0)]

    class Short(msgspec.Struct):
        text: Annotated[str, msgspec.Meta(max_length=3)]

    @dataclass
    class Zoned:
        at: Annotated[datetime, msgspec.Meta(tz=True)]

    @dataclass
    class Refusing:
        number: int

        def __new__(cls, *_: Any) -> Any:
            made = object.__new__(cls)
            object.__setattr__(made, "number", "text")
            return made

        def __init__(self, number: int) -> None:
            pass

    @dataclass
    class Optional:
        choice: Literal["a", 1] | None

    @dataclass
    class Half:
        number: int
        text: str = "x"

    half = Half(1)
    del half.number
    return [
        (Checked, negative),
        (CheckedStruct, negative_struct),
        (Computed, Computed(1)),
        (Bounded, Bounded(-1)),
        (Short, Short("long")),
        (Zoned, Zoned(datetime(2024, 1, 1))),  # noqa: DTZ001
        (Refusing, Refusing(1)),
        (Optional, Optional(True)),  # type: ignore[arg-type]
        (Half, half),
    ]


@pytest.mark.parametrize(
    ("event_class", "event"), odd_classes(), ids=lambda value: getattr(value, "__name__", "")
)
def test_classes_that_only_look_flat(event_class: type, event: Any) -> None:
    """Validation of the app's own, a computed attribute, a constraint, a deleted attribute.

    Decoding decides.
    """
    assert check_of(event_class)(event) is not None


# -- any class, any event: it has to agree with encoding and decoding

field_types: list[Any] = [
    str, int, float, bool, None, Colour, Size, Right, Kind, datetime, date, UUID, Decimal, timedelta, bytes,
    Any, str | None, int | None, float | None, int | float, int | str | None, float | bool, Colour | None,
    Size | str, Literal["a", "b"], Literal[1, 2, "a"] | None, Literal["a"] | int, datetime | int,
    Decimal | None, list[str], dict[str, int],
    Annotated[int, msgspec.Meta(ge=0)], Annotated[str, msgspec.Meta(max_length=2)],
    Annotated[str, msgspec.Meta(description="said")], Annotated[datetime, msgspec.Meta(tz=True)],
]  # fmt: skip

values: st.SearchStrategy[Any] = st.one_of(
    st.text(st.characters(), max_size=30),
    st.text(max_size=8).map(lambda text: text * 4),
    st.integers(),
    st.integers(-(2**70), 2**70),
    st.floats(),
    st.booleans(),
    st.none(),
    st.sampled_from(
        [*Colour, *Size, Right.READ, Right.READ | Right.WRITE, Kind.KNOWN, Kind("made up"), "a", "b", 1, 2]
    ),
    st.sampled_from(
        [NOON, NOON.replace(tzinfo=None), NOON.astimezone(timezone(timedelta(hours=2))), date(1, 1, 1)]
    ),
    st.datetimes() | st.dates() | st.timedeltas(),
    st.uuids(),
    st.decimals(),
    st.sampled_from(
        [Decimal("1" * 76), Decimal("1" * 400), Decimal("-1." + "1" * 75 + "E-999999"), Decimal("sNaN")]
    ),
    st.binary(max_size=3),
    st.lists(st.text(max_size=2), max_size=2),
    st.sampled_from([object(), Shouting("a"), Mock(spec=str), Mock(spec=int), math.sin, msgspec.UNSET]),
)
names = st.sampled_from(
    ["a", "b", "_hidden", "_Event__mangled", "type", "event", "v0", "cls", "thorough", "ß"]
)
kinds = [
    "plain",
    "slots",
    "frozen",
    "inherits",
    "keyword",
    "struct",
    "camel",
    "array",
    "frozen struct",
    "omits",
]


def class_of(kind: str, fields: dict[str, Any]) -> type:
    if kind in ("struct", "camel", "array", "frozen struct", "omits"):
        options: dict[str, dict[str, Any]] = {
            "camel": {"rename": "camel", "tag": "it", "tag_field": "kind"},
            "array": {"array_like": True, "tag": 7, "tag_field": "kind"},
            "frozen struct": {"frozen": True, "forbid_unknown_fields": True},
            "omits": {"omit_defaults": True},
        }
        return msgspec.defstruct("Event", list(fields.items()), **options.get(kind, {}))
    if kind == "inherits":
        base = make_dataclass("Base", list(fields.items())[:1])
        return make_dataclass("Event", list(fields.items())[1:], bases=(base,))
    flags: dict[str, dict[str, Any]] = {
        "slots": {"slots": True},
        "frozen": {"frozen": True},
        "keyword": {"kw_only": True},
    }
    return make_dataclass("Event", list(fields.items()), **flags.get(kind, {}))


@settings(max_examples=400, deadline=None)
@given(
    kind=st.sampled_from(kinds),
    fields=st.dictionaries(names, st.sampled_from(field_types), min_size=1, max_size=4),
    data=st.data(),
    max_bytes=st.sampled_from([ROOM, 2000, 500, 60]),
    required=st.booleans(),
)
def test_the_compiled_check_agrees_with_encoding_and_decoding(
    kind: str,
    fields: dict[str, Any],
    data: st.DataObject,
    max_bytes: int,
    required: bool,  # noqa: FBT001
) -> None:
    """For any class, and any content of its events."""
    event_class = class_of(kind, fields)
    codec = Codec(event_class)
    check = make_event_check(event_class, codec, max_bytes, required=required)
    thorough = event_check._thorough_check(codec, max_bytes, required=required)
    for _ in range(4):
        event = event_class(**{name: data.draw(values) for name in fields})
        assert check(event) == thorough(event)


def test_most_flat_classes_are_compiled() -> None:
    """Else the property above would hold for nothing."""
    flat = [
        annotation for annotation in field_types if annotation not in (Right, Kind, timedelta, bytes, Any)
    ]
    compiled = [
        annotation
        for annotation in flat
        for kind in kinds
        if is_compiled(check_of(class_of(kind, {"a": annotation})))
    ]
    left = {str(annotation) for annotation in flat} - {str(annotation) for annotation in compiled}
    assert left == {
        str(annotation)
        for annotation in field_types
        if "Meta(ge" in str(annotation) or "list" in str(annotation) or "dict" in str(annotation)
    } | {str(Annotated[str, msgspec.Meta(max_length=2)]), str(Annotated[datetime, msgspec.Meta(tz=True)])}


class Box(msgspec.Struct, Generic[T]):
    content: T


@dataclass
class Default:
    number: int = field(default=5, init=False)
    text: str = "x"


@pytest.mark.parametrize("event", [Box(1), Box(math.nan), Default(), Default(text=UNTYPED)])
def test_generic_classes_and_fields_out_of_init(event: Any) -> None:
    """They agree as well."""
    codec = Codec(type(event))
    thorough = event_check._thorough_check(codec, ROOM, required=True)
    assert make_event_check(type(event), codec, ROOM, required=True)(event) == thorough(event)


def test_a_field_may_be_named_as_a_keyword() -> None:
    """The check is compiled from names, and these are none of Python."""
    event_class = msgspec.defstruct("Event", [("class", int)])
    event: Any = event_class(**{"class": 1})
    assert check_of(event_class)(event) is None
    assert check_of(event_class)(event_class(**{"class": "x"})) == "field 'class': Expected `int`, got `str`"


def test_a_subclass_of_a_dataclass_has_a_check_of_its_own() -> None:
    """With the fields that it adds."""

    @dataclass
    class Urgent(Ordered):
        minutes: int = 5

    assert is_compiled(check_of(Urgent))
    urgent: Any = Urgent
    reason = check_of(Urgent)(urgent("4", "soup", 1, "soon"))
    assert reason == "field 'minutes': Expected `int`, got `str`"
    assert dataclasses.fields(Urgent)[0].name == "table"
