"""How cost grows, as pictures in docs/images. From what the programs kept; nothing is measured here."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import matplotlib as mpl
from harness import KEPT
from matplotlib import pyplot as plt

Figures = dict[str, float]


def _over(figures: Figures, names: dict[int, str]) -> list[tuple[int, float]]:
    return [(size, figures[name]) for size, name in names.items()]


def _keys(axes: Any, figures: Figures) -> None:
    names = {1: "over 1 key", 100: "over 100 keys", 10_000: "over 10,000 keys", 100_000: "over 100,000 keys"}
    points = [*_over(figures, names), (1_000_000, figures["over 1,000,000 keys, once"])]
    _line(axes, points, "keys", "durable events/s, SQLite")


def _sizes(axes: Any, figures: Figures) -> None:
    names = {size: f"one key, in fifties, a state of {size:,} bytes" for size in (100, 10_000, 1_000_000)}
    _line(axes, _over(figures, names), "bytes of a state", "durable events/s, one key, in fifties")


def _subscribers(axes: Any, figures: Figures) -> None:
    names = {
        count: f"to {count:,} subscriber{'s' if count > 1 else ''}, deltas" for count in (1, 10, 1_000, 9_000)
    }
    _line(axes, _over(figures, names), "subscribers of a key", "deltas delivered/s")


def _memory(axes: Any, figures: Figures) -> None:
    names = {count: f"bytes, {count} actors" for count in (10_000, 100_000, 1_000_000)}
    _line(axes, _over(figures, names), "live key actors", "bytes an actor, beyond key and state")


# File -> the program whose figures it shows, its title, and what draws it.
PLOTS: dict[str, tuple[str, str, Callable[[Any, Figures], None]]] = {
    "growth_keys": ("growth", "Events a second over keys", _keys),
    "growth_sizes": ("growth", "Events a second over the size of a state", _sizes),
    "growth_subscribers": ("growth", "Deltas a second over subscribers", _subscribers),
    "growth_memory": ("live_actors", "Memory over live keys", _memory),
}


def draw(folder: Path) -> None:
    """Write all plots."""
    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "keyfold"  # the same figures make the same file
    for file, (program, title, plot) in PLOTS.items():
        figures = json.loads((KEPT / f"{program}.json").read_text())
        figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
        plot(axes, figures)
        axes.set_title(title)
        figure.savefig(folder / f"{file}.svg", metadata={"Date": None})
        plt.close(figure)


def _line(axes: Any, points: list[tuple[int, float]], over: str, what: str) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", color="#2a6f97")
    for size, value in points:
        axes.annotate(
            f"{value:,.0f}", (size, value), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8
        )
    axes.set_xscale("log")
    axes.set_ylim(0, 1.25 * max(value for _, value in points))
    axes.margins(x=0.1)
    axes.set_xlabel(over)
    axes.set_ylabel(what, fontsize=8)
    axes.grid(alpha=0.3)
