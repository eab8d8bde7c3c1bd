"""gunicorn's workers, a real database and a real Redis: every socket gets the commits of every worker."""

from __future__ import annotations

import json
import signal
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import ExitStack, closing
from pathlib import Path

import psutil
import pytest
from keyfold.store import Position
from keyfold.web.client import Watch
from support.gunicorns import Gunicorn, gunicorn
from support.parking import DEADLINE
from support.postgres import PostgresServer
from support.redis_server import RedisServer
from support.serving import Watcher

KEYS = 4
POSTS = 40


def post_all(server: Gunicorn, between: Callable[[], object] = lambda: None) -> int:
    """Post from as many threads as there are keys, to all of them; return the confirmed posts per key."""
    confirmed = [0] * KEYS
    lock = threading.Lock()

    def post(offset: int) -> None:
        for number in range(POSTS):
            key = (number + offset) % KEYS
            server.site.post(f"/add/{key}")
            with lock:
                confirmed[key] += 1

    threads = [threading.Thread(target=post, args=(offset,)) for offset in range(KEYS)]
    for thread in threads:
        thread.start()
    between()
    for thread in threads:
        thread.join()
    assert len(set(confirmed)) == 1
    return confirmed[0]


def last_version(watcher: Watcher, version: int) -> list[str]:
    """Read until the version is reached, and return the message types; the watcher checks for gaps."""
    kinds = []
    while True:
        frame = watcher.next()
        kinds.append(frame.get("reason", frame["type"]))
        if frame["version"] >= version:
            assert frame["version"] == version
            return kinds


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_every_socket_of_four_workers_sees_every_version(
    database_url: str, redis_server: RedisServer, tmp_path: Path, *, preload: bool
) -> None:
    """Four workers write the same keys; on each worker, the versions of a socket are contiguous."""
    config = json.dumps(
        {
            "KEYFOLD_REDIS": redis_server.url,
            "KEYFOLD_TUNING": {"heartbeat_seconds": 3600, "redis_patience_seconds": 20},
        }
    )
    options = ["-c", "python:keyfold.web.gunicorn", "--threads", "4", *["--preload"] * preload]
    with (
        gunicorn(tmp_path, *options, workers=4, DATABASE=database_url, CONFIG=config) as server,
        ExitStack() as stack,
    ):
        watchers = [
            stack.enter_context(closing(server.site.watch("test.totals", str(key))))
            for key in range(KEYS)
            for _ in range(4)
        ]
        for watcher in watchers:
            assert watcher.next()["version"] == 0
        total = post_all(server)
        assert total == POSTS
        for watcher in watchers:
            assert set(last_version(watcher, total)) == {"delta"}


def follow(server: Gunicorn, key: str, version: int) -> Position | None:
    """Watch a key until it is at version, over as many connections as needed. The client checks the order."""
    with Watch(f"http://127.0.0.1:{server.site.port}", "test.totals", key) as watch:
        while (change := watch.next(DEADLINE)) is not None and change.position.version < version:
            pass
        return watch.position


def test_workers_are_recycled(database_url: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """Each worker ends after some requests: every post is answered, and every client resumes its position."""
    config = json.dumps({"KEYFOLD_REDIS": redis_server.url, "KEYFOLD_TUNING": {"heartbeat_seconds": 3600}})
    options = ["-c", "python:keyfold.web.gunicorn", "--threads", "4", "--max-requests", "12"]
    with (
        gunicorn(tmp_path, *options, workers=4, DATABASE=database_url, CONFIG=config) as server,
        ThreadPoolExecutor(2 * KEYS) as pool,
    ):
        clients = [pool.submit(follow, server, str(key), POSTS) for key in range(KEYS) for _ in range(2)]
        assert post_all(server) == POSTS
        for client in clients:
            position = client.result(2 * DEADLINE)
            assert position is not None
            assert position.version == POSTS
        assert sum("Booting worker" in line for line in server.log) >= 8


def test_redis_goes_and_comes_back_under_load(
    database_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Every post is confirmed all the same, and every socket ends at its row."""
    config = json.dumps({"KEYFOLD_REDIS": redis_server.url, "KEYFOLD_TUNING": {"heartbeat_seconds": 3600}})
    with (
        gunicorn(tmp_path, "--threads", "4", workers=2, DATABASE=database_url, CONFIG=config) as server,
        ExitStack() as stack,
    ):
        watchers = [
            stack.enter_context(closing(server.site.watch("test.totals", str(key))))
            for key in range(KEYS)
            for _ in range(3)
        ]

        def restart() -> None:
            redis_server.stop()
            server.site.post("/add/other")
            redis_server.start()

        total = post_all(server, restart)
        for watcher in watchers:
            last_version(watcher, total)


def test_a_worker_is_killed(database_url: str, redis_server: RedisServer, tmp_path: Path) -> None:
    """Sockets of the other workers continue undisturbed, also with the commits of its successor."""
    config = json.dumps({"KEYFOLD_REDIS": redis_server.url, "KEYFOLD_TUNING": {"heartbeat_seconds": 3600}})
    with (
        gunicorn(tmp_path, "--threads", "4", workers=2, DATABASE=database_url, CONFIG=config) as server,
        ExitStack() as stack,
    ):
        watchers = [stack.enter_context(closing(server.site.watch("test.totals", "a"))) for _ in range(8)]
        workers = psutil.Process(server.process.pid).children()
        assert len(workers) == 2
        held = {
            worker: {c.raddr.port for c in worker.net_connections("tcp") if c.raddr} for worker in workers
        }
        victim = min(workers, key=lambda worker: len(held[worker]))
        survivors = [w for w in watchers if w.raw.getsockname()[1] not in held[victim]]
        assert survivors
        victim.send_signal(signal.SIGKILL)
        victim.wait(20)
        for _ in range(50):
            server.site.post("/add/a")
        for watcher in survivors:
            last_version(watcher, 50)


def test_postgresql_is_killed_and_a_worker_frozen_under_load(
    postgres_server: PostgresServer, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Every post is confirmed all the same, the frozen one's when it goes on; every socket ends at its row.

    All workers have worked before: one that has yet to start refuses its first event while there is no
    database.
    """
    config = json.dumps({"KEYFOLD_REDIS": redis_server.url, "KEYFOLD_TUNING": {"heartbeat_seconds": 3600}})
    with (
        gunicorn(
            tmp_path, "--threads", "4", workers=4, DATABASE=postgres_server.url, CONFIG=config
        ) as server,
        ExitStack() as stack,
    ):
        watchers = [
            stack.enter_context(closing(server.site.watch("test.totals", str(key))))
            for key in range(KEYS)
            for _ in range(4)
        ]

        pids = set[int]()
        while len(pids) < 4:
            pids.add(json.loads(server.site.post("/add/warm"))["pid"])

        def disturb() -> None:
            server.site.post("/add/other")
            frozen = psutil.Process(server.process.pid).children()[0]
            frozen.suspend()
            postgres_server.kill()
            postgres_server.start()
            frozen.resume()

        total = post_all(server, disturb)
        assert total == POSTS
        for watcher in watchers:
            last_version(watcher, total)
