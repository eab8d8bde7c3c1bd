"""Real flights, as events in the order of their departures."""

from __future__ import annotations

import csv
import gzip
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

DATA = Path(__file__).parent / "data"
WEEK = DATA / "flights-2013-01-07.csv.gz"


@dataclass
class FlightDeparted:
    """A flight has departed.

    Attributes:
        number: The number of the event in the replay.
        delay: In minutes, negative for an early departure.
    """

    number: int
    at: str
    carrier: str
    flight: str
    origin: str
    destination: str
    scheduled: str
    delay: int
    sent_at: float = 0.0


@dataclass
class FlightCancelled:
    """A scheduled flight was cancelled."""

    number: int
    at: str
    carrier: str
    flight: str
    origin: str
    destination: str
    scheduled: str
    sent_at: float = 0.0


Flight = FlightDeparted | FlightCancelled


def read_flights(path: Path = WEEK) -> list[Flight]:
    """Return the flights of a file in the order of their departure times (scheduled times, if cancelled)."""
    with gzip.open(path, "rt", newline="") as lines:
        rows = [(_moment(row), index, row) for index, row in enumerate(csv.DictReader(lines))]
    rows.sort(key=lambda item: item[:2])
    return [_flight(number, moment, row) for number, (moment, _, row) in enumerate(rows, 1)]


def read_names(path: Path) -> dict[str, str]:
    """Return the names by their codes, from the first two columns of a file."""
    with path.open(newline="") as lines:
        rows = csv.reader(lines)
        next(rows)
        return {row[0]: row[1] for row in rows}


def _scheduled(row: dict[str, str]) -> datetime:
    # Local time, as in the file.
    day = datetime(int(row["year"]), int(row["month"]), int(row["day"]))  # noqa: DTZ001
    hours, minutes = divmod(int(row["sched_dep_time"]), 100)
    return day + timedelta(hours=hours, minutes=minutes)


def _moment(row: dict[str, str]) -> datetime:
    delay = 0 if row["dep_delay"] == "NA" else int(row["dep_delay"])
    return _scheduled(row) + timedelta(minutes=delay)


def _flight(number: int, moment: datetime, row: dict[str, str]) -> Flight:
    common: dict[str, Any] = {
        "number": number,
        "at": moment.isoformat(timespec="minutes"),
        "carrier": row["carrier"],
        "flight": row["flight"],
        "origin": row["origin"],
        "destination": row["dest"],
        "scheduled": _scheduled(row).strftime("%H:%M"),
    }
    if row["dep_time"] == "NA":
        return FlightCancelled(**common)
    return FlightDeparted(**common, delay=int(row["dep_delay"]))
