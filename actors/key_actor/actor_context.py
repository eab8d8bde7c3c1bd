"""Everything that the actors of one projection share."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from pykka import ActorRef

    from ...store.writing.writer import SnapshotWriter
    from ..pool.dispatcher import Dispatcher
    from ..pool.timer import Timer
    from ..projection_codec import ProjectionCodec
    from ..upkeep.activity import Activity
    from ..upkeep.counters import Counters, InFlight
    from ..upkeep.degraded import Degraded
    from .population import Population
    from .publishing import Publisher


@dataclass(slots=True, frozen=True, kw_only=True)
class ActorContext:
    """Everything that the actors of one projection share, so that each holds little more than its state.

    It has many attributes for that reason: an actor has a single reference to all of them.
    """

    name: str
    """The name of the projection."""
    halts: bool
    """Whether an event that can't be folded halts its key, and the events behind it are parked."""
    mailbox_limit: int
    codec: ProjectionCodec
    writer: ActorRef[SnapshotWriter]
    publisher: Publisher
    population: Population
    dispatcher: Dispatcher
    timer: Timer
    in_flight: InFlight
    counters: Counters
    activity: Activity
    degraded: Degraded
