"""The cost of the check that events, deltas and states can be read back: ``make bench-verify``.

An event is checked at each dispatch. For a flat class (three fields of text, numbers, times), a function
compiled for the class checks the types of the fields; any other event is encoded and decoded. A delta is
encoded, and all deltas of a commit are decoded together. A state is decoded and compared once per commit.
Each is shown beside the bare encoding of the same object by msgspec, from the same rounds.

Tried and rejected. For events: one bound for the lengths of all texts together, or one check of all texts
joined, is not faster than one per text; a third of the rest is the call itself. ``value.__class__`` is a
tenth faster than ``type(value)``, but wrong for proxies, which return the class of the object behind them.
For deltas: ``b"null" in encoded`` takes twice as long as a regular expression, because ``in`` first tries to
convert its operand to a number. For states: comparing the re-encoded bytes takes half as long as comparing
dataclasses, which is done in Python (unlike for Structs), but a UUID in a text field would equal its text. A
decoder with a type of eight levels bounds the nesting of untyped data at no cost, where measuring it takes a
tenth of a commit; it would need a second decoder, and another way for deeper data. Python's own JSON with
``allow_nan=False`` takes ten times as long to find infinite numbers and NaN as MessagePack, which shows them
in its bytes.
"""

from __future__ import annotations

import argparse
import enum
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from decimal import Decimal
from functools import partial
from typing import Any
from uuid import uuid4

import msgspec
from harness import environment, record, slug
from keyfold.actors.event_check import make_event_check
from keyfold.store.codec import Codec


class Colour(enum.Enum):
    RED = "red"


@dataclass
class Sold:
    place: str
    article: str
    amount: int


@dataclass
class Repainted:
    car: str
    colour: Colour
    share: float


class Paid(msgspec.Struct):
    order: str
    at: datetime
    price: Decimal


@dataclass
class Basket:
    place: str
    articles: list[str]
    at: datetime


@dataclass
class Untyped:
    place: str
    what: Any


@dataclass
class Line:
    article: str
    amount: int
    price: float


@dataclass
class Board:
    name: str = "board"
    lines: dict[str, Line] = field(default_factory=dict)


class StructLine(msgspec.Struct):
    article: str
    amount: int
    price: float


class StructBoard(msgspec.Struct):
    name: str = "board"
    lines: dict[str, StructLine] = {}


NOW = datetime.now(UTC)
EVENTS: dict[str, Any] = {
    "flat: two texts, an int": Sold("north", "apple", 3),
    "flat: a text, an enum, a float": Repainted(str(uuid4()), Colour.RED, 0.5),
    "flat: a text, a time, a Decimal": Paid("4711", NOW, Decimal("9.90")),
    "nested: a text, a list of two, a time": Basket("north", ["apple", "pear"], NOW),
    "untyped: a text, a dict of two": Untyped("north", {"apple": 3, "pear": None}),
    "a dict of three": {"place": "north", "article": "apple", "amount": 3},
}
DELTAS: dict[str, tuple[Any, Any]] = {
    "dict[str, int]": (dict[str, int], {"apple": 3}),
    "a dataclass of three": (Line, Line("apple", 3, 0.5)),
    "dict": (dict, {"apple": 3}),
    "no annotation": (Any, {"apple": 3}),
}
# The numbers of lines in states of about 100 B, 10 kB and 1 MB.
SIZES = (1, 200, 20_000)
COMMIT = 32


def states(lines: int) -> dict[str, tuple[Any, Any]]:
    """Return the same state as dataclasses, as Structs and untyped."""
    parts = [(f"key {n}", f"article {n}", n, n * 0.5) for n in range(lines)]
    return {
        "dataclasses": (Board, Board("board", {key: Line(*rest) for key, *rest in parts})),
        "Structs": (StructBoard, StructBoard("board", {key: StructLine(*rest) for key, *rest in parts})),
        "untyped": (
            dict,
            {
                "name": "board",
                "lines": {k: {"article": a, "amount": m, "price": p} for k, a, m, p in parts},
            },
        ),
    }


def measure(works: dict[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the seconds per call of each side: the best of several rounds, in which the sides alternate.

    The best, as in timeit: anything above it is the time of other programs on the machine.
    """
    repeats: dict[str, int] = {}
    for name, work in works.items():
        started = time.perf_counter()
        work()
        repeats[name] = max(1, int(0.005 / max(time.perf_counter() - started, 1e-7)))
    taken: dict[str, list[float]] = {name: [] for name in works}
    for _ in range(rounds):
        for name, work in works.items():
            count = repeats[name]
            started = time.perf_counter()
            for _ in range(count):
                work()
            taken[name].append((time.perf_counter() - started) / count)
    return {name: min(values) for name, values in taken.items()}


def bound(function: Callable[[Any], object], argument: Any) -> Callable[[], object]:
    """Return a call of the function without arguments."""
    return lambda: function(argument)


def main() -> None:
    """Print events, deltas and states."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=25)
    options = parser.parse_args()
    print(environment("keyfold", "msgspec"))
    bare = msgspec.json.Encoder().encode
    empty = measure({"": lambda: bound}, options.rounds)[""]

    def nanoseconds(seconds: float, calls: int = 1) -> float:
        return max(0.0, seconds - empty) * 1e9 / calls

    print(f"events: ns per dispatch, best of {options.rounds} rounds{'check':>28}{'bare encoding':>16}")
    for name, event in EVENTS.items():
        check = make_event_check(type(event), Codec(type(event)), 1 << 20, required=False)
        assert check(event) is None
        taken = measure({"check": bound(check, event), "bare": bound(bare, event)}, options.rounds)
        checked = record(f"event.{slug(name)}", nanoseconds(taken["check"]))
        print(f"  {name:<66}{checked:>16,.0f}{nanoseconds(taken['bare']):>16,.0f}")
    print(f"deltas: ns per delta, in commits of {COMMIT}{'encode':>34}{'decodes':>16}{'bare encoding':>16}")
    for name, (type_, delta) in DELTAS.items():
        codec = Codec(type_)
        encoded = [codec.encode_part(delta)] * COMMIT
        taken = measure(
            {
                "encode": bound(codec.encode_part, delta),
                "decodes": bound(codec.decodes, encoded),
                "bare": bound(bare, delta),
            },
            options.rounds,
        )
        looked = record(f"delta.{slug(name)}", nanoseconds(taken["decodes"], COMMIT))
        encodes = nanoseconds(taken["encode"])
        print(f"  {name:<50}{encodes:>16,.0f}{looked:>16,.0f}{nanoseconds(taken['bare']):>16,.0f}")
    print(f"states: µs per commit{'encode':>44}{'verify':>16}{'bare encoding':>16}")
    for lines in SIZES:
        for name, (type_, state) in states(lines).items():
            codec = Codec(type_)
            data = codec.encode(state)
            taken = measure(
                {
                    "encode": bound(codec.encode, state),
                    "verify": partial(codec.verify, state, data),
                    "bare": bound(bare, state),
                },
                options.rounds if lines < SIZES[-1] else max(3, options.rounds // 3),
            )
            label = f"{name}, {len(data):,} B"
            verified = record(f"state.{slug(name)}.lines_{lines}", taken["verify"] * 1e6)
            print(
                f"  {label:<50}{taken['encode'] * 1e6:>16,.1f}{verified:>16,.1f}{taken['bare'] * 1e6:>16,.1f}"
            )


if __name__ == "__main__":
    main()
