"""The events, states and projections of all processes of a round, and the limits that the seed draws."""

from __future__ import annotations

import random
import threading
from dataclasses import dataclass, field
from typing import Any

from keyfold.actors import Projection

KEYS = ["a", "b c", "d/é", "f"]
OWN = "chaos.own"
"""The name of the values that are written without a projection."""

SLOW = "slow"
"""Keeps a dispatcher thread for a moment, so that a close finds a backlog."""
POISON = ("poison", "exit", "unprintable")
"""Raised by ``apply`` unless the process has mended it."""
ILL_TYPED = ("list", "nan", "infinity", "unencodable", "list in event", "nan in event")
"""Makes a state, or is an event, that cannot be read back: it must be refused in every case."""


class Unprintable(Exception):
    """Says nothing of itself."""

    def __str__(self) -> str:
        raise AttributeError("this has no text")


@dataclass
class Happened:
    """An event with a name of its own, for one to three keys."""

    id: str
    keys: list[str]
    then: str = ""
    pad: str = ""
    amount: float = 0.0


@dataclass
class HappenedInOrder:
    """The same, for the projection that halts."""

    id: str
    keys: list[str]
    then: str = ""
    pad: str = ""
    amount: float = 0.0


@dataclass
class Echoed:
    """An event of a hook."""

    id: str
    keys: list[str]
    then: str = ""
    pad: str = ""
    amount: float = 0.0


@dataclass
class Log:
    """The names of all events of the epoch: log[i] made version i + 1."""

    log: list[str] = field(default_factory=list)
    half: str = ""
    text: str = ""
    number: float = 0.0
    extra: Any = None


class _Logs:
    mended = False
    """Poison is good in this process."""

    def keys(self, event: Any) -> list[str]:
        return event.keys  # type: ignore[no-any-return]

    def apply(self, state: Log, event: Any) -> dict[str, Any]:
        """Append the event, and leave the state half changed if it is poison."""
        state.half = event.id
        state.log.append(event.id)
        if event.then in POISON and not self.mended:
            raise {"poison": ValueError, "exit": SystemExit, "unprintable": Unprintable}[event.then](event.id)
        match event.then:
            case "slow":
                threading.Event().wait(0.02)
            case "list":
                state.text = [event.id]  # type: ignore[assignment]
            case "nan":
                state.number = float("nan")
            case "infinity":
                state.number += float("inf")
            case "unencodable":
                state.extra = 1j
        state.half = ""
        return {"id": event.id, "version": len(state.log)}


class Letters(_Logs, Projection[Happened, Log]):
    """Makes dead letters."""

    name = "chaos.letters"


class Halts(_Logs, Projection[HappenedInOrder, Log]):
    """Halts its keys."""

    name = "chaos.halts"
    on_error = "halt"


class Echoes(_Logs, Projection[Echoed, Log]):
    """Is told by hooks."""

    name = "chaos.echoes"


EVENT_OF: dict[str, type[Any]] = {Letters.name: Happened, Halts.name: HappenedInOrder, Echoes.name: Echoed}


def limits(chance: random.Random) -> dict[str, Any]:
    """Draw the settings of one process: tiny, so that each way to push back is taken."""
    live = chance.choice([3, 8, 8])
    return {
        "mailbox_limit": chance.choice([1, 3, 8]),
        "in_flight_limit": chance.choice([4, 20, 60]),
        "max_live_actors": live,
        "commit_limit": chance.choice([1, 4]),
        "tuning": {"dispatcher_threads": chance.choice([1, 2, 4]), "report_seconds": 0.5},
        # With few actors, a new key has room once another has retired.
        "idle_seconds": 0.0 if live == 3 else chance.choice([0.0, 0.05, 60.0]),
        "dispatch_timeout": chance.choice([0.02, 0.2, 1.0]),
        "turn_limit": chance.choice([2, 64, 4096]),
        "close_timeout": 20.0,
    }
