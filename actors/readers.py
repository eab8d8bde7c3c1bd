"""The few threads that read rows, so that request threads hold no database connection."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
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

    def stop(self) -> None:
        """Finish the reads under way, and close the threads' connections."""
        with contextlib.suppress(RuntimeError):  # at the interpreter's exit the threads have ended already
            for _ in range(_THREADS):
                self._pool.submit(self._store.disconnect)
        self._pool.shutdown()
