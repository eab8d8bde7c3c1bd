"""What all actors of one projection share, and the messages that are not events."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ..store import Load, Position, Write

if TYPE_CHECKING:
    from .broadcaster import Broadcaster
    from .counters import Counters, InFlight
    from .dispatcher import Dispatcher
    from .projection_actor import ProjectionActor


class Retire(NamedTuple):
    """A hint: end, if nothing is waiting and nothing is under way."""


class Replacement(NamedTuple):
    """Put this state in place of whatever the key holds, under a new epoch: a rebuild or a wipe."""

    position: Position
    state: bytes
    done: Future[Position]


RETIRE = Retire()


@dataclass(slots=True, kw_only=True)
class Props:
    """What all actors of one projection share, so that each holds little more than its state."""

    projection: str
    event_name: str
    apply: Callable[[Any, Any], Any]
    new_state: Callable[[], Any]
    encode_state: Callable[[Any], bytes]
    decode_state: Callable[[bytes], Any]
    encode_delta: Callable[[Any], bytes]
    decode_delta: Callable[[bytes], Any]
    encode_event: Callable[[Any], bytes]
    tell_writer: Callable[[Load | Write], None]
    broadcaster: Broadcaster | None
    dispatcher: Dispatcher
    mailbox_limit: int
    counters: Counters
    in_flight: InFlight
    on_applied: list[Callable[[str, Any], object]]
    retired: Callable[[ProjectionActor], None] = field(init=False)  # the Supervisor's own

    def state_of(self, encoded: bytes | None) -> Any:
        """Return the state that a row holds, or a new one if there is none."""
        return self.new_state() if encoded is None else self.decode_state(encoded)
