"""Clients that others wrote: each connects, gets a snapshot and deltas, hangs up, and resumes."""

from __future__ import annotations

import asyncio
import json
import os
import queue
import subprocess
import threading
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import aiohttp
import pytest
import websocket
import websockets.asyncio.client
import websockets.sync.client
from support.gunicorns import Gunicorn, gunicorn
from support.parking import DEADLINE

ROOT = Path(__file__).parents[2]
MODULES = ROOT / ".venv" / "node" / "node_modules"

Next = Callable[[], dict[str, Any]]


@pytest.fixture(scope="module")
def server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Gunicorn]:
    """One gunicorn for all."""
    directory = tmp_path_factory.mktemp("clients")
    with gunicorn(directory, "--threads", "4", DATABASE=f"sqlite:///{directory}/shop.db") as server:
        yield server


@contextmanager
def websocket_client(url: str) -> Iterator[Next]:
    connection = websocket.create_connection(url, timeout=DEADLINE)
    yield lambda: json.loads(connection.recv())
    connection.close()


@contextmanager
def websockets_sync(url: str) -> Iterator[Next]:
    with websockets.sync.client.connect(url) as connection:
        yield lambda: json.loads(connection.recv(timeout=DEADLINE))


@asynccontextmanager
async def _websockets_asyncio(url: str) -> AsyncIterator[Callable[[], Any]]:
    async with websockets.asyncio.client.connect(url) as connection:
        yield connection.recv


@asynccontextmanager
async def _aiohttp(url: str) -> AsyncIterator[Callable[[], Any]]:
    async with aiohttp.ClientSession() as session, session.ws_connect(url, compress=15) as connection:
        yield connection.receive_str


def in_a_loop(opened: Any) -> Any:
    """Make an ordinary client of one for asyncio."""

    @contextmanager
    def client(url: str) -> Iterator[Next]:
        with asyncio.Runner() as runner:
            manager = opened(url)
            receive = runner.run(manager.__aenter__())

            async def receive_soon() -> Any:
                return await asyncio.wait_for(receive(), DEADLINE)

            yield lambda: json.loads(runner.run(receive_soon()))
            runner.run(manager.__aexit__(None, None, None))

    return client


@contextmanager
def node(kind: str, url: str, *more: str) -> Iterator[Next]:
    """A client of npm in a process of its own, which prints each frame."""
    process = subprocess.Popen(
        ["node", str(Path(__file__).with_name("clients.mjs")), kind, url, *more],
        env={**os.environ, "NODE_MODULES": f"{MODULES}/"}, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip
    lines: queue.Queue[str] = queue.Queue()

    def follow() -> None:
        assert process.stdout is not None
        for line in process.stdout:
            lines.put(line)

    reader = threading.Thread(target=follow, daemon=True)
    reader.start()
    try:
        yield lambda: json.loads(lines.get(timeout=DEADLINE))
        assert process.stdin is not None
        process.stdin.close()
        assert process.wait(DEADLINE) == 0
    finally:
        process.kill()
        process.wait()
        reader.join(DEADLINE)
        for pipe in (process.stdin, process.stdout, process.stderr):
            assert pipe is not None
            pipe.close()


def add(server: Gunicorn, key: str) -> None:
    """Commit one more."""
    server.site.post(f"/add/{key}")


@pytest.mark.parametrize(
    "client",
    [
        pytest.param(websocket_client, id="websocket-client"),
        pytest.param(websockets_sync, id="websockets-sync"),
        pytest.param(in_a_loop(_websockets_asyncio), id="websockets-asyncio"),
        pytest.param(in_a_loop(_aiohttp), id="aiohttp"),
        pytest.param(lambda url: node("ws", url), id="node-ws"),
    ],
)
def test_a_websocket_client_of_others(server: Gunicorn, client: Any, request: pytest.FixtureRequest) -> None:
    """Most of them offer permessage-deflate; none is given it."""
    key = request.node.callspec.id
    url = f"ws://127.0.0.1:{server.site.port}/ws/projection/test.totals/{key}"
    with client(url) as next_frame:
        assert next_frame()["type"] == "snapshot"
        add(server, key)
        add(server, key)
        first, second = next_frame(), next_frame()
        assert [first["prev"], first["version"], second["prev"], second["version"]] == [0, 1, 1, 2]
    add(server, key)
    with client(f"{url}?since={second['epoch']}:1") as next_frame:
        frames = [next_frame() for _ in range(3)]
        assert [(frame["type"], frame["version"]) for frame in frames] == [
            ("resumed", 3), ("delta", 2), ("delta", 3),
        ]  # fmt: skip


def test_the_eventsource_of_npm(server: Gunicorn) -> None:
    """Named events, ids that resume."""
    url = f"http://127.0.0.1:{server.site.port}/sse/projection/test.totals/stream"
    with node("sse", url) as next_frame:
        assert next_frame()["type"] == "snapshot"
        add(server, "stream")
        frame = next_frame()
        assert (frame["type"], frame["version"], frame["id"]) == ("delta", 1, f"{frame['epoch']}:1")
    add(server, "stream")
    with node("sse", url, frame["id"]) as next_frame:
        assert [next_frame()["type"], next_frame()["version"]] == ["resumed", 2]


def test_node_is_told_of_the_end(server: Gunicorn) -> None:
    """A close of ours is a close to them."""
    with node("ws", f"ws://127.0.0.1:{server.site.port}/ws/projection/test.totals/end") as next_frame:
        next_frame()
        assert server.stop() == 0
        assert next_frame() == {"type": "close", "code": 1001}
