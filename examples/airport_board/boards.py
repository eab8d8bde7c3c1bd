"""The read models: a board an airport, and one overview of all of them.

Each state keeps ``upto``, the number of the last flight that it has seen, and ignores a flight that is
not above it. After a crash the replay may thus begin a little before where it was: nothing counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flights import Flight, FlightCancelled, FlightDeparted
from keyfold import Projection

LATEST = 14


@dataclass
class Tally:
    """Flights that left, minutes of delay in all of them, and flights cancelled."""

    flights: int = 0
    delay: int = 0
    cancelled: int = 0

    def add(self, event: Flight) -> None:
        """Count one flight."""
        if isinstance(event, FlightDeparted):
            self.flights += 1
            self.delay += event.delay
        else:
            self.cancelled += 1


@dataclass
class Board:
    """What the page of one airport shows."""

    upto: int = 0
    at: str = ""
    tally: Tally = field(default_factory=Tally)
    carriers: dict[str, Tally] = field(default_factory=dict)
    latest: list[dict[str, Any]] = field(default_factory=list)


class AirportBoard(Projection[FlightDeparted | FlightCancelled, Board]):
    """A flight stands on the board of the airport it leaves and of the one it flies to."""

    name = "airports.board"
    public = True

    def keys(self, event: Flight) -> tuple[str, str]:
        """Two keys for one event."""
        return event.origin, event.destination

    def apply(self, state: Board, event: Flight) -> dict[str, Any]:
        """Count the flight, and tell the page what changed."""
        if event.number <= state.upto:
            return {}
        state.upto, state.at = event.number, event.at
        state.tally.add(event)
        carrier = state.carriers.setdefault(event.carrier, Tally())
        carrier.add(event)
        row = {
            "number": event.number,
            "flight": f"{event.carrier} {event.flight}",
            "origin": event.origin,
            "destination": event.destination,
            "scheduled": event.scheduled,
            "delay": None if isinstance(event, FlightCancelled) else event.delay,
        }
        state.latest = [row, *state.latest[: LATEST - 1]]
        return {
            "at": event.at,
            "tally": state.tally,
            "carrier": event.carrier,
            "carrier_tally": carrier,
            "row": row,
            "sent_at": event.sent_at,
        }


@dataclass
class Overview:
    """All airports at one glance."""

    upto: int = 0
    at: str = ""
    total: Tally = field(default_factory=Tally)
    airports: dict[str, Tally] = field(default_factory=dict)


class AirportsOverview(Projection[FlightDeparted | FlightCancelled, Overview]):
    """One key for the page that lists the airports: one socket, whatever their number."""

    name = "airports.overview"
    public = True

    def key(self, event: Flight) -> str:  # noqa: ARG002
        """Always the same."""
        return "all"

    def apply(self, state: Overview, event: Flight) -> dict[str, Any]:
        """Count the flight for both ends."""
        if event.number <= state.upto:
            return {}
        state.upto, state.at = event.number, event.at
        state.total.add(event)
        changed = {}
        for code in (event.origin, event.destination):
            tally = state.airports.setdefault(code, Tally())
            tally.add(event)
            changed[code] = tally
        return {"at": event.at, "upto": event.number, "total": state.total, "airports": changed}
