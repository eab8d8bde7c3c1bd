"""The tables as Peewee models.

They are bound to no database: run a query by ``query.execute(db)``. Peewee's JSONField needs to know the kind
of
database: read ``state`` within ``db.bind_ctx([ProjectionSnapshot])``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import peewee

from ..rows import as_utc

NAME_LENGTH = 128
KEY_LENGTH = 512


class UtcField(peewee.Field):
    """A moment in UTC: timestamptz on PostgreSQL; ISO 8601 text on SQLite, which sorts by time."""

    field_type = "TIMESTAMPTZ"

    def db_value(self, value: datetime | None) -> str | None:
        """Return a moment as the driver takes it."""
        return None if value is None else value.astimezone(UTC).isoformat()

    def python_value(self, value: Any) -> datetime | None:
        """Return a datetime in UTC."""
        return None if value is None else as_utc(value)


class ProjectionSnapshot(peewee.Model):
    """The newest state of each key.

    A wiped key stays as a tombstone: version 0 and a new epoch.

    Attributes:
        projection_name: The name of the projection, up to 128 characters.
        key: The key, up to 512 characters.
        state: The state as JSON.
        epoch: The epoch of the key's position.
        version: The version of the key's position.
        schema_version: The schema version of the projection that wrote the state.
        updated_at: When the row was written, in UTC.
        halted: Events for the key are parked until an operator resumes it.
        commit_id: The id of the commit that wrote the row; None in rows of older releases.
    """

    projection_name = peewee.CharField(max_length=NAME_LENGTH)
    key = peewee.CharField(max_length=KEY_LENGTH)
    state = peewee.JSONField()
    epoch = peewee.CharField(max_length=32)
    version = peewee.BigIntegerField()
    schema_version = peewee.IntegerField(default=1)
    updated_at = UtcField()
    halted = peewee.BooleanField(default=False)
    commit_id = peewee.CharField(max_length=32, null=True)

    class Meta:
        """The table, with the row key as its primary key."""

        table_name = "projection_snapshots"
        primary_key = peewee.CompositeKey("projection_name", "key")


class ProjectionDeadLetter(peewee.Model):
    """Events that could not be folded.

    Attributes:
        id: The number of the letter. Later letters have larger ones.
        projection_name: The name of the projection.
        key: The key that the event was routed to.
        event_type: The name of the event's class.
        event: The event's JSON, as text: PostgreSQL's JSON types take no escaped NUL.
        error: The class and the text of the error.
        traceback: The traceback of the error.
        at: When the letter was inserted, in UTC.
        parked: The event waits for its key to be resumed.
    """

    id = peewee.BigAutoField()
    projection_name = peewee.CharField(max_length=NAME_LENGTH)
    key = peewee.CharField(max_length=KEY_LENGTH)
    event_type = peewee.TextField()
    event = peewee.TextField()
    error = peewee.TextField()
    traceback = peewee.TextField()
    at = UtcField()
    parked = peewee.BooleanField(default=False)

    class Meta:
        """The table, with an index by row key."""

        table_name = "projection_dead_letters"
        indexes = ((("projection_name", "key"), False),)


class ProjectionWriter(peewee.Model):
    """The ledger of commits: one row per running writer, on PostgreSQL.

    Attributes:
        writer: The random id of the writer.
        turn: The transaction number of the writer's last commit.
        at: When that was, in UTC.
    """

    writer = peewee.CharField(max_length=32, primary_key=True)
    turn = peewee.BigIntegerField()
    at = UtcField()

    class Meta:
        """The table."""

        table_name = "projection_writers"
