"""Reads of committed rows for channels: the readers' threads read, the reactor's thread gets the answers."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from concurrent.futures import Future
from typing import TYPE_CHECKING

from ...actors import Closed
from ...store.rows import differ
from .channels.deltas import NO_COMMIT

if TYPE_CHECKING:
    from ...actors import ProjectionSystem
    from ...store.rows import Head, Row, RowKey
    from .backplane.cross_process_sync import CrossProcessSync
    from .channels.channel import Channel
    from .reactor import Reactor

_MAX_KEYS_PER_QUERY = 500


class RowReader:
    """Reads the rows of the channels of one hub. Called on the reactor's thread."""

    def __init__(self, reactor: Reactor, cross_process_sync: CrossProcessSync) -> None:
        self._reactor = reactor
        self._cross_process_sync = cross_process_sync

    def read(self, channel: Channel, lost: Head | None) -> None:
        """Read the row of a channel, then call its ``row_came`` or ``no_row_came``.

        The read begins once no commit of another process can be missed after it.

        Args:
            channel: The channel.
            lost: A commit that clients were shown. If the row has lost it, the row gets a new epoch first.
        """
        self._cross_process_sync.call_when_listening(channel, lambda: self._read(channel, lost))

    def _read(self, channel: Channel, lost: Head | None) -> None:
        def answer(future: Future[Row | None]) -> None:
            error = future.exception()
            if error is not None:
                self._reactor.call(channel.no_row_came, error)
                return
            self._reactor.call(channel.row_came, future.result())
            if lost is not None:
                self._cross_process_sync.hint(channel.text)

        try:
            channel.source.submit_read(channel.key, lost).add_done_callback(answer)
        except Exception as error:
            self._reactor.call(channel.no_row_came, error)


def compare_with_rows(
    channels: Sequence[Channel],
    system: ProjectionSystem,
    reactor: Reactor,
    *,
    same: Callable[[Channel], None],
    differs: Callable[[Channel], None],
) -> None:
    """Compare the newest delta of each channel with the commit that its row holds, 500 rows per query.

    A channel whose row is not in the database, or can't be queried, counts as different: the read that
    follows finds its position.

    Args:
        channels: The channels. Called on the reactor's thread.
        system: The system whose store is queried, on a reader's thread.
        reactor: Runs the answers.
        same: Called with each channel that has the deltas up to its row, on the reactor's thread.
        differs: Called with each of the other channels, on the reactor's thread.
    """
    for start in range(0, len(channels), _MAX_KEYS_PER_QUERY):
        _compare_some(channels[start : start + _MAX_KEYS_PER_QUERY], system, reactor, same, differs)


def _compare_some(
    channels: Sequence[Channel],
    system: ProjectionSystem,
    reactor: Reactor,
    same: Callable[[Channel], None],
    differs: Callable[[Channel], None],
) -> None:
    # Read before the query: a row that has not reached this commit by then has gone back.
    commits = [
        None if (recent_deltas := channel.recent_deltas) is None else recent_deltas.commit
        for channel in channels
    ]
    row_keys = [(channel.name, channel.key) for channel in channels]

    def answer(future: Future[dict[RowKey, Head]]) -> None:
        is_known = future.exception() is None
        heads = future.result() if is_known else {}
        for channel, row_key, commit in zip(channels, row_keys, commits, strict=True):
            is_same = is_known and _is_at(commit, heads.get(row_key, NO_COMMIT))
            # One call per channel: an error in one channel must not reach the others.
            reactor.call(same if is_same else differs, channel)

    try:
        query = system.submit(lambda: system.store.heads(row_keys))
    except Closed:
        return
    query.add_done_callback(lambda future: reactor.call(answer, future))


def _is_at(commit: Head | None, row: Head) -> bool:
    """Return whether the newest delta belongs to the very commit that a row holds."""
    return (
        commit is not None and commit.position == row.position and not differ(commit.commit_id, row.commit_id)
    )
