"""The limits of a ProjectionSystem, checked once."""

from __future__ import annotations

import math
from dataclasses import dataclass, fields
from typing import Any

from ..store import ProjectionError


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """Every limit of a ProjectionSystem. In Flask each is the config key ``KEYFOLD_`` + its name in capitals.

    Raises ProjectionError that names the setting when a value is of the wrong type or out of range.
    """

    idle_seconds: float = 60.0
    """An actor that had no turn for so long is retired."""
    max_live_actors: int = 100_000
    """Above this the least recently used actors are retired; an eighth above it dispatch waits."""
    mailbox_limit: int = 10_000
    """Events that one key may hold unfolded. At the limit dispatch waits."""
    in_flight_limit: int = 100_000
    """Events accepted but not yet committed, over all keys. At the limit dispatch waits."""
    dispatch_timeout: float = 1.0
    """Seconds that dispatch waits for room before it raises MailboxFull."""
    event_bytes: int = 1_048_576
    """Bytes of JSON that one event may have. A larger one is refused by dispatch with InvalidEvent."""
    dispatcher_threads: int = 2
    """Threads that fold. More than four only adds hand-overs of the interpreter lock."""
    turn_limit: int = 4_096
    """Events that one actor folds before it saves and lets others have the thread."""
    turn_seconds: float = 0.01
    """Seconds after which a turn ends early."""
    commit_limit: int = 512
    """Rows written in one transaction."""
    read_timeout: float = 10.0
    """Seconds after which a read that the database has not answered raises StoreUnavailable."""
    close_timeout: float = 10.0
    """Seconds that close() and the end of the process give to what is not committed yet."""
    report_seconds: float = 5.0
    """How often a process tells the others, in the database, what it does; 0 for never."""
    health_seconds: float = 10.0
    """A thread that takes longer for one step is taken to hang; events that wait longer are a lag."""
    auto_migrate: bool = True
    """Create or update the tables at the first use. False: the app runs the migrations itself."""

    def __post_init__(self) -> None:
        for field in fields(self):
            check_setting(field.name, field.type, getattr(self, field.name))


def check_setting(name: str, kind: Any, value: object) -> None:
    """Raise ProjectionError, naming the setting, unless value is of kind (a name) and in range."""
    if kind == "bool":
        if not isinstance(value, bool):
            _refuse(name, value, "True or False")
        return
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        _refuse(name, value, "a number")
    elif kind == "int" and (not isinstance(value, int) or value < 1):
        _refuse(name, value, "a whole number of at least 1")
    elif kind == "float" and not (math.isfinite(value) and value >= 0):
        _refuse(name, value, "a number of seconds of at least 0")


def _refuse(name: str, value: object, expected: str) -> None:
    msg = f"the setting {name} must be {expected}, not {value!r}"
    raise ProjectionError(msg)
