"""Other libraries that fold events into rows of PostgreSQL, each used as its documentation recommends."""

from __future__ import annotations

import json
import os
import uuid
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Any

import psycopg2
from eventsourcing.application import Application
from eventsourcing.domain import Aggregate, event
from eventsourcing.persistence import Tracking
from eventsourcing.postgres import PostgresDatastore, PostgresTrackingRecorder
from eventsourcing.projection import Projection, ProjectionRunner
from eventsourcing.utils import get_topic
from psycopg.sql import SQL
from psycopg2.extras import execute_values


class Count(Aggregate):
    """One key; eventsourcing stores its events."""

    class Added(Aggregate.Event):
        """An amount was added."""

        by: int

    def __init__(self) -> None:
        self.total = 0

    @event(Added)
    def add(self, by: int) -> None:
        self.total += by


class Counts(Application[uuid.UUID]):
    """The application that stores the events."""


class Totals(PostgresTrackingRecorder):
    """The materialised view: one total per key, written in one transaction with its position in the log."""

    def __init__(self, datastore: PostgresDatastore, **options: Any) -> None:
        super().__init__(datastore, **options)
        self.sql_create_statements.append(
            SQL("CREATE TABLE IF NOT EXISTS peer_totals (key uuid PRIMARY KEY, total bigint)")
        )

    def add(self, key: uuid.UUID, by: int, tracking: Tracking) -> None:
        with self.datastore.transaction(commit=True) as cursor:
            self._insert_tracking(cursor, tracking)
            cursor.execute(
                "INSERT INTO peer_totals VALUES (%s, %s) "
                "ON CONFLICT (key) DO UPDATE SET total = peer_totals.total + excluded.total",
                (key, by),
            )


class Adding(Projection[Totals]):
    """Passes each event to the view."""

    topics = (get_topic(Count.Added),)

    def process_event(self, domain_event: Any, tracking: Tracking) -> None:
        self.view.add(domain_event.originator_id, domain_event.by, tracking)


class EventSourced:
    """eventsourcing's ProjectionRunner. Its events are stored before the time starts, in its favour."""

    def __init__(self, url: str, keys: int) -> None:
        parts = psycopg2.extensions.parse_dsn(url)
        self._env = {
            "PERSISTENCE_MODULE": "eventsourcing.postgres",
            "POSTGRES_DBNAME": parts["dbname"],
            "POSTGRES_HOST": parts.get("host", ""),
            "POSTGRES_PORT": parts.get("port", "5432"),
            "POSTGRES_USER": parts.get("user", os.environ.get("USER", "postgres")),
            "POSTGRES_PASSWORD": parts.get("password", ""),
        }
        self._application = Counts(env=self._env)
        self._counts = [Count() for _ in range(keys)]
        self._url = url
        self._expected = 0

    def project(self, count: int) -> int:
        """Run the projection until it has processed all that is stored, which is ``count`` events."""
        with ProjectionRunner(
            application_class=Counts, projection_class=Adding, view_class=Totals, env=self._env
        ) as runner:
            runner.wait(self._application.recorder.max_notification_id(), timeout=300)
        return count

    def store(self, count: int) -> None:
        """Store events to be projected."""
        share = count // len(self._counts)
        for counted in self._counts:
            for _ in range(share):
                counted.add(1)
            self._application.save(counted)
        self._expected += share * len(self._counts)

    def check(self) -> None:
        """Fail unless the view holds all that was stored."""
        with psycopg2.connect(self._url) as connection, connection.cursor() as cursor:
            cursor.execute("SELECT sum(total) FROM peer_totals")
            [total] = cursor.fetchone() or [0]
        connection.close()
        self._application.close()
        assert total == self._expected, (total, self._expected)


class RawStatement:
    """The minimal version-checked write of many rows: one statement and one commit per batch."""

    _UPDATE = (
        "UPDATE raw_rows SET state = new.state::jsonb, version = new.version::bigint, "
        "updated_at = new.at::timestamptz "
        "FROM (VALUES %s) AS new (name, key, base, version, state, at) "
        "WHERE raw_rows.name = new.name AND raw_rows.key = new.key AND raw_rows.version = new.base::bigint"
    )

    def __init__(self, url: str, keys: int) -> None:
        self._connection = psycopg2.connect(url)
        self._cursor = self._connection.cursor()
        self._cursor.execute(
            "CREATE TABLE raw_rows "
            "(name text, key text, state jsonb, version bigint, updated_at timestamptz, "
            "PRIMARY KEY (name, key))"
        )
        rows = [("bench", f"key {n}", '{"total":0}', 0, datetime.now(UTC)) for n in range(keys)]
        execute_values(self._cursor, "INSERT INTO raw_rows VALUES %s", rows, page_size=1_000)
        self._connection.commit()

    def write(self, keys: Sequence[str], base: int) -> int:
        """Write each row once over version ``base``, all in one transaction. Return the number of rows."""
        state, at = json.dumps({"total": base + 1}), datetime.now(UTC).isoformat()
        rows = [("bench", key, base, base + 1, state, at) for key in keys]
        execute_values(self._cursor, self._UPDATE, rows, page_size=len(rows))
        assert self._cursor.rowcount == len(rows)
        self._connection.commit()
        return len(rows)

    def close(self) -> None:
        self._connection.close()
