"""Two machines, one Redis, one database: the cable between one of the machines and Redis is cut."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing
from functools import partial
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

import pytest
from support.gunicorns import Gunicorn, gunicorn
from support.machines import Machine, can_be_made
from support.parking import DEADLINE
from support.redis_server import RedisServer
from support.serving import Watcher

pytestmark = pytest.mark.skipif(
    not can_be_made(), reason="NETWORKS CAN'T BE MADE HERE: this needs Linux, root and the package iproute2"
)


@pytest.fixture
def far() -> Iterator[Machine]:
    machine = Machine()
    yield machine
    machine.remove()


@pytest.fixture
def redis(far: Machine) -> Iterator[RedisServer]:
    server = RedisServer(far.here)
    server.start()
    yield server
    server.remove()


def until(what: Callable[[], bool]) -> None:
    deadline, tick = monotonic() + DEADLINE, Event()
    while not what():
        assert monotonic() < deadline
        tick.wait(0.05)


def read_to(watcher: Watcher, version: int) -> list[str]:
    """Read until the version is reached, and return the kinds of the frames."""
    kinds = []
    while watcher.position is None or watcher.position[1] < version:
        frame = watcher.next()
        kinds.append(frame.get("reason", frame["type"]))
    assert watcher.position[1] == version
    return kinds


def test_the_cable_to_redis_is_cut_and_mended(
    far: Machine, redis: RedisServer, file_url: str, tmp_path: Path
) -> None:
    """Each machine works alone; after the repair each gets the missed commits, without any new write."""

    def serve(name: str, address: str, **options: Any) -> Gunicorn:
        config = {"KEYFOLD_REDIS": redis.url_at(address), "KEYFOLD_TUNING": {"heartbeat_seconds": 3600}}
        (tmp_path / name).mkdir()
        return stack.enter_context(
            gunicorn(
                tmp_path / name,
                "--threads",
                "4",
                DATABASE=file_url,
                CONFIG=json.dumps(config),
                **options,
            )
        )

    def backplane() -> dict[str, Any]:
        facts: dict[str, Any] = json.loads(far.run(lambda: there.site.request("/facts")[2]))
        return facts["sockets"]["backplane"]  # type: ignore[no-any-return]

    with ExitStack() as stack:
        here = serve("here", "127.0.0.1")
        there = serve("there", far.here, prefix=far.command)
        near = [stack.enter_context(closing(here.site.watch("test.totals", key))) for key in "ab"]
        distant = [
            stack.enter_context(closing(far.run(partial(there.site.watch, "test.totals", key))))
            for key in "ab"
        ]
        for watcher in (*near, *distant):
            assert watcher.next()["version"] == 0
        for key in "ab":
            here.site.post(f"/add/{key}")
            far.run(partial(there.site.post, f"/add/{key}"))
        for watcher in (*near, *distant):
            assert read_to(watcher, 2) == ["delta", "delta"]
        far.cut()
        here.site.post("/add/a")
        far.run(lambda: there.site.post("/add/b"))
        assert read_to(near[0], 3) == ["delta"]
        assert read_to(distant[1], 3) == ["delta"]
        until(lambda: bool(backplane()["trouble"]))
        dropped = backplane()["dropped"]
        far.run(lambda: there.site.post("/add/b"))
        assert read_to(distant[1], 4) == ["delta"]
        until(lambda: backplane()["dropped"] > dropped)
        far.mend()
        # TCP may still deliver packets that were on their way; later ones are lost.
        read_to(distant[0], 3)
        assert read_to(near[1], 4)[-1] == "gap"
        until(lambda: not backplane()["trouble"])
        here.site.post("/add/a")
        assert read_to(distant[0], 4)[-1] == "delta"
