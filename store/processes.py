"""The processes that work on one database, as they report themselves."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .snapshot_store import SnapshotStore

_MAX_SILENT_SECONDS = 3600.0


class Processes:
    """One row per process; each report replaces the one before.

    The clocks of several machines are taken to agree roughly. All methods raise StoreError if the database
    can't be used.
    """

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._statements = store.dialect.statements
        self._cleaned_up_at = 0.0

    def report(self, process: str, details: dict[str, Any]) -> None:
        """Write the report of a process.

        Once per hour it also removes the processes that have been silent for an hour: a process
        that is killed, or that ends at the interpreter's exit, does not remove itself.

        Args:
            process: The id of the process, up to 64 characters.
            details: JSON-able values.
        """
        now = time()
        self._run(self._statements.report_process, process, msgspec.json.encode(details).decode(), now)
        if abs(now - self._cleaned_up_at) > _MAX_SILENT_SECONDS:
            self._run(self._statements.delete_old_processes, now - _MAX_SILENT_SECONDS)
            self._cleaned_up_at = now

    def leave(self, process: str) -> None:
        """Remove a process that ends."""
        self._run(self._statements.delete_process, process)

    def recent(self, seconds: float) -> list[dict[str, Any]]:
        """Return the reports of the last ``seconds``, each with its age in seconds as ``reported_ago``."""
        now = time()
        rows = self._run(self._statements.recent_processes, now - seconds, fetch=True)
        return [
            {**msgspec.json.decode(details), "reported_ago": round(max(0.0, now - at), 1)}
            for details, at in rows
        ]

    def _run(self, sql: str, *parameters: Any, fetch: bool = False) -> Any:
        self._store.ensure_tables()

        def run() -> Any:
            cursor = self._store.database.execute_sql(sql, parameters)
            return cursor.fetchall() if fetch else None

        return self._store.run(run)
