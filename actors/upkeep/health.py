"""Whether the threads that everything runs on still go round."""

from __future__ import annotations

import threading
from typing import NamedTuple, Self


class Loop(NamedTuple):
    """How one thread fares. It hangs if one step of it takes longer than any should."""

    name: str
    alive: bool
    busy_seconds: float
    """How long the step under way has taken; 0 while the thread waits for something to do."""

    @classmethod
    def of(cls, thread: threading.Thread | None, busy_since: float | None, now: float) -> Self:
        """Look at a thread that notes when a step begins. None: it is just being started."""
        name, alive = ("", True) if thread is None else (thread.name, thread.is_alive())
        return cls(name, alive, 0.0 if busy_since is None else max(0.0, now - busy_since))

    def trouble(self, most: float) -> str | None:
        """Return what is wrong with it, or None."""
        if not self.alive:
            return "has ended"
        if self.busy_seconds > most:
            return f"has been in one step for {self.busy_seconds:.1f} s"
        return None
