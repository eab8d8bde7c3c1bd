"""How cost grows, as plots in docs/images. They show recorded figures; nothing is measured here."""

from __future__ import annotations

from pathlib import Path
from typing import Any, NamedTuple

from headline import load


class Plot(NamedTuple):
    """One curve.

    Attributes:
        program: The program that has recorded the figures.
        title: The title of the plot.
        points: The id of a figure for each position on the x axis.
        x: The label of the x axis.
        y: The label of the y axis.
    """

    program: str
    title: str
    points: dict[int, str]
    x: str
    y: str


PLOTS = {
    "growth_keys": Plot(
        "growth",
        "Events per second over keys",
        {**{count: f"keys_{count}" for count in (1, 100, 10_000, 100_000)}, 1_000_000: "keys_once"},
        "keys",
        "durable events/s, SQLite",
    ),
    "growth_sizes": Plot(
        "growth",
        "Events per second over the size of a state",
        {size: f"bytes_{size}" for size in (100, 10_000, 1_000_000)},
        "bytes of a state",
        "durable events/s, one key, in fifties",
    ),
    "growth_subscribers": Plot(
        "growth",
        "Deltas per second over subscribers",
        {count: f"subscribers_{count}" for count in (1, 10, 1_000, 9_000)},
        "subscribers of a key",
        "deltas delivered/s",
    ),
    "growth_memory": Plot(
        "live_actors",
        "Memory over live keys",
        {count: f"bytes.actors_{count}" for count in (10_000, 100_000, 1_000_000)},
        "live key actors",
        "bytes per actor, beyond key and state",
    ),
}
"""By the name of the file, without its ending."""


def draw(folder: Path) -> None:
    """Write all plots."""
    import matplotlib as mpl
    from matplotlib import pyplot as plt

    mpl.use("svg")
    mpl.rcParams["svg.hashsalt"] = "keyfold"  # the same figures make the same file
    for file, plot in PLOTS.items():
        figures = load(plot.program)
        figure, axes = plt.subplots(figsize=(6, 3.2), layout="constrained")
        _line(axes, [(x, figures[id_]) for x, id_ in plot.points.items()], plot)
        figure.savefig(folder / f"{file}.svg", metadata={"Date": None})
        plt.close(figure)


def _line(axes: Any, points: list[tuple[int, float]], plot: Plot) -> None:
    axes.plot(*zip(*points, strict=True), marker="o", color="#2a6f97")
    for size, value in points:
        axes.annotate(
            f"{value:,.0f}", (size, value), textcoords="offset points", xytext=(0, 7), ha="center", fontsize=8
        )
    axes.set_title(plot.title)
    axes.set_xscale("log")
    axes.set_ylim(0, 1.25 * max(value for _, value in points))
    axes.margins(x=0.1)
    axes.set_xlabel(plot.x)
    axes.set_ylabel(plot.y, fontsize=8)
    axes.grid(alpha=0.3)
