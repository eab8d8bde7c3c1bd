"""Committed rows for channels, read on threads that may wait, and brought back to the reactor's."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ...actors import Closed, ProjectionSystem
from ...store import differ
from ..operator.overview import SCAN_SECONDS
from .channels.deltas import NO_COMMIT

if TYPE_CHECKING:
    from ...store import Head, Row, RowKey
    from .channels.channel import Channel
    from .hub import Hub

_AT_ONCE = 500


class RowReader:
    """Reads for the channels of one hub."""

    def __init__(self, hub: Hub, system: ProjectionSystem) -> None:
        self._hub, self._system = hub, system

    def read(self, channel: Channel) -> None:
        """Read the row of a channel, and tell it ``row_came`` or ``no_row_came``.

        Where the channel knows of an epoch that the row has to leave, it is given another one first.
        """
        reactor, system, leaves = self._hub.reactor, self._system, channel.leaving

        def came(future: Future[Row | None]) -> None:
            error = future.exception()
            if error is not None:
                reactor.call(channel.no_row_came, error)
                return
            reactor.call(channel.row_came, future.result())
            if leaves is not None:
                self._hub.cross_process_sync.hint(channel.text)

        source = self._hub.sources.get(channel.name)
        try:
            reading = (
                system.submit_read(channel.name, channel.key, leaves=leaves)
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
        differs: Callable[[Channel], None],
    ) -> None:
        """Ask which commits the rows hold, 500 a query, and tell of each channel whether its ring leads there.

        Those whose rows are elsewhere, or can't be asked for, are told by ``differs``: the reads that this makes find
        out where.
        """
        for start in range(0, len(channels), _AT_ONCE):
            self._compare_some(channels[start : start + _AT_ONCE], same, differs)

    def _compare_some(
        self, channels: Sequence[Channel], same: Callable[[Channel], None], differs: Callable[[Channel], None]
    ) -> None:
        # Taken before the question: a row that has not come so far has gone back.
        commits = [
            None if (recent_deltas := channel.recent_deltas) is None else recent_deltas.commit
            for channel in channels
        ]
        row_keys = [(channel.name, channel.key) for channel in channels]

        def came(future: Future[dict[RowKey, Head]]) -> None:
            known = future.exception() is None
            heads = future.result() if known else {}
            for channel, row_key, commit in zip(channels, row_keys, commits, strict=True):
                reached = known and _is_at(commit, heads.get(row_key, NO_COMMIT))
                # Each by itself: what goes wrong in one channel is not to reach the others.
                self._hub.reactor.call(same if reached else differs, channel)

        try:
            asking = self._system.submit(lambda: self._system.store.heads(row_keys))
        except Closed:
            return
        asking.add_done_callback(lambda future: self._hub.reactor.call(came, future))


def _is_at(commit: Head | None, row: Head) -> bool:
    """Say whether a ring led to the very commit that a row holds."""
    return (
        commit is not None and commit.position == row.position and not differ(commit.commit_id, row.commit_id)
    )
