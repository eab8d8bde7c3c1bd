"""Replays the week, on a clock that can be sped up and stopped."""

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
from keyfold import Closed, MailboxFull, ProjectionError, ProjectionSystem, Receipt
from lease import Lease

_logger = logging.getLogger("airport_board")

SPEEDS = (60, 300, 1800, 10_000)
_CONTROLS = ("airports.replay", "controls")
_RENEW_SECONDS = 1.0
_LOOK_SECONDS = 0.25
_START_OVER_SECONDS = 10.0
_MAX_FLIGHTS = 200


@dataclass
class Controls:
    """The settings that users have made on a page.

    Attributes:
        speed: Model seconds per second.
        paused: Whether the clock stands still.
        round: The number of times that the replay was to be started over.
    """

    speed: int
    paused: bool = False
    round: int = 0


@dataclass
class Status:
    """The progress of the replay."""

    number: int
    total: int
    speed: int
    paused: bool


class FlightReplay:
    """Dispatches the flights in order. Each process has one, and the holder of the lease replays.

    The controls are a value in the database, which the holder reads regularly. The progress is in the lease,
    updated once the receipts are done, so a little late: the next holder dispatches the flights in between
    again, and the boards ignore those that they have.
    """

    def __init__(
        self, system: ProjectionSystem, flights: Sequence[Flight], *, speed: int = SPEEDS[1]
    ) -> None:
        self._system = system
        self._flights = flights
        self._moments = [datetime.fromisoformat(flight.at) for flight in flights]
        self._receipts: deque[Receipt] = deque()
        self._lease = Lease(system.store)
        self._default = Controls(speed)
        self._controls = self._default
        self._stopping = threading.Event()
        self._next = 0
        self._looked_at = self._renewed_at = 0.0
        self._clock = self._moments[0]
        self._thread = threading.Thread(target=self._run, name="flight-replay", daemon=True)

    def start(self) -> None:
        """Start the thread that replays, or waits until the lease is free."""
        self._thread.start()

    def stop(self) -> None:
        """Wait until all dispatched flights are committed, save the progress, and end."""
        self._stopping.set()
        self._thread.join()

    # -- from any process

    def status(self) -> Status:
        """Return the progress of the replay."""
        controls = self._read_controls()
        number = self._next if self._lease.is_mine else Lease(self._system.store).look().number
        return Status(number, len(self._flights), controls.speed, controls.paused)

    def control(self, *, speed: int | None = None, paused: bool | None = None) -> Status:
        """Change the speed (model seconds per second), pause, or continue."""
        controls = self._read_controls()
        controls.speed = controls.speed if speed is None else speed
        controls.paused = controls.paused if paused is None else paused
        self._system.store.write(*_CONTROLS, controls)
        return self.status()

    def start_over(self) -> Status:
        """Delete all states and begin with the first flight. Raises TimeoutError if that takes too long."""
        controls = self._read_controls()
        controls.round += 1
        self._system.store.write(*_CONTROLS, controls)
        until = time.monotonic() + _START_OVER_SECONDS
        while Lease(self._system.store).look().round < controls.round:
            if self._stopping.wait(0.05) or time.monotonic() > until:
                raise TimeoutError
        return self.status()

    def _read_controls(self) -> Controls:
        return self._system.store.read(*_CONTROLS, Controls) or replace(self._default)

    # -- in the process that holds the lease

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                if now - self._looked_at >= _LOOK_SECONDS:
                    self._looked_at = now
                    self._look()
                if self._lease.is_mine:
                    if not self._controls.paused:
                        self._clock += timedelta(seconds=(now - last) * self._controls.speed)
                    self._dispatch_due()
                    self._save_progress(now)
                pause = self._pause()
            except Closed:
                break  # the server ends
            except ProjectionError as error:
                _logger.warning("the replay waits: %s", error)
                pause = 2.0
            last = now
            self._stopping.wait(pause)
        self._end()

    def _look(self) -> None:
        if not self._lease.is_mine:
            if not self._lease.take():
                return
            self._receipts.clear()
            self._next = self._lease.state.number
            self._clock = self._moments[min(self._next, len(self._flights) - 1)]
        self._controls = self._read_controls()
        if self._controls.round > self._lease.state.round:
            self._delete_states()

    def _delete_states(self) -> None:
        self._wait_for_commits()
        codes = {code for flight in self._flights for code in (flight.origin, flight.destination)}
        for name, keys in (("airports.board", sorted(codes)), ("airports.overview", ["all"])):
            runtime = self._system.runtime(name)
            for key in keys:
                if runtime.read(key) is not None:
                    runtime.wipe(key)
        self._receipts.clear()
        self._next = 0
        self._clock = self._moments[0]
        self._lease.renew(0, self._controls.round)

    def _dispatch_due(self) -> None:
        for _ in range(_MAX_FLIGHTS):
            paused, at_end = self._controls.paused, self._next >= len(self._flights)
            if paused or at_end or self._moments[self._next] > self._clock:
                return
            flight = replace(self._flights[self._next], sent_at=time.time() * 1000)
            try:
                self._receipts.append(self._system.bus.dispatch(flight))
            except MailboxFull:
                return  # it is dispatched later: the boards lag, and lose nothing
            self._next += 1

    def _save_progress(self, now: float) -> None:
        while self._receipts and self._receipts[0].done():
            self._receipts.popleft()
        if now - self._renewed_at >= _RENEW_SECONDS:
            self._renewed_at = now
            self._lease.renew(self._next - len(self._receipts))

    def _wait_for_commits(self) -> None:
        for receipt in self._receipts:
            receipt.exception(timeout=5)

    def _end(self) -> None:
        if self._lease.is_mine:
            self._wait_for_commits()
            self._save_progress(float("inf"))
            self._lease.give_back()

    def _pause(self) -> float:
        """Return the seconds until the next flight, at least about one frame of the screen."""
        if not self._lease.is_mine or self._controls.paused or self._next >= len(self._flights):
            return _LOOK_SECONDS
        ahead = (self._moments[self._next] - self._clock).total_seconds() / self._controls.speed
        return min(_LOOK_SECONDS, max(0.02, ahead))


def as_dict(status: Status) -> dict[str, Any]:
    """Return a status for JSON."""
    return vars(status)
