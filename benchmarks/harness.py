"""What all benchmarks share: interleaved repetitions, medians with their range, versions."""

from __future__ import annotations

import gc
import json
import os
import platform
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

KEPT = Path(__file__).parents[1] / "build" / "benchmarks"

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))


def environment(*packages: str) -> str:
    """Return a line that says what this runs on."""
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    return f"{platform.python_implementation()} {platform.python_version()}, {os.cpu_count()} cores, SQLite {sqlite3.sqlite_version}, {names}"


def rate(work: Callable[[], int]) -> float:
    """Return how many a second, of what work says that it has done."""
    started = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - started)


def interleaved(
    sides: dict[str, Callable[[], int]], repetitions: int, *, prepare: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Measure all sides in turn (A B A B …), so that a drift of the machine hits all alike.

    What was prepared (events, mostly) is taken from the garbage collector first: else each side pays for
    walking through what belongs to neither. ``prepare`` is called before each turn, and not timed.
    """
    gc.collect()
    gc.freeze()
    rates: dict[str, list[float]] = {name: [] for name in sides}
    for _ in range(repetitions):
        prepare()
        for name, work in sides.items():
            rates[name].append(rate(work))
    return rates


_measured: dict[str, float] = {}
_section = ""


def section(title: str, of: str) -> None:
    """Print the title of what follows; its figures are kept as those ``of`` it."""
    global _section
    _section = f"{of}: " if of else ""
    print(title)


def keep(name: str, value: float) -> float:
    """Keep a figure for the README and the plots: in build/benchmarks, by the name of the program."""
    _measured[_section + name] = value
    KEPT.mkdir(parents=True, exist_ok=True)
    (KEPT / f"{Path(sys.argv[0]).stem}.json").write_text(json.dumps(_measured, indent=1))
    return value


def row(name: str, values: list[float], unit: str = "/s") -> str:
    """Return median and range as a line, and keep the median."""
    keep(name, statistics.median(values))
    return (
        f"  {name:<58} {statistics.median(values):>10,.0f}{unit}   ({min(values):,.0f} to {max(values):,.0f})"
    )


def compare(ours: list[float], theirs: list[float]) -> str:
    """Return the ratio of the medians, and the range of the ratios pair by pair."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"  ratio of medians {ratio:.1f}   (pairs {min(pairs):.1f} to {max(pairs):.1f})"


@contextmanager
def sqlite_file() -> Iterator[str]:
    """The URL of a SQLite file that goes with the benchmark."""
    with TemporaryDirectory(prefix="keyfold-bench-") as directory:
        yield f"sqlite:///{directory}/bench.db"


@contextmanager
def postgres() -> Iterator[str]:
    """The URL of a real PostgreSQL with its default durability."""
    from support.postgres import PostgresServer

    server = PostgresServer()
    server.start()
    try:
        yield server.url
    finally:
        server.remove()
