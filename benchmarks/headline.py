"""The table of the README, from what the programs kept."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from harness import KEPT

BEGIN, END = "<!-- figures: written by make bench -->", "<!-- end of figures -->"
IDIOM = "seed's algorithm, best of 1, 4, 8 threads"
LOOP = "keyfold, 64 threads, each awaits its commit"
WAKES = "64 threads, each woken once an event, no work"
BULK = "keyfold, one thread, 100,000 events in bulk"


def write_headline(readme: Path) -> None:
    """Replace what stands between the marks."""
    before, _, rest = readme.read_text().partition(BEGIN)
    _, _, after = rest.partition(END)
    readme.write_text("\n".join([before + BEGIN, *_lines(), END + after]))


def _kept(program: str) -> dict[str, float]:
    figures: dict[str, float] = json.loads((KEPT / f"{program}.json").read_text())
    return figures


def _line(*cells: str) -> str:
    return f"| {' | '.join(cells)} |"


def _rate(value: float) -> str:
    """Three digits are all that a noisy machine can tell."""
    return f"{float(f'{value:.3g}'):,.0f}"


def _lines() -> Iterator[str]:
    durable, path, actors = _kept("durable"), _kept("write_path"), _kept("live_actors")
    postgres, sqlite = (
        {name: durable[f"{db}: {name}"] for name in (BULK, IDIOM, LOOP, WAKES)}
        for db in ("PostgreSQL", "SQLite")
    )
    yield _line("", "Keyfold", "beside it")
    yield "|---|---|---|"
    for where, figures in (("PostgreSQL 18", postgres), ("SQLite, WAL, synchronous=NORMAL", sqlite)):
        yield _line(
            f"durable events/s, {where}, 100 keys, in bulk (`make bench-durable`)",
            _rate(figures[BULK]),
            f"{_rate(figures[IDIOM])}: a lock a key; select, upsert, commit an event, best of 1, 4, 8 threads",
        )
    yield _line(
        "64 threads, each awaits its own commit: PostgreSQL · SQLite",
        f"{_rate(postgres[LOOP])} · {_rate(sqlite[LOOP])}",
        f"{_rate(postgres[IDIOM])} · {_rate(sqlite[IDIOM])}; 64 threads woken once an event, no work: {_rate(sqlite[WAKES])}",
    )
    projected = path["eventsourcing's ProjectionRunner, 100 keys, projecting alone"]
    yield _line(
        "durable events/s, PostgreSQL, 100 keys (`make bench-write_path`)",
        _rate(path["keyfold, 100 keys in bulk, durable events"]),
        f"{_rate(projected)}: `eventsourcing`'s ProjectionRunner",
    )
    yield _line(
        "rows/s of a group commit, PostgreSQL, 500 rows each",
        _rate(path["keyfold's store, 1,000 keys, 500 rows a commit"]),
        f"{_rate(path['raw statement, 1,000 keys, 500 rows a commit'])}: one raw UPDATE from VALUES",
    )
    yield _line(
        "1,000,000 live key actors (`make bench-live_actors`)",
        f"{actors['threads']:.0f} threads, {actors['bytes, 1000000 actors']:.0f} bytes each beyond key and state",
        f"`pykka.ThreadingActor`: a thread, {actors['pykka bytes']:,.0f} bytes each",
    )
    fan = _kept("fan_out")
    for where, title in (
        ("one at a time (`make bench-fan_out`)", "one delta at a time"),
        ("bursts of 50", "bursts of 50 deltas"),
    ):
        ours, bare, node, broadcast, idiom = (
            _rate(fan[f"{title}: {name}"])
            for name in (
                "keyfold: publish until every socket has it", "bare loop of send", "Node ws: client.send in a loop",
                "websockets.broadcast", "Flask-Sock: ws.send in a loop",
            )
        )  # fmt: skip
        yield _line(
            f"fan-out to 1,000 sockets, deltas/s, {where}",
            ours,
            f"bare loop of `send` {bare}; Node `ws` {node}; `websockets.broadcast` {broadcast}; Flask-Sock {idiom}",
        )
    held, idiom = _kept("held_sockets"), "Flask-Sock, a thread a request"
    ours = "keyfold, gunicorn -k gthread"
    yield _line(
        "9,000 sockets held by one gunicorn worker (`make bench-held_sockets`)",
        f"{held[f'{ours}: threads']:.0f} threads, {held[f'{ours}: bytes']:,.0f} bytes each",
        f"Flask-Sock, 1,000 sockets: {held[f'{idiom}: threads']:,.0f} threads, {held[f'{idiom}: bytes']:,.0f} bytes each",
    )
    late, loop = _kept("latency"), _kept("dispatch")
    yield _line(
        "dispatch to readable on a socket, SQLite, idle (`make bench-latency`)",
        f"p50 {late['keyfold p50']:.1f} ms, p99 {late['keyfold p99']:.1f} ms",
        f"one thread that commits and sends: {late['bare p50']:.2f} and {late['bare p99']:.2f} ms",
    )
    across = _kept("backplane")
    yield _line(
        "the same on a socket of another process, PostgreSQL and Redis (`make bench-backplane`)",
        f"p50 {across['keyfold p50']:.1f} ms, p99 {across['keyfold p99']:.1f} ms",
        f"commit, publish, receive, send, by hand: {across['bare p50']:.1f} and {across['bare p99']:.1f} ms",
    )
    yield _line(
        "dispatch to resolved Receipt, no database (`make bench-dispatch`)",
        f"{_rate(loop['keyfold, dispatch to resolved Receipt, no database'])}/s",
        f"the bare loop of `apply` and encoding: {_rate(loop['bare loop: key, apply, encode'])}/s",
    )
