"""From dispatch in one process to a socket of another process, through Redis: ``make bench-backplane``.

One event after the other, each after the previous one has been read; first on idle processes, then while four
threads dispatch to other keys as fast as their commits allow. The other side is the minimum: commit, PUBLISH,
and one thread in the other process that reads its subscription and sends. Both on one PostgreSQL with its
default durability.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import psycopg2
import redis
from crowd import Crowd
from flask import Flask
from harness import environment, postgres
from keyfold.web import Keyfold
from latency import forget, percentiles
from support.counting import Added, Totals
from support.redis_server import RedisServer
from support.serving import serve

Other = Callable[..., None]


def make_app(url: str, redis_url: str) -> tuple[Keyfold, Flask]:
    """Return the extension and the app of one process."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("bench")
    app.config.update(
        KEYFOLD_DATABASE=url, KEYFOLD_REDIS=redis_url, KEYFOLD_TUNING={"heartbeat_seconds": 3600}
    )
    keyfold.init_app(app)
    return keyfold, app


def serve_there(url: str, redis_url: str, port: Any, end: Any) -> None:
    """Run the other process, which has the sockets."""
    keyfold, app = make_app(url, redis_url)
    with serve(app) as site:
        port.put(site.port)
        end.wait()
        with app.app_context():
            keyfold.system.close()


def relay_there(_url: str, redis_url: str, port: Any, _end: Any) -> None:
    """Run the minimal other process: it sends the messages of one channel to one client."""
    subscription = redis.Redis.from_url(redis_url).pubsub()
    subscription.subscribe("bare")
    subscription.get_message(timeout=10)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port.put(server.getsockname()[1])
        client, _ = server.accept()
        for message in subscription.listen():
            if message["data"] == b"end":
                return
            client.sendall(message["data"])


@contextmanager
def another(target: Other, url: str, redis_url: str) -> Iterator[int]:
    """Run another process, and yield its port."""
    context = multiprocessing.get_context("spawn")
    port, end = context.Queue(), context.Event()
    process = context.Process(target=target, args=(url, redis_url, port, end))
    process.start()
    try:
        yield port.get(timeout=30)
    finally:
        end.set()
        process.join(30)


def through_keyfold(url: str, redis_url: str, count: int) -> tuple[list[float], list[float]]:
    """Return the seconds that each delta took, on idle processes and under load."""
    keyfold, app = make_app(url, redis_url)
    with app.app_context(), another(serve_there, url, redis_url) as port:
        bus, ended = keyfold.bus, threading.Event()
        bus.dispatch(Added("a")).result(10)
        crowd = Crowd(port, 1, "/ws/projection/test.totals/a", greeting=True)
        [client] = crowd.sockets

        def measure() -> list[float]:
            taken = []
            for _ in range(count):
                started = time.perf_counter()
                bus.dispatch(Added("a", 0, forget))
                client.recv(4096)
                taken.append(time.perf_counter() - started)
            return taken

        def load(lane: int) -> None:
            while not ended.is_set():
                bus.dispatch(Added(f"other {lane}", 0, forget)).result(10)

        alone = measure()
        threads = [threading.Thread(target=load, args=(lane,)) for lane in range(4)]
        for thread in threads:
            thread.start()
        beside = measure()
        ended.set()
        for thread in threads:
            thread.join()
        crowd.close()
        keyfold.system.close()
    return alone, beside


def by_hand(url: str, redis_url: str, count: int) -> list[float]:
    """Commit, publish, and read from the other process."""
    database, publisher = psycopg2.connect(url), redis.Redis.from_url(redis_url)
    cursor = database.cursor()
    cursor.execute("CREATE TABLE IF NOT EXISTS bare (key text PRIMARY KEY, state jsonb, version bigint)")
    cursor.execute("INSERT INTO bare VALUES ('a', '{}', 0) ON CONFLICT DO NOTHING")
    database.commit()
    with (
        another(relay_there, url, redis_url) as port,
        socket.create_connection(("127.0.0.1", port)) as client,
    ):
        taken = []
        for version in range(count):
            started = time.perf_counter()
            cursor.execute(
                "UPDATE bare SET state = %s, version = %s WHERE key = 'a'", (json.dumps({}), version)
            )
            database.commit()
            publisher.publish("bare", b"x" * 150)
            client.recv(4096)
            taken.append(time.perf_counter() - started)
        publisher.publish("bare", b"end")
    database.close()
    return taken


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment("keyfold", "psycopg2-binary", "redis"))
    alone: list[float] = []
    beside: list[float] = []
    bare: list[float] = []
    server = RedisServer()
    server.start()
    try:
        with postgres() as url:
            for _ in range(options.repetitions):
                one, other = through_keyfold(url, server.url, options.events)
                alone += one
                beside += other
                bare += by_hand(url, server.url, options.events)
    finally:
        server.remove()
    print(f"  keyfold: dispatch to readable, another process   {percentiles('keyfold', alone)}")
    print(f"  the same, beside four threads that dispatch      {percentiles('loaded', beside)}")
    print(f"  one thread each: commit, publish; receive, send  {percentiles('bare', bare)}")


if __name__ == "__main__":
    main()
