"""The few threads that read rows, so that request threads hold no database connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor, wait
from typing import TYPE_CHECKING, TypeVar

if TYPE_CHECKING:
    from ..store import SnapshotStore

T = TypeVar("T")

_THREADS = 2


class Readers:
    """Asks the database on two threads of its own."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="keyfold-reader", initializer=store.keep_connection
        )

    def submit(self, ask: Callable[[], T]) -> Future[T]:
        """Return the future of what ``ask`` returns. It fails with what that raises, a StoreError mostly."""
        return self._pool.submit(ask)

    def stop(self, last: Callable[[], object], timeout: float) -> None:
        """Finish the reads under way and ``last``, and close the threads' connections, within timeout seconds.

        A database that does not answer keeps a thread longer; it ends with the process.
        """
        with contextlib.suppress(RuntimeError):  # at the interpreter's exit the threads have ended already
            ends = [self._pool.submit(last)]
            ends += [self._pool.submit(self._store.disconnect) for _ in range(_THREADS)]
            self._pool.shutdown(wait=False)
            if wait(ends, timeout).not_done:
                self._store.interrupt()
