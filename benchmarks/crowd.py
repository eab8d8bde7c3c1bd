"""Many WebSocket clients in one thread, and the servers to compare, each in a process of its own."""

from __future__ import annotations

import json
import os
import resource
import selectors
import socket
import subprocess
import sys
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
NODE_MODULES = HERE.parent / ".venv" / "node" / "node_modules"
HANDSHAKE = (
    "GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nUpgrade: websocket\r\nConnection: Upgrade\r\n"
    "Sec-WebSocket-Version: 13\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n\r\n"
)


def raise_limits() -> None:
    """Raise the limit of open files to the machine's hard limit."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class Crowd:
    """Open sockets that are drained together, and count the received bytes."""

    def __init__(
        self, port: int, count: int, path: str, *, greeting: bool, receive_buffer: int = 400_000
    ) -> None:
        self.sockets: list[socket.socket] = []
        self._selector = selectors.DefaultSelector()
        for _ in range(count):
            sock = socket.socket()
            # The kernel counts much more than the length of a small frame.
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, receive_buffer)
            sock.connect(("127.0.0.1", port))
            if path:
                sock.sendall(HANDSHAKE.format(path=path).encode())
                answer = b""
                while b"\r\n\r\n" not in answer:
                    answer += sock.recv(4096)
                assert answer.startswith(b"HTTP/1.1 101"), answer
                if greeting and answer.endswith(b"\r\n\r\n"):
                    sock.recv(4096)
            else:
                sock.recv(1)
            self.sockets.append(sock)
            self._selector.register(sock, selectors.EVENT_READ)

    def drain(self, expected: int) -> None:
        """Read this number of bytes from all sockets together."""
        while expected > 0:
            ready = self._selector.select(10)
            assert ready, f"{expected} bytes are missing"
            for key, _ in ready:
                data = key.fileobj.recv(1 << 20)  # type: ignore[union-attr]
                assert data, "the server has closed a connection"
                expected -= len(data)
        assert expected == 0, f"{-expected} bytes too many"

    def close(self) -> None:
        self._selector.close()
        for sock in self.sockets:
            sock.close()


class Server:
    """A program of ``senders/``: it prints its port, reads one order per line, and answers with JSON."""

    def __init__(self, program: str, *arguments: str) -> None:
        path = HERE / "senders" / program
        command = ["node", str(path)] if path.suffix == ".mjs" else [sys.executable, str(path)]
        environment = {**os.environ, "NODE_MODULES": f"{NODE_MODULES}/", "PYTHONWARNINGS": "ignore"}
        self.process = subprocess.Popen(
            [*command, *arguments], env=environment, text=True, stdin=subprocess.PIPE, stdout=subprocess.PIPE
        )
        self.port = int(self._answer())

    def order(self, *words: object) -> Any:
        """Send an order and return its answer."""
        assert self.process.stdin is not None
        self.process.stdin.write(" ".join(map(str, words)) + "\n")
        self.process.stdin.flush()
        return self._answer()

    def _answer(self) -> Any:
        assert self.process.stdout is not None
        return json.loads(self.process.stdout.readline())

    def close(self) -> None:
        """End the process."""
        self.process.kill()
        self.process.communicate()
