"""Lets the week happen again, on a clock that can be sped up and stopped."""

from __future__ import annotations

import logging
import threading
import time
from collections import deque
from collections.abc import Sequence
from dataclasses import dataclass, replace
from datetime import datetime, timedelta
from typing import Any

from flights import Flight
from keyfold.actors import MailboxFull, ProjectionError, ProjectionSystem, Receipt

_logger = logging.getLogger("airport_board")

PLACE = ("airports.replay", "position")
SPEEDS = (60, 300, 1800, 10_000)
_KEEP_EVERY = 1.0
_AT_ONCE = 200


@dataclass
class Status:
    """Where the replay stands."""

    number: int
    total: int
    speed: int
    paused: bool


class FlightReplay:
    """Dispatches the flights in order. After a restart it goes on behind the last flight known to be committed.

    That number is kept in the same database, a little late, after the receipts are done: the flights
    in between are dispatched again, and the boards ignore those that they have.
    """

    def __init__(
        self, system: ProjectionSystem, flights: Sequence[Flight], *, speed: int = SPEEDS[1]
    ) -> None:
        self._system = system
        self._flights = flights
        self._moments = [datetime.fromisoformat(flight.at) for flight in flights]
        self._receipts: deque[Receipt] = deque()
        self._changed = threading.Condition()
        self._speed = speed
        self._paused = False
        self._stopping = False
        self._next = int(system.store.read(*PLACE) or 0)
        self._kept = self._next
        self._kept_at = 0.0
        self._clock = self._moments[min(self._next, len(flights) - 1)]
        self._thread = threading.Thread(target=self._run, name="flight-replay", daemon=True)

    def start(self) -> None:
        """Begin, or go on."""
        self._thread.start()

    def stop(self) -> None:
        """Wait until all that was dispatched is committed, keep the place, and end."""
        with self._changed:
            self._stopping = True
            self._changed.notify_all()
        self._thread.join()

    def status(self) -> Status:
        """Return where the replay stands."""
        with self._changed:
            return Status(self._next, len(self._flights), self._speed, self._paused)

    def control(self, *, speed: int | None = None, paused: bool | None = None) -> Status:
        """Change the speed (model seconds a second), pause, or go on."""
        with self._changed:
            if speed is not None:
                self._speed = speed
            if paused is not None:
                self._paused = paused
            self._changed.notify_all()
        return self.status()

    def start_over(self) -> Status:
        """Forget everything and begin with the first flight."""
        with self._changed:
            self._wait_for_commits()
            for name in ("airports.board", "airports.overview"):
                runtime = self._system.runtime(name)
                codes = {code for flight in self._flights for code in (flight.origin, flight.destination)}
                for key in ["all"] if name == "airports.overview" else sorted(codes):
                    if runtime.read(key) is not None:
                        runtime.wipe(key)
            self._next = self._kept = 0
            self._system.store.write(*PLACE, 0)
            self._clock = self._moments[0]
            self._changed.notify_all()
        return self.status()

    def _run(self) -> None:
        last = time.monotonic()
        with self._changed:
            while not self._stopping:
                now = time.monotonic()
                if not self._paused:
                    self._clock += timedelta(seconds=(now - last) * self._speed)
                last = now
                try:
                    self._dispatch_due()
                    self._keep_place(now)
                    pause = self._pause()
                except ProjectionError as error:
                    _logger.warning("the replay waits: %s", error)
                    pause = 2.0
                self._changed.wait(pause)
            self._wait_for_commits()
            self._keep_place(float("inf"))

    def _dispatch_due(self) -> None:
        for _ in range(_AT_ONCE):
            if self._paused or self._next >= len(self._flights) or self._moments[self._next] > self._clock:
                return
            flight = replace(self._flights[self._next], sent_at=time.time() * 1000)
            try:
                self._receipts.append(self._system.bus.dispatch(flight))
            except MailboxFull:
                return  # a little later then: the boards are behind, not lost
            self._next += 1

    def _keep_place(self, now: float) -> None:
        while self._receipts and self._receipts[0].done():
            self._receipts.popleft()
        committed = self._next - len(self._receipts)
        if committed > self._kept and now - self._kept_at >= _KEEP_EVERY:
            self._system.store.write(*PLACE, committed)
            self._kept, self._kept_at = committed, now

    def _wait_for_commits(self) -> None:
        for receipt in self._receipts:
            receipt.exception(timeout=5)

    def _pause(self) -> float:
        """Return how long nothing has to be done, in seconds: a frame of the page at the least."""
        if self._paused or self._next >= len(self._flights):
            return 0.5
        ahead = (self._moments[self._next] - self._clock).total_seconds() / self._speed
        return min(0.5, max(0.02, ahead))


def as_dict(status: Status) -> dict[str, Any]:
    """Return a status as JSON-able facts."""
    return vars(status)
