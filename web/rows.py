"""Committed rows for channels, read on threads that may wait, and brought back to the reactor's."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ..actors import Closed, ProjectionSystem

if TYPE_CHECKING:
    from ..store import Address, Row
    from .channel import Channel
    from .hub import Hub


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
                system.submit_read(channel.name, channel.key) if source is None else system.submit(source)
            )
            reading.add_done_callback(came)
        except Exception as error:
            reactor.call(channel.no_row_came, error)

    def read_many(self, addresses: list[Address], came: Callable[[Future[dict[Address, Row]]], None]) -> None:
        """Read rows by one query, and call ``came`` on the reactor's thread."""
        reactor = self._hub.reactor
        try:
            reading = self._system.submit(lambda: self._system.store.rows(addresses))
        except Closed:
            return
        reading.add_done_callback(lambda future: reactor.call(came, future))
