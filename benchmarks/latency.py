"""The time from dispatch to a readable delta on a socket, on an idle system: ``make bench-latency``.

The other side is the minimum: one thread that writes the row, commits, and sends the frame itself. Both on
SQLite (WAL, synchronous=NORMAL) in a file; a client thread takes the times.
"""

from __future__ import annotations

import argparse
import socket
import sqlite3
import statistics
import time
from tempfile import TemporaryDirectory

from crowd import Crowd
from flask import Flask
from harness import environment, record
from keyfold.web import Keyfold
from support.counting import Added, Total, Totals
from support.serving import serve


def percentiles(figure: str, seconds: list[float]) -> str:
    """Return median and p99 in milliseconds, and record them."""
    ordered = sorted(seconds)
    p50 = record(f"{figure}.p50", statistics.median(ordered) * 1e3)
    p99 = record(f"{figure}.p99", ordered[int(len(ordered) * 0.99)] * 1e3)
    return f"p50 {p50:6.2f} ms   p99 {p99:6.2f} ms"


def forget(state: Total) -> dict[str, int]:
    """Keep the state small: only the time of its way is measured."""
    state.amounts.clear()
    return {"total": state.total}


def through_keyfold(directory: str, count: int) -> list[float]:
    """Dispatch one event after the other, each after the previous one has been read."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("bench")
    app.config["KEYFOLD_DATABASE"] = f"sqlite:///{directory}/keyfold.db"
    keyfold.init_app(app)
    with serve(app) as site, app.app_context():
        bus = keyfold.bus
        bus.dispatch(Added("a")).result(10)
        crowd = Crowd(site.port, 1, "/ws/projection/test.totals/a", greeting=True)
        [client] = crowd.sockets
        taken = []
        for _ in range(count):
            started = time.perf_counter()
            bus.dispatch(Added("a", 0, forget))
            client.recv(4096)
            taken.append(time.perf_counter() - started)
        crowd.close()
        keyfold.system.close()
    return taken


def by_hand(directory: str, count: int) -> list[float]:
    """Write, commit and send."""
    database = sqlite3.connect(f"{directory}/bare.db")
    database.execute("pragma journal_mode = wal")
    database.execute("pragma synchronous = normal")
    database.execute("create table row (key text primary key, state text, version integer)")
    server, client = socket.socketpair()
    taken = []
    for version in range(count):
        started = time.perf_counter()
        database.execute("insert or replace into row values ('a', '{}', ?)", (version,))
        database.commit()
        server.send(b"x" * 150)
        client.recv(4096)
        taken.append(time.perf_counter() - started)
    database.close()
    server.close()
    client.close()
    return taken


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment("keyfold"))
    ours: list[float] = []
    bare: list[float] = []
    for _ in range(options.repetitions):
        with TemporaryDirectory(prefix="keyfold-bench-") as directory:
            ours += through_keyfold(directory, options.events)
            bare += by_hand(directory, options.events)
    print(f"  keyfold: dispatch to readable      {percentiles('keyfold', ours)}")
    print(f"  one thread: commit, send, read     {percentiles('bare', bare)}")


if __name__ == "__main__":
    main()
