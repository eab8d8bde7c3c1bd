"""A second machine: a network namespace, connected by a cable that can be cut. Needs root, and Linux."""

from __future__ import annotations

import ctypes
import os
import shutil
import subprocess
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TypeVar

from .parking import DEADLINE

T = TypeVar("T")

_CLONE_NEWNET = 0x40000000


def can_be_made() -> bool:
    """Return whether this user may create networks."""
    if shutil.which("ip") is None or os.geteuid() != 0:
        return False
    name = f"kf-try-{os.getpid()}"
    made = subprocess.run(["ip", "netns", "add", name], capture_output=True, check=False)
    subprocess.run(["ip", "netns", "del", name], capture_output=True, check=False)
    return made.returncode == 0


class Machine:
    """Shares files and memory with this machine, but no network. ``here`` is this end's address."""

    def __init__(self) -> None:
        pid = os.getpid()
        self.name = f"kf-{pid}"
        self._end = f"kf{pid % 10**8}"
        net = f"10.{200 + pid % 50}.{pid // 50 % 250}"
        self.here = f"{net}.1"
        _ip("netns", "add", self.name)
        try:
            _ip("link", "add", self._end, "type", "veth", "peer", "name", "cable", "netns", self.name)
            _ip("addr", "add", f"{self.here}/30", "dev", self._end)
            _ip("link", "set", self._end, "up")
            _ip("-n", self.name, "addr", "add", f"{net}.2/30", "dev", "cable")
            _ip("-n", self.name, "link", "set", "cable", "up")
            _ip("-n", self.name, "link", "set", "lo", "up")
        except BaseException:
            self.remove()
            raise

    @property
    def command(self) -> list[str]:
        """The prefix of a command that is to run on it."""
        return ["ip", "netns", "exec", self.name]

    def run(self, work: Callable[[], T]) -> T:
        """Run work on a thread of that machine. The sockets that it opens stay there."""
        with ThreadPoolExecutor(1, initializer=self._move) as pool:
            return pool.submit(work).result(DEADLINE)

    def _move(self) -> None:
        namespace = os.open(Path("/run/netns") / self.name, os.O_RDONLY)
        try:
            if ctypes.CDLL(None, use_errno=True).setns(namespace, _CLONE_NEWNET) != 0:
                raise OSError(ctypes.get_errno(), "setns")
        finally:
            os.close(namespace)

    def cut(self) -> None:
        """Drop all packets without an error: sent data is lost, connections stay open."""
        _ip("-n", self.name, "link", "set", "cable", "down")

    def mend(self) -> None:
        """Let packets through again."""
        _ip("-n", self.name, "link", "set", "cable", "up")

    def remove(self) -> None:
        """Remove the machine and both ends of the cable."""
        _ip("netns", "del", self.name)


def _ip(*words: str) -> None:
    subprocess.run(["ip", *words], check=True)
