"""Promise 8 over real sockets: writers, cuts, freezes, kills, rebuilds, in a seeded order that is printed."""

from __future__ import annotations

import json
import os
import random
import signal
import threading
import urllib.error
from collections.abc import Iterator
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.store import Position
from keyfold.web import Keyfold
from keyfold.web import client as client_module
from keyfold.web.client import Watch
from support.counting import Added, Totals
from support.gunicorns import gunicorn
from support.parking import DEADLINE
from support.serving import serve
from support.tcp_proxy import TcpProxy

SEED = int(os.environ.get("CHAOS_SEED", str(random.randrange(10**6))))
KEYS = ["a", "b/c", "d e"]
CONVERGE_SECONDS = 60.0


@pytest.fixture(autouse=True)
def _quick_to_come_back(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(client_module, "_FIRST_PAUSE_SECONDS", 0.005)
    monkeypatch.setattr(client_module, "_MAX_PAUSE_SECONDS", 0.2)


class Follower:
    """A client on a thread: it folds the changes, and checks that they are contiguous."""

    def __init__(self, port: int, key: str) -> None:
        self.key = key
        self.watch = Watch(f"http://127.0.0.1:{port}", "test.totals", key)
        self.total: int | None = None
        self.position: Position | None = None
        self.snapshots = self.deltas = 0
        self.error: BaseException | None = None
        self._moved = threading.Condition()
        self._thread = threading.Thread(target=self._follow, daemon=True)
        self._thread.start()

    def _follow(self) -> None:
        try:
            for change in self.watch:
                with self._moved:
                    if change.is_snapshot:
                        self.snapshots += 1
                        self.total = (change.value or {"total": 0})["total"]
                    else:
                        self.deltas += 1
                        before = self.position
                        assert before is not None
                        assert before.version == change.position.version - 1
                        assert before.epoch == change.position.epoch or before == ("", 0)
                        self.total = change.value["total"]
                    self.position = change.position
                    self._moved.notify_all()
        except BaseException as error:
            self.error = error
            with self._moved:
                self._moved.notify_all()

    def wait_for(self, position: Position) -> None:
        """Return when it stands there."""
        with self._moved:
            there = self._moved.wait_for(
                lambda: self.error is not None or self.position == position, CONVERGE_SECONDS
            )
        if self.error is not None:
            raise self.error
        assert there, f"seed {SEED}: {self.key} stands at {self.position}, the row at {position}"

    def close(self) -> None:
        """End it."""
        self.watch.close()
        self._thread.join(DEADLINE)
        assert not self._thread.is_alive()


@pytest.fixture
def app(database_url: str) -> Iterator[Flask]:
    """An app with small rings and send buffers, so that every recovery path is taken."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("test")
    app.config.update(
        KEYFOLD_DATABASE=database_url, KEYFOLD_DISPATCH_TIMEOUT=DEADLINE,
        KEYFOLD_TUNING={"ring_frames": 8, "outbox_bytes": 4096, "stall_seconds": 1, "heartbeat_seconds": 0.5},
    )  # fmt: skip
    keyfold.init_app(app)
    yield app
    with app.app_context():
        keyfold.system.close()


def test_whatever_happens_every_client_ends_equal_to_the_row(app: Flask) -> None:
    """Cut, refused, frozen, dropped by the server, behind, rebuilt and wiped, in any order."""
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    chance = random.Random(SEED)
    system: ProjectionSystem = app.extensions["keyfold"].system
    hub = app.extensions["keyfold"].hub
    totals = system.runtime("test.totals")
    with serve(app) as site, ExitStack() as stack:
        proxy = TcpProxy(site.port)
        stack.callback(proxy.close)
        followers = [Follower(proxy.port, chance.choice(KEYS)) for _ in range(12)]
        for follower in followers:
            stack.callback(follower.close)

        def write() -> None:
            receipts = [
                system.bus.dispatch(Added(chance.choice(KEYS), chance.randrange(9)))
                for _ in range(chance.choice([1, 3, 10, 60]))
            ]
            for receipt in receipts:
                receipt.result(DEADLINE)

        def drop_some() -> None:
            for connection in hub.connections:
                if chance.random() < 0.3:
                    hub.reactor.call(connection.end)

        def freeze() -> None:
            proxy.freeze()
            write()
            write()
            proxy.thaw()

        def refuse() -> None:
            proxy.refuse()
            write()
            proxy.accept()

        def rebuild() -> None:
            key = chance.choice(KEYS)
            totals.rebuild(key, [Added(key, 5) for _ in range(chance.randrange(3))])

        actions = [write, write, write, write, proxy.cut, drop_some, freeze, refuse, rebuild]
        for _ in range(120):
            chance.choice(actions)()
        assert system.settle(DEADLINE)
        for follower in followers:
            row = system.read_row("test.totals", follower.key)
            assert row is not None
            follower.wait_for(Position(row.epoch, row.version))
            assert follower.total == (0 if row.is_tombstone else json.loads(row.state)["total"])
        assert sum(follower.snapshots for follower in followers) > len(followers)
        assert sum(follower.deltas for follower in followers) > 0


def test_killed_workers_leave_no_client_behind(database_url: str, tmp_path: Path) -> None:
    """kill -9 of gunicorn's worker, again and again, while writers write: every client converges."""
    chance = random.Random(SEED)
    print(f"CHAOS_SEED={SEED}")  # noqa: T201
    with gunicorn(tmp_path, "--threads", "8", DATABASE=database_url) as server, ExitStack() as stack:
        followers = [Follower(server.site.port, key) for key in KEYS for _ in range(4)]
        for follower in followers:
            stack.callback(follower.close)

        def add(key: str) -> dict[str, Any] | None:
            try:
                answer: dict[str, Any] = json.loads(server.site.post(f"/add/{key.replace(' ', '%20')}"))
            except (urllib.error.URLError, ConnectionError, OSError):
                return None
            return answer

        kills = 0
        keys = [key for key in KEYS if "/" not in key]
        while kills < 5:
            answer = add(chance.choice(keys))
            if answer and chance.random() < 0.1:
                os.kill(answer["pid"], signal.SIGKILL)
                kills += 1
        last = {key: add(key) for key in keys}
        while not all(last.values()):
            last = {key: answer or add(key) for key, answer in last.items()}
        for follower in followers:
            _, _, text = server.site.request(
                f"/projection/test.totals/{follower.key.replace(' ', '%20').replace('/', '%2F')}"
            )
            row = json.loads(text)
            if "epoch" in row:
                follower.wait_for(Position(row["epoch"], row["version"]))
                assert follower.total == row["state"]["total"]
            else:
                follower.wait_for(Position("", 0))
