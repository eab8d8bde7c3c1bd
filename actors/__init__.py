"""Events become state: the bus, projections, their supervisors and actors.

The names here are those that an app needs. All errors are in ``keyfold.actors.errors``; the seams for a
broadcaster of your own are in ``keyfold.actors.broadcaster``.
"""

from ..store import (
    InvalidKey,
    Position,
    ProjectionError,
    ProjectionKey,
    Snapshot,
    StoreError,
    VersionConflict,
)
from .broadcaster import Observer
from .errors import (
    AlreadyRegistered,
    ApplyError,
    BroadcastError,
    Closed,
    InvalidEvent,
    InvalidProjection,
    InvalidState,
    KeyHalted,
    MailboxFull,
    NotStarted,
    StateNotFound,
)
from .event_bus import EventBus
from .projection import Projection
from .receipt import Applied, Receipt
from .runtime import ProjectionRuntime
from .system import ProjectionSystem

__all__ = [
    "AlreadyRegistered",
    "Applied",
    "ApplyError",
    "BroadcastError",
    "Closed",
    "EventBus",
    "InvalidEvent",
    "InvalidKey",
    "InvalidProjection",
    "InvalidState",
    "KeyHalted",
    "MailboxFull",
    "NotStarted",
    "Observer",
    "Position",
    "Projection",
    "ProjectionError",
    "ProjectionKey",
    "ProjectionRuntime",
    "ProjectionSystem",
    "Receipt",
    "Snapshot",
    "StateNotFound",
    "StoreError",
    "VersionConflict",
]
