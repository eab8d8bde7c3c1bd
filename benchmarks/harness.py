"""The common parts of the benchmarks: interleaved repetitions, medians with their range, versions."""

from __future__ import annotations

import gc
import json
import os
import platform
import re
import sqlite3
import statistics
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory

OUTPUT = Path(__file__).parents[1] / "build" / "benchmarks"
"""For each program ``<name>.txt``, its printed text, and ``<name>.json``, its figures by their ids."""
_FIGURE = re.compile(r"[a-z0-9_]+(\.[a-z0-9_]+)*", re.ASCII)

sys.path.insert(0, str(Path(__file__).parents[1] / "tests" / "helpers"))


def environment(*packages: str) -> str:
    """Return a line with the versions of Python, of SQLite and of these packages."""
    names = ", ".join(f"{name} {version(name)}" for name in packages)
    python = f"{platform.python_implementation()} {platform.python_version()}"
    return f"{python}, {os.cpu_count()} cores, SQLite {sqlite3.sqlite_version}, {names}"


def rate(work: Callable[[], int]) -> float:
    """Return the rate per second of the work, which returns its count."""
    started = time.perf_counter()
    done = work()
    return done / (time.perf_counter() - started)


def interleaved(
    sides: dict[str, Callable[[], int]], repetitions: int, *, prepare: Callable[[], None] = lambda: None
) -> dict[str, list[float]]:
    """Measure all sides alternately (A B A B), so that a drift of the machine affects all of them equally.

    Objects that exist already (mostly events) are hidden from the garbage collector first: else each side
    would pay for scanning them. ``prepare`` is called before each repetition, and is not timed.
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


def section(title: str, figures: str) -> None:
    """Print a title. The ids of the following figures begin with ``figures`` and a dot."""
    global _section
    _section = f"{figures}."
    print(title)


def record(figure: str, value: float) -> float:
    """Write a figure to OUTPUT, for the README's table and the plots.

    Args:
        figure: Its id, words of ``a-z0-9_`` with dots between them. The table and the plots find a figure by
            its id, so that the printed text can change.
        value: The figure.
    """
    id_ = _section + figure
    assert _FIGURE.fullmatch(id_), id_
    _measured[id_] = value
    OUTPUT.mkdir(parents=True, exist_ok=True)
    (OUTPUT / f"{Path(sys.argv[0]).stem}.json").write_text(json.dumps(_measured, indent=1))
    return value


def slug(text: str) -> str:
    """Return a text as one word of a figure's id."""
    return re.sub(r"[^a-z0-9]+", "_", text.lower()).strip("_")


def row(figure: str, text: str, values: list[float], unit: str = "/s") -> str:
    """Return median and range as a line that begins with ``text``, and record the median as ``figure``."""
    median = record(figure, statistics.median(values))
    return f"  {text:<58} {median:>10,.0f}{unit}   ({min(values):,.0f} to {max(values):,.0f})"


def compare(ours: list[float], theirs: list[float]) -> str:
    """Return the ratio of the medians, and the range of the ratios pair by pair."""
    pairs = [a / b for a, b in zip(ours, theirs, strict=True)]
    ratio = statistics.median(ours) / statistics.median(theirs)
    return f"  ratio of medians {ratio:.1f}   (pairs {min(pairs):.1f} to {max(pairs):.1f})"


@contextmanager
def sqlite_file() -> Iterator[str]:
    """The URL of a SQLite file, removed after the benchmark."""
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
