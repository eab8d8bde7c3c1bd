"""The effect of one frozen client on 1,000 others: ``make bench-frozen_client``.

Deltas of 4 kB are sent at a steady pace to 1,000 sockets, alternately with and without a frozen client. The
time is taken from publish until the last of the other clients has read the delta. The frozen client is thawed
at the end, and its state is compared.
"""

from __future__ import annotations

import argparse
import json
import socket
import statistics
import time

from crowd import Crowd, raise_limits
from flask import Flask
from harness import environment
from keyfold.web import Keyfold
from support.counting import Added, Total, Totals
from support.serving import Site, serve

FILLER = "x" * 4_000


def big(state: Total) -> dict[str, object]:
    """Keep the state small and make the delta large."""
    state.amounts.clear()
    return {"total": state.total, "filler": FILLER}


def rounds_of(keyfold: Keyfold, crowd: Crowd, count: int) -> list[float]:
    """Return the seconds that each delta took to the last client of the crowd."""
    taken = []
    for _ in range(count):
        started = time.perf_counter()
        keyfold.bus.dispatch(Added("a", 1, big))
        size = len(crowd.sockets[0].recv(1 << 16))
        crowd.drain(size * (len(crowd.sockets) - 1))
        taken.append(time.perf_counter() - started)
    return taken


def line(name: str, seconds: list[float]) -> str:
    """Return median and p99 in milliseconds."""
    ordered = sorted(seconds)
    p99 = ordered[int(len(ordered) * 0.99)]
    return f"  {name:<20} p50 {statistics.median(ordered) * 1e3:6.1f} ms   p99 {p99 * 1e3:6.1f} ms"


def thawed(site: Site, frozen: socket.socket) -> bool:
    """Read all messages of the frozen client, and return whether it ends at the row."""
    row = json.loads(site.request("/projection/test.totals/a")[2])
    frozen.settimeout(5)
    last = b""
    wanted = b'"version":%d' % row["version"]
    while wanted not in last:
        data = frozen.recv(1 << 16)
        if not data:
            return False
        last = last[-100:] + data
    return True


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--deltas", type=int, default=50)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    raise_limits()
    print(environment("keyfold"))
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("bench")
    app.config.update(
        KEYFOLD_DATABASE="sqlite://", KEYFOLD_MAX_SOCKETS_PER_ADDRESS=100_000,
        KEYFOLD_TUNING={"stall_seconds": 600, "heartbeat_seconds": 3600, "ping_seconds": 3600},
    )  # fmt: skip
    keyfold.init_app(app)
    hub = app.extensions["keyfold"].hub
    path = "/ws/projection/test.totals/a"
    with serve(app) as site, app.app_context():
        keyfold.bus.dispatch(Added("a", 1, big)).result(10)
        crowd = Crowd(site.port, options.sockets, path, greeting=True)
        without: list[float] = []
        beside: list[float] = []
        rounds_of(keyfold, crowd, 10)
        for _ in range(options.repetitions):
            without += rounds_of(keyfold, crowd, options.deltas)
            frozen = Crowd(site.port, 1, path, greeting=True, receive_buffer=4096)
            beside += rounds_of(keyfold, crowd, options.deltas * 4)[-options.deltas :]
            waiting = max(connection.waiting_bytes for connection in hub.connections)
            slow, same = hub.stats()["slow"], thawed(site, frozen.sockets[0])
            print(
                f"  frozen: overflowed {slow} times so far, {waiting:,} bytes wait for it; "
                f"thawed, it ends at the row: {same}"
            )
            frozen.close()
        print(line("without", without))
        print(line("beside a frozen one", beside))
        crowd.close()
        keyfold.system.close()


if __name__ == "__main__":
    main()
