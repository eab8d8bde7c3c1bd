"""The read models: one board per airport, and one overview of all airports.

Each state has ``upto``, the number of the last flight that it has seen, and ignores flights up to that
number. So the replay may begin a little early after a crash: no flight counts twice.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from flights import Flight, FlightCancelled, FlightDeparted
from keyfold import Projection

LATEST = 14


@dataclass
class Tally:
    """The number of departures, their total delay in minutes, and the number of cancelled flights."""

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
    """The state that the page of one airport shows."""

    upto: int = 0
    at: str = ""
    tally: Tally = field(default_factory=Tally)
    carriers: dict[str, Tally] = field(default_factory=dict)
    latest: list[dict[str, Any]] = field(default_factory=list)


class AirportBoard(Projection[FlightDeparted | FlightCancelled, Board]):
    """A flight is on the boards of its origin and of its destination."""

    name = "airports.board"
    public = True

    def keys(self, event: Flight) -> tuple[str, str]:
        """Return two keys for one event."""
        return event.origin, event.destination

    def apply(self, state: Board, event: Flight) -> dict[str, Any]:
        """Count the flight, and return the changes for the page."""
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
    """The state that the page of all airports shows."""

    upto: int = 0
    at: str = ""
    total: Tally = field(default_factory=Tally)
    airports: dict[str, Tally] = field(default_factory=dict)


class AirportsOverview(Projection[FlightDeparted | FlightCancelled, Overview]):
    """One key for the page that lists all airports: it needs one subscription, however many there are."""

    name = "airports.overview"
    public = True

    def key(self, event: Flight) -> str:  # noqa: ARG002
        return "all"

    def apply(self, state: Overview, event: Flight) -> dict[str, Any]:
        """Count the flight for both airports."""
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
