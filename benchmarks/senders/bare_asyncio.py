"""The same loop over asyncio's transports: the cost of a reactor on asyncio."""

from __future__ import annotations

import asyncio
import threading

from orders import PAYLOAD, serve_orders

FRAME = bytes([0x81, 126]) + len(PAYLOAD).to_bytes(2, "big") + PAYLOAD.encode()
transports: list[asyncio.Transport] = []
loop = asyncio.new_event_loop()


class Client(asyncio.Protocol):
    def connection_made(self, transport: asyncio.BaseTransport) -> None:
        assert isinstance(transport, asyncio.Transport)
        transports.append(transport)
        transport.write(b"!")  # accepted


async def send(rounds: int, burst: int) -> None:
    for _ in range(rounds):
        for _ in range(burst):
            for transport in transports:
                transport.write(FRAME)
        await asyncio.sleep(0)


def fan_out(rounds: int, burst: int) -> None:
    asyncio.run_coroutine_threadsafe(send(rounds, burst), loop).result()


async def start() -> int:
    server = await loop.create_server(Client, "127.0.0.1", 0, backlog=4096)
    return int(server.sockets[0].getsockname()[1])


port = loop.run_until_complete(start())
threading.Thread(target=loop.run_forever, daemon=True).start()
serve_orders(port, fan_out)
