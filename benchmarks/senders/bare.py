"""The upper bound of any server: a loop of send calls with the same frame."""

from __future__ import annotations

import socket
import threading

from orders import PAYLOAD, serve_orders

FRAME = bytes([0x81, 126]) + len(PAYLOAD).to_bytes(2, "big") + PAYLOAD.encode()
listener = socket.create_server(("127.0.0.1", 0), backlog=4096)
clients: list[socket.socket] = []


def accept() -> None:
    while True:
        sock, _ = listener.accept()
        sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        clients.append(sock)
        sock.send(b"!")  # accepted


def fan_out(rounds: int, burst: int) -> None:
    for _ in range(rounds * burst):
        for sock in clients:
            sock.send(FRAME)


threading.Thread(target=accept, daemon=True).start()
serve_orders(listener.getsockname()[1], fan_out)
