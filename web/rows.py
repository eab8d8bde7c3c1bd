"""Committed rows for channels, read on threads that may wait, and brought back to the reactor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..actors import Closed, ProjectionSystem
from .overview import SCAN_SECONDS
from .ring import NOWHERE

if TYPE_CHECKING:
    from ..store import Address, Position, Row
    from .channel import Channel
    from .hub import Hub

_AT_ONCE = 500


class Rows:
    """Reads for the channels of one hub."""

    def __init__(self, hub: Hub, system: ProjectionSystem) -> None:
        self._hub, self._system = hub, system

    def read(self, channel: Channel) -> None:
        """Read the row of a channel, and tell it ``row_came`` or ``no_row_came``."""
        reactor, system = self._hub.reactor, self._system

        def came(future: Future[Row | None]) -> None:
            error = future.exception()
            if error is None:
                reactor.call(channel.row_came, future.result())
            else:
                reactor.call(channel.no_row_came, error)

        source = self._hub.sources.get(channel.name)
        try:
            reading = (
                system.submit_read(channel.name, channel.key)
                if source is None
                else system.submit(source, seconds=SCAN_SECONDS)
            )
            reading.add_done_callback(came)
        except Exception as error:
            reactor.call(channel.no_row_came, error)

    def compare(
        self,
        channels: Sequence[Channel],
        *,
        same: Callable[[Channel], None],
        behind: Callable[[Channel], None],
    ) -> None:
        """Ask where the rows stand, 500 a query, and tell of each channel whether what was published reaches that.

        Those whose rows can't be asked for are ``behind``: the reads that this makes try again.
        """
        for start in range(0, len(channels), _AT_ONCE):
            self._compare_some(channels[start : start + _AT_ONCE], same, behind)

    def _compare_some(
        self, channels: Sequence[Channel], same: Callable[[Channel], None], behind: Callable[[Channel], None]
    ) -> None:
        heads = [None if (ring := channel.ring) is None else ring.head for channel in channels]
        addresses = [(channel.name, channel.key) for channel in channels]

        def came(future: Future[dict[Address, Position]]) -> None:
            known = future.exception() is None
            positions = future.result() if known else {}
            for channel, address, head in zip(channels, addresses, heads, strict=True):
                reached = known and _reaches(head, positions.get(address, NOWHERE))
                (same if reached else behind)(channel)

        try:
            asking = self._system.submit(lambda: self._system.store.positions(addresses))
        except Closed:
            return
        asking.add_done_callback(lambda future: self._hub.reactor.call(came, future))


def _reaches(head: Position | None, row: Position) -> bool:
    """Say whether what was published reaches the row, or is newer: the row is some time old by now."""
    return head is not None and row.epoch == head.epoch and row.version <= head.version
