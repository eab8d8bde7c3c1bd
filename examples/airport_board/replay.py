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
from keyfold import Closed, MailboxFull, ProjectionError, ProjectionSystem, Receipt
from lease import Lease

_logger = logging.getLogger("airport_board")

SPEEDS = (60, 300, 1800, 10_000)
_WISHES = ("airports.replay", "wishes")
_KEEP_EVERY = 1.0
_LOOK_EVERY = 0.25
_PATIENCE = 10.0
_AT_ONCE = 200


@dataclass
class Wishes:
    """What the people before the pages want: model seconds a second, a pause, and so many beginnings."""

    speed: int
    paused: bool = False
    round: int = 0


@dataclass
class Status:
    """Where the replay stands."""

    number: int
    total: int
    speed: int
    paused: bool


class FlightReplay:
    """Dispatches the flights in order, in one process of those that have one of these.

    What people want is a value in the database, which whoever replays looks at now and then. How far it is stands in
    the lease, a little late, after the receipts are done: who takes over dispatches the flights in between again, and
    the boards ignore those that they have.
    """

    def __init__(
        self, system: ProjectionSystem, flights: Sequence[Flight], *, speed: int = SPEEDS[1]
    ) -> None:
        self._system = system
        self._flights = flights
        self._moments = [datetime.fromisoformat(flight.at) for flight in flights]
        self._receipts: deque[Receipt] = deque()
        self._lease = Lease(system.store)
        self._first = Wishes(speed)
        self._wishes = self._first
        self._stopping = threading.Event()
        self._next = 0
        self._looked_at = self._kept_at = 0.0
        self._clock = self._moments[0]
        self._thread = threading.Thread(target=self._run, name="flight-replay", daemon=True)

    def start(self) -> None:
        """Begin, or go on, or wait until no other process does."""
        self._thread.start()

    def stop(self) -> None:
        """Wait until all that was dispatched is committed, keep the place, and end."""
        self._stopping.set()
        self._thread.join()

    # -- from any process

    def status(self) -> Status:
        """Return where the replay stands."""
        wishes = self._read_wishes()
        number = self._next if self._lease.is_mine else Lease(self._system.store).look().number
        return Status(number, len(self._flights), wishes.speed, wishes.paused)

    def control(self, *, speed: int | None = None, paused: bool | None = None) -> Status:
        """Change the speed (model seconds a second), pause, or go on."""
        wishes = self._read_wishes()
        wishes.speed = wishes.speed if speed is None else speed
        wishes.paused = wishes.paused if paused is None else paused
        self._system.store.write(*_WISHES, wishes)
        return self.status()

    def start_over(self) -> Status:
        """Have everything forgotten, and the first flight come again; return once it is so. Raises TimeoutError."""
        wishes = self._read_wishes()
        wishes.round += 1
        self._system.store.write(*_WISHES, wishes)
        until = time.monotonic() + _PATIENCE
        while Lease(self._system.store).look().round < wishes.round:
            if self._stopping.wait(0.05) or time.monotonic() > until:
                raise TimeoutError
        return self.status()

    def _read_wishes(self) -> Wishes:
        return self._system.store.read(*_WISHES, Wishes) or replace(self._first)

    # -- in the process whose turn it is

    def _run(self) -> None:
        last = time.monotonic()
        while not self._stopping.is_set():
            now = time.monotonic()
            try:
                if now - self._looked_at >= _LOOK_EVERY:
                    self._looked_at = now
                    self._look()
                if self._lease.is_mine:
                    if not self._wishes.paused:
                        self._clock += timedelta(seconds=(now - last) * self._wishes.speed)
                    self._dispatch_due()
                    self._keep_place(now)
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
            self._next = self._lease.turn.number
            self._clock = self._moments[min(self._next, len(self._flights) - 1)]
        self._wishes = self._read_wishes()
        if self._wishes.round > self._lease.turn.round:
            self._forget_everything()

    def _forget_everything(self) -> None:
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
        self._lease.renew(0, self._wishes.round)

    def _dispatch_due(self) -> None:
        for _ in range(_AT_ONCE):
            paused, at_end = self._wishes.paused, self._next >= len(self._flights)
            if paused or at_end or self._moments[self._next] > self._clock:
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
        if now - self._kept_at >= _KEEP_EVERY:
            self._kept_at = now
            self._lease.renew(self._next - len(self._receipts))

    def _wait_for_commits(self) -> None:
        for receipt in self._receipts:
            receipt.exception(timeout=5)

    def _end(self) -> None:
        if self._lease.is_mine:
            self._wait_for_commits()
            self._keep_place(float("inf"))
            self._lease.give_back()

    def _pause(self) -> float:
        """Return how long nothing has to be done, in seconds: a frame of the page at the least."""
        if not self._lease.is_mine or self._wishes.paused or self._next >= len(self._flights):
            return _LOOK_EVERY
        ahead = (self._moments[self._next] - self._clock).total_seconds() / self._wishes.speed
        return min(_LOOK_EVERY, max(0.02, ahead))


def as_dict(status: Status) -> dict[str, Any]:
    """Return a status as JSON-able facts."""
    return vars(status)
