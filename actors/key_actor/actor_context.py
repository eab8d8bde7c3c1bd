"""What all actors of one projection share."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NamedTuple

from ...store import StoreError
from ...store.rows import Row
from ...store.writing.writer_messages import Amend, Load, Write

if TYPE_CHECKING:
    from ..broadcaster import Broadcaster
    from ..observer import Observer
    from ..pool.dispatcher import Dispatcher
    from ..upkeep.activity import Activity
    from ..upkeep.counters import Counters, InFlight
    from ..upkeep.degraded import Degraded


class GoOn(NamedTuple):
    """The pause is over."""


class Retire(NamedTuple):
    """A hint: end, if nothing is waiting and nothing is under way."""


GO_ON = GoOn()
RETIRE = Retire()


@dataclass(slots=True, kw_only=True)
class ActorContext:
    """What all actors of one projection share, so that each holds little more than its state."""

    projection: str
    event_name: str
    apply: Callable[[Any, Any], Any]
    new_state: Callable[[], Any]
    encode_state: Callable[[Any], bytes]
    """Raises unless the bytes can be read back as the state."""
    decode_state: Callable[[bytes], Any]
    encode_delta: Callable[[Any], bytes]
    decode_delta: Callable[[bytes], Any]
    explain_delta: Callable[[Any, BaseException], BaseException]
    """Says of a delta that ``encode_delta`` refused which field is to blame."""
    check_deltas: Callable[[Sequence[bytes]], tuple[int, Exception] | None]
    """Returns the place of the first delta that does not decode, and the error."""
    encode_event: Callable[[Any], bytes]
    tell_writer: Callable[[Load | Write | Amend], None]
    broadcaster: Broadcaster | None
    dispatcher: Dispatcher
    mailbox_limit: int
    counters: Counters
    activity: Activity
    degraded: Degraded
    in_flight: InFlight
    later: Callable[[float, Callable[[], object]], None]
    """Makes a call in so many seconds."""
    observers: list[Observer]
    on_applied: list[Callable[[str, Any], object]]
    schema_version: int
    current: Callable[[Row], Row]
    """Upgrades a row of an older schema version."""
    halts: bool
    """An event that can't be folded parks its key, and what follows it."""
    retired: Callable[[Any], None] = field(init=False)  # the Supervisor's own

    given_up: StoreError | None = field(init=False, default=None)
    """Set when a close runs out of time: what every event raises that is not committed yet."""

    def state_of(self, row: Row | None) -> Any:
        """Return the state that a row holds, or a new one if there is none."""
        return self.new_state() if row is None else self.decode_state(self.current(row).state)
