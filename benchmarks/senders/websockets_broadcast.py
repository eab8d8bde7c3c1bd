"""The ``broadcast`` of the websockets package, as its documentation recommends for many clients."""

from __future__ import annotations

import asyncio
import threading
from typing import Any

from orders import PAYLOAD, serve_orders
from websockets.asyncio.server import broadcast, serve

loop = asyncio.new_event_loop()
clients: set[Any] = set()


async def keep(connection: Any) -> None:
    clients.add(connection)
    await connection.wait_closed()


async def send(rounds: int, burst: int) -> None:
    for _ in range(rounds):
        for _ in range(burst):
            broadcast(clients, PAYLOAD)
        await asyncio.sleep(0)


def fan_out(rounds: int, burst: int) -> None:
    asyncio.run_coroutine_threadsafe(send(rounds, burst), loop).result()


async def start() -> int:
    server = await serve(keep, "127.0.0.1", 0, compression=None, ping_interval=None, backlog=4096)
    return int(next(iter(server.sockets)).getsockname()[1])


port = loop.run_until_complete(start())
threading.Thread(target=loop.run_forever, daemon=True).start()
serve_orders(port, fan_out)
