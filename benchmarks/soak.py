"""Ten minutes of random faults, from a seed: ``make soak``, or ``make soak MINUTES=2 SEED=7``.

Four gunicorn workers, a real PostgreSQL and a real Redis; 500 sockets on 20 keys, eight threads that post.
Meanwhile workers are killed and frozen, Redis is killed, frozen and started empty, PostgreSQL is killed, and
rows are set back to a copy of some seconds before, as by a restored backup. One worker, the oldest, is
spared, to measure its memory. At the end every client has to equal the row, and each confirmed version has to
be one event in it. Rows that are set back lose confirmed events, so they have their own keys, and only the
clients are compared with them. Deltas add up, so a client that missed such a loss would stay wrong.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import random
import statistics
import sys
import threading
import time
import urllib.error
import urllib.request
from collections import Counter
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import psutil
from crowd import raise_limits
from harness import environment
from keyfold.actors import Projection, ProjectionSystem
from keyfold.store import SnapshotStore
from support.counting import Added, Total
from support.damage import Copy, copy_row, restore
from support.gunicorns import Gunicorn
from support.postgres import PostgresServer
from support.redis_server import RedisServer
from websockets.asyncio.client import ClientConnection, connect
from websockets.exceptions import ConnectionClosed, InvalidHandshake

SET_BACK = [f"set back {number}" for number in range(5)]
KEYS = [f"key {number}" for number in range(15)] + SET_BACK
SOCKETS, WORKERS, POSTERS = 500, 4, 8
CONVERGE_SECONDS = 120.0

APP = """
import json, os, random
from flask import Flask
from keyfold.web import Keyfold
from soak import Sums
from support.counting import Added
keyfold = Keyfold()
keyfold.register(Sums())
app = Flask(__name__)
app.config.update(json.loads(os.environ["CONFIG"]))
keyfold.init_app(app)
@app.post("/add/<key>")
def add(key):
    amount = random.randrange(1000) if key.startswith("set back") else 1
    [applied] = keyfold.bus.dispatch(Added(key, amount)).result(timeout=20)
    return {"version": applied.version}
