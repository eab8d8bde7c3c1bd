"""The table of the README, from the figures that the programs have recorded."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

from harness import OUTPUT

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"

Load = Callable[[str], Mapping[str, float]]
"""Returns the figures of a program by their ids."""


def write_headline(readme: Path) -> None:
    """Replace the table between the two marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text("\n".join([before + BEGIN, *table(load), END + after]))


def load(program: str) -> Mapping[str, float]:
    """Return the figures that a program has recorded, by their ids."""
    figures: dict[str, float] = json.loads((OUTPUT / f"{program}.json").read_text())
    return figures


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: float) -> str:
    """Round to three digits: a noisy machine measures no more."""
    return f"{float(f'{value:.3g}'):,.0f}"


def table(figures: Load) -> Iterator[str]:
    """Return the lines of the table."""
    yield _line("", "Keyfold", "beside it")
    yield "|---|---|---|"
    yield from _writing(figures)
    yield from _sockets(figures)
    yield from _latency(figures)


def _writing(figures: Load) -> Iterator[str]:
    durable, path, actors = figures("durable"), figures("write_path"), figures("live_actors")
    for figure, where in (
        ("postgresql", "PostgreSQL 18"),
        ("sqlite", "SQLite, WAL, synchronous=NORMAL"),
    ):
        yield _line(
            f"durable events/s, {where}, 100 keys, in bulk (`make bench-durable`)",
            _rate(durable[f"{figure}.bulk"]),
            f"{_rate(durable[f'{figure}.seed'])}: one lock per key; select, upsert and commit per event, "
            "best of 1, 4, 8 threads",
        )
    yield _line(
        "64 threads, each awaits its own commit: PostgreSQL · SQLite",
        f"{_rate(durable['postgresql.loop'])} · {_rate(durable['sqlite.loop'])}",
        f"{_rate(durable['postgresql.seed'])} · {_rate(durable['sqlite.seed'])}; "
        f"64 threads woken once per event, no work: {_rate(durable['sqlite.wakeups'])}",
    )
    yield _line(
        "durable events/s, PostgreSQL, 100 keys (`make bench-write_path`)",
        _rate(path["bulk_100"]),
        f"{_rate(path['eventsourcing'])}: `eventsourcing`'s ProjectionRunner",
    )
    yield _line(
        "rows/s of a group commit, PostgreSQL, 500 rows each",
        _rate(path["store"]),
        f"{_rate(path['raw'])}: one raw UPDATE from VALUES",
    )
    yield _line(
        "1,000,000 live key actors (`make bench-live_actors`)",
        f"{actors['threads']:.0f} threads, "
        f"{actors['bytes.actors_1000000']:.0f} bytes each beyond key and state",
        f"`pykka.ThreadingActor`: one thread and {actors['pykka.bytes']:,.0f} bytes each",
    )


def _sockets(figures: Load) -> Iterator[str]:
    fan, held = figures("fan_out"), figures("held_sockets")
    for figure, where in (("single", "one at a time (`make bench-fan_out`)"), ("bursts", "bursts of 50")):
        bare, node = _rate(fan[f"{figure}.bare"]), _rate(fan[f"{figure}.node_ws"])
        broadcast, idiom = (
            _rate(fan[f"{figure}.websockets_broadcast"]),
            _rate(fan[f"{figure}.flask_sock_idiom"]),
        )
        yield _line(
            f"fan-out to 1,000 sockets, deltas/s, {where}",
            _rate(fan[f"{figure}.keyfold_hub"]),
            f"bare loop of `send` {bare}; Node `ws` {node}; `websockets.broadcast` {broadcast}; "
            f"Flask-Sock {idiom}",
        )
    yield _line(
        "9,000 sockets held by one gunicorn worker (`make bench-held_sockets`)",
        f"{held['keyfold.threads']:.0f} threads, {held['keyfold.bytes']:,.0f} bytes each",
        f"Flask-Sock, 1,000 sockets: {held['flask_sock.threads']:,.0f} threads, "
        f"{held['flask_sock.bytes']:,.0f} bytes each",
    )


def _latency(figures: Load) -> Iterator[str]:
    late, across, loop = figures("latency"), figures("backplane"), figures("dispatch")
    yield _line(
        "dispatch to readable on a socket, SQLite, idle (`make bench-latency`)",
        f"p50 {late['keyfold.p50']:.1f} ms, p99 {late['keyfold.p99']:.1f} ms",
        f"one thread that commits and sends: {late['bare.p50']:.2f} and {late['bare.p99']:.2f} ms",
    )
    yield _line(
        "the same on a socket of another process, PostgreSQL and Redis (`make bench-backplane`)",
        f"p50 {across['keyfold.p50']:.1f} ms, p99 {across['keyfold.p99']:.1f} ms",
        f"commit, publish, receive, send, by hand: {across['bare.p50']:.1f} and {across['bare.p99']:.1f} ms",
    )
    yield _line(
        "dispatch to resolved Receipt, no database (`make bench-dispatch`)",
        f"{_rate(loop['keyfold'])}/s",
        f"the bare loop of `apply` and encoding: {_rate(loop['bare'])}/s",
    )
