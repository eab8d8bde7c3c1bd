"""What a hub is to its channels and connections."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from .backplane.cross_process_sync import CrossProcessSync
    from .channels.channel import Channel
    from .connections.checks import Checks
    from .connections.connection import Connection
    from .connections.connection_limits import ConnectionLimits
    from .connections.connections import SignOuts
    from .log_throttle import LogThrottle
    from .reactor import Reactor
    from .row_reader import RowReader
    from .settings import LiveSettings


class Host(Protocol):
    """Called on the reactor's thread alone."""

    settings: LiveSettings
    cross_process_sync: CrossProcessSync
    rows: RowReader
    counts: Counter[str]
    gone_back_log: LogThrottle
    connection_limits: ConnectionLimits
    checks: Checks
    """Of those who want to watch. Calls ``decided``."""
    rechecks: Checks
    """Of those who watch already: a queue of its own, which no number of the others delays. Calls ``confirmed``."""

    sign_outs: SignOuts

    @property
    def reactor(self) -> Reactor:
        """The thread that everything here runs on."""

    def clock(self) -> float:
        """Return the time, in seconds."""

    # -- for channels

    def read(self, channel: Channel) -> None:
        """Read the committed row and call ``row_came`` or ``no_row_came``."""

    def snapshot_sent(self, name: str, reason: str) -> None:
        """Count a snapshot that one subscriber of a projection was sent."""

    def later(self, seconds: float, function: Callable[[], None]) -> None:
        """Call function after so many seconds."""

    # -- for connections

    def channel(self, name: str, key: str) -> Channel:
        """Return the channel, made if need be."""

    def address_of(self, channel: str | None, projection: str | None, key: str | None) -> tuple[str, str]:
        """Return (name, key) of what a client wants. Raises UnknownProjection, InvalidKey."""

    def is_public(self, name: str) -> bool:
        """Say whether everybody may read a projection, so that nobody is to be asked."""

    def gone(self, connection: Connection) -> None:
        """Forget the connection."""
