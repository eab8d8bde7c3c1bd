"""Clients that ask and hardly read: their waiting bytes stay bounded, and so does the worker's memory."""

from __future__ import annotations

import base64
import json
import os
import selectors
import socket
from contextlib import suppress
from pathlib import Path
from time import monotonic

import psutil
import pytest
from support.gunicorns import Gunicorn
from support.parking import DEADLINE
from support.raw_client import TEXT, client_frame

TALKERS = 20
FRAMES_A_SECOND = 18
"""Under the allowance of 20."""
BYTES_A_SECOND = 11_000
"""So little is read that answers pile up, and so much that the client is not taken for dead."""
QUESTION = client_frame(TEXT, json.dumps({"type": "unsubscribe", "channel": "A" * 3900}).encode())


class Talker:
    """One such client, which comes back when it is sent away."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.connections = 0
        self.asked = self.read = 0.0
        self._connect()

    def _connect(self) -> None:
        self.sock = socket.socket()
        self.sock.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 4096)
        self.sock.settimeout(DEADLINE)
        self.sock.connect(("127.0.0.1", self._port))
        key = base64.b64encode(os.urandom(16)).decode()
        self.sock.sendall(
            f"GET /ws/projection HTTP/1.1\r\nHost: 127.0.0.1:{self._port}\r\nUpgrade: websocket\r\n"
            f"Connection: Upgrade\r\nSec-WebSocket-Version: 13\r\nSec-WebSocket-Key: {key}\r\n\r\n".encode()
        )
        assert self.sock.recv(4096).startswith(b"HTTP/1.1 101")
        self.sock.setblocking(False)
        self.connections += 1
        self.asked = self.read = monotonic()

    def go_on(self, now: float) -> None:
        """Ask and read as much as is due by now."""
        try:
            while self.asked < now:
                self.sock.send(QUESTION)
                self.asked += 1 / FRAMES_A_SECOND
            while self.read < now:
                with suppress(BlockingIOError):
                    if not self.sock.recv(1100):
                        raise ConnectionResetError
                self.read += 1100 / BYTES_A_SECOND
        except BlockingIOError:  # the server reads no more from this one, which is an answer too
            self.asked = now
        except OSError:
            self.sock.close()
            self._connect()


@pytest.mark.slow
def test_the_memory_of_a_worker_stays_flat(sqlite_url: str, tmp_path: Path) -> None:
    """Without a bound on answers it grew by 62 kB a second and client."""
    server = Gunicorn(tmp_path, "--threads", "4", DATABASE=sqlite_url, EAGER="1")
    talkers: list[Talker] = []
    try:
        [worker] = psutil.Process(server.process.pid).children()
        talkers = [Talker(server.site.port) for _ in range(TALKERS)]
        pause, sizes = selectors.DefaultSelector(), list[int]()
        started = monotonic()
        for second in range(70):
            while (now := monotonic()) < started + second:
                for talker in talkers:
                    talker.go_on(now)
                pause.select(0.02)
            if second % 10 == 9:
                sizes.append(worker.memory_full_info().uss)
        pause.close()
        grown = [round((size - sizes[0]) / 1e6, 1) for size in sizes]
        assert max(grown) < 8, f"megabytes grown since second 9, every ten seconds: {grown}"
        status, _, text = server.site.request("/facts")
        assert status == 200, text
        assert worker.is_running()
    finally:
        for talker in talkers:
            talker.sock.close()
        server.remove()
