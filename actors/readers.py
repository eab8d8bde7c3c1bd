"""The few threads that read rows, so that request threads hold no database connection."""

from __future__ import annotations

import contextlib
from concurrent.futures import Future, ThreadPoolExecutor
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from ..store import Row, SnapshotStore

_THREADS = 2


class Readers:
    """Reads committed rows on two threads of its own."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._pool = ThreadPoolExecutor(
            _THREADS, thread_name_prefix="keyfold-reader", initializer=store.keep_connection
        )

    def submit(self, name: str, key: str) -> Future[Row | None]:
        """Return the future of the row (None where there is none). It fails with StoreError."""
        return self._pool.submit(self._store.row, name, key)

    def stop(self) -> None:
        """Finish the reads under way, and close the threads' connections."""
        with contextlib.suppress(RuntimeError):  # at the interpreter's exit the threads have ended already
            for _ in range(_THREADS):
                self._pool.submit(self._store.disconnect)
        self._pool.shutdown()
