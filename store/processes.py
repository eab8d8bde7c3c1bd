"""The processes that work on one database, as they report themselves."""

from __future__ import annotations

from time import time
from typing import TYPE_CHECKING, Any

import msgspec

if TYPE_CHECKING:
    from .snapshot_store import SnapshotStore

_REPORT = """
    INSERT INTO projection_processes (process, facts, at) VALUES (?, ?, ?)
    ON CONFLICT (process) DO UPDATE SET facts = excluded.facts, at = excluded.at
"""
_READ = "SELECT facts, at FROM projection_processes WHERE at > ? ORDER BY process"
_FORGET = "DELETE FROM projection_processes WHERE at < ?"
_LEAVE = "DELETE FROM projection_processes WHERE process = ?"
_FORGOTTEN_SECONDS = 3600.0


class Processes:
    """One row per process: a report replaces the one before. Clocks of several machines are taken to agree roughly."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._forgot_at = 0.0

    def report(self, process: str, facts: dict[str, Any]) -> None:
        """Write what a process says of itself; now and then, remove those that have said nothing for an hour.

        A process that is killed, or that ends at exit, removes nothing, so those that go on do it.

        Raises:
            StoreError: The database can't be used.
        """
        now = time()
        self._run(_REPORT, process, msgspec.json.encode(facts).decode(), now)
        if abs(now - self._forgot_at) > _FORGOTTEN_SECONDS:
            self._run(_FORGET, now - _FORGOTTEN_SECONDS)
            self._forgot_at = now

    def leave(self, process: str) -> None:
        """Remove a process that ends."""
        self._run(_LEAVE, process)

    def recent(self, seconds: float) -> list[dict[str, Any]]:
        """Return what each process said within so many seconds, with the report's age in ``reported_ago``."""
        now = time()
        return [
            {**msgspec.json.decode(facts), "reported_ago": round(max(0.0, now - at), 1)}
            for facts, at in self._run(_READ, now - seconds, rows=True)
        ]

    def _run(self, sql: str, *parameters: Any, rows: bool = False) -> Any:
        self._store.ensure_tables()
        database = self._store.database

        def run() -> Any:
            cursor = database.execute_sql(sql.replace("?", database.param), parameters)
            return cursor.fetchall() if rows else None

        return self._store.run(run)
