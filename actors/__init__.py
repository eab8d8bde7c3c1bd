"""Events become state: the bus, projections, their supervisors and actors."""

from ..store import (
    InvalidKey,
    Position,
    ProjectionError,
    ProjectionKey,
    Snapshot,
    StoreError,
    VersionConflict,
)
from .broadcaster import Broadcaster, Committed, Observer, channel_of
from .dead_letters import DeadLetters
from .errors import (
    AlreadyRegistered,
    ApplyError,
    BroadcastError,
    Closed,
    InvalidEvent,
    InvalidProjection,
    InvalidState,
    KeyHalted,
    LetterNotFound,
    MailboxFull,
    NewerRow,
    NotStarted,
    StateNotFound,
    UnknownProjection,
    WouldDeadlock,
)
from .event_bus import EventBus
from .pool.pooled_actor import PooledActor
from .projection import Projection
from .receipt import Applied, Receipt
from .runtime import ProjectionRuntime
from .settings import Settings
from .system import ProjectionSystem, all_systems

__all__ = [
    "AlreadyRegistered",
    "Applied",
    "ApplyError",
    "BroadcastError",
    "Broadcaster",
    "Closed",
    "Committed",
    "DeadLetters",
    "EventBus",
    "InvalidEvent",
    "InvalidKey",
    "InvalidProjection",
    "InvalidState",
    "KeyHalted",
    "LetterNotFound",
    "MailboxFull",
    "NewerRow",
    "NotStarted",
    "Observer",
    "PooledActor",
    "Position",
    "Projection",
    "ProjectionError",
    "ProjectionKey",
    "ProjectionRuntime",
    "ProjectionSystem",
    "Receipt",
    "Settings",
    "Snapshot",
    "StateNotFound",
    "StoreError",
    "UnknownProjection",
    "VersionConflict",
    "WouldDeadlock",
    "all_systems",
    "channel_of",
]
