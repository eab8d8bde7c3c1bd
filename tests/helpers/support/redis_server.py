"""A real Redis that a test may kill, freeze and empty."""

from __future__ import annotations

import shutil
import signal
import socket
import subprocess
import tempfile
from pathlib import Path

from .postgres import free_port

_SECONDS = 30.0


class RedisServer:
    """One server on a free port of 127.0.0.1. It keeps nothing: each start is an empty one."""

    def __init__(self, *addresses: str) -> None:
        self._addresses = addresses
        self.directory = Path(tempfile.mkdtemp(prefix="keyfold-redis-"))
        self.port = free_port()
        self._process: subprocess.Popen[str] | None = None

    @property
    def url(self) -> str:
        return self.url_at("127.0.0.1")

    def url_at(self, address: str) -> str:
        """The URL with another address of this machine."""
        return f"redis://{address}:{self.port}/0"

    def start(self) -> None:
        """Start, and wait until it answers."""
        options = ["--port", str(self.port), "--save", "", "--appendonly", "no", "--protected-mode", "no"]
        options += ["--bind", "127.0.0.1", *self._addresses]
        command = ["redis-server", *options, "--dir", str(self.directory)]
        self._process = subprocess.Popen(command, text=True, stdout=subprocess.PIPE)
        assert self._process.stdout is not None
        for line in self._process.stdout:
            if "Ready to accept connections" in line:
                return
        msg = "redis-server ended before it was ready"
        raise RuntimeError(msg)

    def stop(self) -> None:
        """Kill it."""
        if self._process is not None:
            self._process.kill()
            self._process.communicate(timeout=_SECONDS)
            self._process = None

    def freeze(self) -> None:
        """Freeze it: its connections stay open, without answers."""
        assert self._process is not None
        self._process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        """Thaw it."""
        assert self._process is not None
        self._process.send_signal(signal.SIGCONT)

    def ask(self, *words: str) -> str:
        """Send one command by hand, and return the answer."""
        with socket.create_connection(("127.0.0.1", self.port), timeout=_SECONDS) as sock:
            sock.sendall((" ".join(words) + "\r\n").encode())
            return sock.recv(65_536).decode()

    def remove(self) -> None:
        """Kill it, and leave nothing behind."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)
