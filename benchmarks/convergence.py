"""Clients that lose their connections every 2 seconds: ``make bench-convergence``.

Prints how many of them end equal to their row, and the numbers of snapshots, resumed connections and deltas.
(The other libraries of the table have neither snapshots nor resuming: their clients lose the missed events.)
"""

from __future__ import annotations

import argparse
import json
import random
import threading
import time

from flask import Flask
from harness import environment, sqlite_file
from keyfold.web import Keyfold
from keyfold.web.client import Watch
from support.counting import Added, Total, Totals
from support.serving import serve
from support.tcp_proxy import TcpProxy


class Tally:
    """A client on a thread. It counts snapshots and deltas."""

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.total = self.snapshots = self.deltas = 0
        self.watch = Watch(f"http://127.0.0.1:{port}", "test.totals", key)
        threading.Thread(target=self._follow, daemon=True).start()

    def _follow(self) -> None:
        for change in self.watch:
            self.total = (change.value or {"total": 0})["total"]
            if change.is_snapshot:
                self.snapshots += 1
            else:
                self.deltas += 1


def forget(state: Total) -> None:
    """Keep the state small."""
    state.amounts.clear()


def main() -> None:
    """Print the shares."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--clients", type=int, default=100)
    parser.add_argument("--seconds", type=float, default=20)
    options = parser.parse_args()
    print(environment("keyfold", "websockets"))
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("bench")
    keys = [f"key {n}" for n in range(10)]
    with sqlite_file() as url:
        app.config.update(KEYFOLD_DATABASE=url, KEYFOLD_MAX_SOCKETS_PER_ADDRESS=10_000)
        keyfold.init_app(app)
        with serve(app) as site, app.app_context():
            proxy = TcpProxy(site.port)
            clients = [Tally(proxy.port, keys[n % 10]) for n in range(options.clients)]
            started = cut = time.monotonic()
            events = cuts = 0
            while time.monotonic() < started + options.seconds:
                keyfold.bus.dispatch(Added(random.choice(keys), 1, forget))
                events += 1
                time.sleep(0.002)
                if time.monotonic() > cut + 2:
                    proxy.cut()
                    cuts, cut = cuts + 1, time.monotonic()
            keyfold.system.settle(10)
            totals = {
                key: json.loads(site.request(f"/projection/test.totals/{key.replace(' ', '%20')}")[2])[
                    "state"
                ]["total"]
                for key in keys
            }
            until = time.monotonic() + 10
            while time.monotonic() < until and any(c.total != totals[c.key] for c in clients):
                time.sleep(0.01)
            equal = sum(client.total == totals[client.key] for client in clients)
            sockets = keyfold.system.stats()["sockets"]
            print(f"  {events:,} events, {cuts} cuts of all {options.clients} connections")
            print(f"  equal to the row: {100 * equal / options.clients:.0f} %")
            print(
                f"  snapshots {sum(c.snapshots for c in clients):,}, resumed {sockets['resumed']:,}, "
                f"deltas {sum(c.deltas for c in clients):,}"
            )
            for client in clients:
                client.watch.close()
            proxy.close()
            keyfold.system.close()


if __name__ == "__main__":
    main()
