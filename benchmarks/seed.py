"""The seed's algorithm (ferro-projection): one lock per key; select, upsert and commit per event."""

from __future__ import annotations

import json
import sqlite3
import threading
from collections import defaultdict
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import psycopg2

_TABLE = (
    "CREATE TABLE IF NOT EXISTS seed "
    "(name text, key text, state {json}, version bigint, updated_at {at}, PRIMARY KEY (name, key))"
)


class Seed:
    """Folds (key, amount) events into counters, each event in a transaction of its own."""

    def __init__(self, url: str) -> None:
        self._postgres = url.startswith("postgresql")
        self._target = url if self._postgres else url.removeprefix("sqlite:///")
        self._mark = "%s" if self._postgres else "?"
        self._local = threading.local()
        self._locks: dict[str, threading.Lock] = defaultdict(threading.Lock)
        cursor = self._cursor()
        cursor.execute("DROP TABLE IF EXISTS seed")
        json_type, at = ("jsonb", "timestamptz") if self._postgres else ("text", "text")
        cursor.execute(_TABLE.format(json=json_type, at=at))
        cursor.connection.commit()

    def run(self, events: Sequence[tuple[str, int]], threads: int) -> int:
        """Apply all events on this number of threads. Return the number of events."""
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(self._apply_all, [events[n::threads] for n in range(threads)]))
        return len(events)

    def total(self) -> int:
        """Return the sum of all counters."""
        cursor = self._cursor()
        cursor.execute("SELECT state FROM seed")
        states = [row[0] if isinstance(row[0], dict) else json.loads(row[0]) for row in cursor.fetchall()]
        cursor.connection.commit()
        return sum(state["total"] for state in states)

    def _apply_all(self, events: Sequence[tuple[str, int]]) -> None:
        for key, amount in events:
            self.apply(key, amount)

    def apply(self, key: str, amount: int) -> None:
        """Lock the key; select, apply, upsert, commit."""
        mark = self._mark
        with self._locks[key]:
            cursor = self._cursor()
            if not self._postgres:
                cursor.execute("BEGIN IMMEDIATE")
            cursor.execute(f"SELECT state, version FROM seed WHERE name = 'bench' AND key = {mark}", (key,))
            found = cursor.fetchone()
            state, version = found or ({"total": 0}, 0)
            if isinstance(state, str):
                state = json.loads(state)
            state["total"] += amount
            cursor.execute(
                f"INSERT INTO seed VALUES ('bench', {mark}, {mark}, {mark}, CURRENT_TIMESTAMP) "
                "ON CONFLICT (name, key) DO UPDATE "
                "SET state = excluded.state, version = excluded.version, updated_at = excluded.updated_at",
                (key, json.dumps(state), version + 1),
            )
            cursor.connection.commit()

    def _cursor(self) -> Any:
        if not hasattr(self._local, "cursor"):
            if self._postgres:
                connection: Any = psycopg2.connect(self._target)
            else:
                connection = sqlite3.connect(self._target, isolation_level=None, timeout=60)
                connection.execute("PRAGMA journal_mode = wal")
                connection.execute("PRAGMA synchronous = normal")
            self._local.cursor = connection.cursor()
        return self._local.cursor