"""


class Sums(Projection[Added, Total]):
    """A state of constant size, so the memory of the process should be constant too."""

    name = "soak"
    public = True

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Total, event: Added) -> dict[str, int]:
        state.total += event.amount
        return {"added": event.amount}


@dataclass
class Client:
    """One client that reconnects and folds the messages it receives."""

    key: str
    epoch: str = ""
    version: int = -1
    total: int = -1
    messages: int = 0
    connections: int = 0

    async def follow(self, port: int, chance: random.Random) -> None:
        """Watch the key until it is cancelled."""
        path = f"ws://127.0.0.1:{port}/ws/projection/soak/{self.key.replace(' ', '%20')}"
        while True:
            since = f"?since={self.epoch}:{self.version}" if self.version >= 0 else ""
            with suppress(ConnectionClosed, InvalidHandshake, OSError, TimeoutError):
                async with connect(
                    path + since, compression=None, ping_interval=10, ping_timeout=20
                ) as socket:
                    self.connections += 1
                    async for text in socket:
                        await self._take(json.loads(text), socket)
            await asyncio.sleep(chance.uniform(0.1, 2.0))

    async def _take(self, message: dict[str, Any], socket: ClientConnection) -> None:
        self.messages += 1
        here = (self.epoch, self.version)
        if message["type"] == "snapshot":
            self.epoch, self.version = message["epoch"], message["version"]
            self.total = (message["state"] or {"total": 0})["total"]
        elif message["type"] == "delta":
            if here != (message["epoch"], message["prev"]) and here != ("", 0):
                await socket.send('{"type":"resync"}')
                return
            self.epoch, self.version = message["epoch"], message["version"]
            self.total += message["data"]["added"]
        elif message["type"] == "heartbeat" and here != (message["epoch"], message["version"]):
            await socket.send('{"type":"resync"}')


class Clients:
    """All sockets, on one thread with an event loop."""

    def __init__(self, port: int, seed: int) -> None:
        self.all = [Client(KEYS[number % len(KEYS)]) for number in range(SOCKETS)]
        self._port, self._chance = port, random.Random(seed)
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=self._loop.run_until_complete, args=(self._run(),))
        self._thread.start()

    async def _run(self) -> None:
        self._main = asyncio.current_task()
        with suppress(asyncio.CancelledError):
            await asyncio.gather(*(client.follow(self._port, self._chance) for client in self.all))

    def close(self) -> None:
        """Hang up."""
        self._loop.call_soon_threadsafe(self._main.cancel)  # type: ignore[union-attr]
        self._thread.join(30)
        self._loop.close()


class Posters:
    """Threads that post as browsers would: each waits for its response."""

    def __init__(self, port: int, seed: int) -> None:
        self.confirmed: dict[str, list[int]] = {key: [] for key in KEYS}
        self.unsure: Counter[str] = Counter()
        self._port = port
        self.stopping = threading.Event()
        self._threads = [
            threading.Thread(target=self._post, args=(seed + number,)) for number in range(POSTERS)
        ]
        for thread in self._threads:
            thread.start()

    def _post(self, seed: int) -> None:
        chance = random.Random(seed)
        while not self.stopping.wait(chance.uniform(0.0, 0.05)):
            key = chance.choice(KEYS)
            url = f"http://127.0.0.1:{self._port}/add/{key.replace(' ', '%20')}"
            try:
                with urllib.request.urlopen(urllib.request.Request(url, method="POST"), timeout=30) as answer:
                    self.confirmed[key].append(json.load(answer)["version"])
            except (OSError, urllib.error.URLError, ValueError):
                self.unsure[key] += 1  # the event may be committed, and only the response lost

    def close(self) -> None:
        """Wait for the pending responses."""
        self.stopping.set()
        for thread in self._threads:
            thread.join(60)


class Trouble:
    """The faults, one after the other, in an order that depends on the seed."""

    def __init__(self, server: Gunicorn, redis: RedisServer, postgres: PostgresServer, seed: int) -> None:
        self._chance = random.Random(seed)
        self._server, self._redis, self._postgres = server, redis, postgres
        self.oldest = self._workers()[0]
        self.done: Counter[str] = Counter()
        self._copies: dict[str, Copy] = {}

    def _workers(self) -> list[psutil.Process]:
        return sorted(
            psutil.Process(self._server.process.pid).children(), key=lambda worker: worker.create_time()
        )

    def _victim(self) -> psutil.Process:
        return self._chance.choice([worker for worker in self._workers() if worker != self.oldest])

    def one(self, until: float) -> None:
        """Wait a while, then cause one fault and repair it before the end."""
        time.sleep(self._chance.uniform(1.0, 4.0))
        seconds = min(self._chance.uniform(0.5, 8.0), max(0.0, until - time.monotonic()))
        names = [
            "a worker is killed",
            "a worker freezes",
            "Redis is killed",
            "Redis freezes",
            "PostgreSQL is killed",
            "a row is set back",
        ]
        name = self._chance.choices(names, weights=[4, 4, 2, 2, 1, 4])[0]
        self.done[name] += 1
        if name == names[0]:
            self._victim().kill()
        elif name == names[1]:
            victim = self._victim()
            victim.suspend()
            time.sleep(seconds)
            victim.resume()
        elif name == names[2]:
            self._redis.stop()
            time.sleep(seconds)
            self._redis.start()
        elif name == names[3]:
            self._redis.freeze()
            time.sleep(seconds)
            self._redis.thaw()
        elif name == names[4]:
            self._postgres.kill()
            self._postgres.start()
        else:
            self.set_back()

    def set_back(self) -> None:
        """Restore older copies of some rows, and copy others for the next time."""
        store = SnapshotStore(self._postgres.url)
        for key in SET_BACK:
            old = self._copies.get(key)
            if old is None or self._chance.random() < 0.5:
                copy = copy_row(store, key, name=Sums.name)
                if copy.values:
                    self._copies[key] = copy
            else:
                restore(store, old)
        store.database.close()


def megabytes(process: psutil.Process) -> float:
    """Return the memory that a process does not share, in megabytes."""
    return float(process.memory_full_info().uss / 1e6)


def converge(url: str, clients: Clients, posters: Posters) -> None:
    """Wait until every client equals its row, and check the rows against the confirmed events."""
    with ProjectionSystem(url) as system:
        sums = system.register(Sums())
        until = time.monotonic() + CONVERGE_SECONDS
        while True:
            rows = {key: snapshot for key in KEYS if (snapshot := sums.snapshot(key)) is not None}
            behind = [
                client
                for client in clients.all
                if (client.epoch, client.version) != (rows[client.key].epoch, rows[client.key].version)
            ]
            if not behind or time.monotonic() > until:
                break
            time.sleep(0.2)
        assert not behind, f"{len(behind)} clients are not where their row is, the first: {behind[0]}"
        for client in clients.all:
            assert client.total == rows[client.key].state.total, client
        for key, row in rows.items():
            if key in SET_BACK:
                continue
            assert row.version == row.state.total, f"{key}: {row}"
            versions = posters.confirmed[key]
            assert len(set(versions)) == len(versions), f"{key}: a version was given twice"
            assert max(versions) <= row.version, f"{key}: a confirmed version is not in the row"
            assert len(versions) <= row.version <= len(versions) + posters.unsure[key], f"{key}: {row}"


def main() -> None:
    """Run, print one line per minute, and check."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=10.0)
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    options = parser.parse_args()
    raise_limits()
    print(environment("keyfold", "gunicorn", "redis", "psycopg2-binary"), flush=True)
    print(
        f"seed {options.seed}: {options.minutes:g} minutes, {WORKERS} workers, "
        f"{SOCKETS} sockets on {len(KEYS)} keys, {POSTERS} posters"
    )
    with ExitStack() as stack:
        directory = Path(stack.enter_context(TemporaryDirectory(prefix="keyfold-soak-")))
        postgres, redis = PostgresServer(), RedisServer()
        stack.callback(postgres.remove)
        stack.callback(redis.remove)
        postgres.start()
        redis.start()
        config = {
            "KEYFOLD_DATABASE": postgres.url,
            "KEYFOLD_REDIS": redis.url,
            "KEYFOLD_MAX_SOCKETS_PER_ADDRESS": SOCKETS * 2,
        }
        server = Gunicorn(
            directory, "-c", "python:keyfold.web.gunicorn", "--threads", "8", workers=WORKERS, source=APP,
            CONFIG=json.dumps(config), PYTHONPATH=os.pathsep.join([str(Path(__file__).parent), *sys.path]),
        )  # fmt: skip
        stack.callback(server.remove)
        clients = Clients(server.site.port, options.seed)
        stack.callback(clients.close)
        posters = Posters(server.site.port, options.seed)
        stack.callback(posters.close)
        trouble = Trouble(server, redis, postgres, options.seed)
        started = time.monotonic()
        until = started + options.minutes * 60
        memory: list[float] = []
        while time.monotonic() < until:
            trouble.one(until)
            minute = int((time.monotonic() - started) // 60)
            if minute >= len(memory):
                memory.append(megabytes(trouble.oldest))
                confirmed, unsure = sum(map(len, posters.confirmed.values())), posters.unsure.total()
                messages = sum(client.messages for client in clients.all)
                print(
                    f"  minute {minute:>2}: {confirmed:>7,} events confirmed, {unsure:>4,} unsure; "
                    f"{messages:>9,} messages read; "
                    f"memory of the oldest worker {memory[-1]:.1f} MB",
                    flush=True,
                )
        posters.close()
        trouble.set_back()  # and no later event would show it
        converge(postgres.url, clients, posters)
        memory.append(megabytes(trouble.oldest))
        print(f"  memory of the oldest worker at the end {memory[-1]:.1f} MB")
        print(f"  {', '.join(f'{name}: {count} times' for name, count in sorted(trouble.done.items()))}")
        again = statistics.median(client.connections for client in clients.all)
        print(
            f"  connections per client: median {again:.0f}, "
            f"maximum {max(client.connections for client in clients.all)}"
        )
        confirmed, unsure = sum(map(len, posters.confirmed.values())), posters.unsure.total()
        print(
            f"  {confirmed:,} events were confirmed, {unsure:,} had no response: "
            "in the rows that were not set back, the former are "
            "once each, the latter once or not at all"
        )
        print(f"  all {SOCKETS} clients equal their rows")
        assert server.stop() == 0


if __name__ == "__main__":
    main()
