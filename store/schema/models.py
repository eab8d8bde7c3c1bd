"""The tables, as Peewee models bound to no database: run a query by ``query.execute(db)``.

Peewee's JSONField needs to know the dialect: read ``state`` within ``db.bind_ctx([ProjectionSnapshot])``.
"""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import peewee

from ..rows import as_utc

NAME_LENGTH = 128
KEY_LENGTH = 512


class UtcField(peewee.Field):
    """A moment in UTC: timestamptz on PostgreSQL, ISO 8601 text on SQLite (which sorts as time does)."""

    field_type = "TIMESTAMPTZ"

    def db_value(self, value: datetime | None) -> str | None:
        """Return what the driver takes."""
        return None if value is None else value.astimezone(UTC).isoformat()

    def python_value(self, value: Any) -> datetime | None:
        """Return a datetime in UTC."""
        return None if value is None else as_utc(value)


class ProjectionSnapshot(peewee.Model):
    """The newest state of each key. A wiped key stays as a tombstone: version 0 and a new epoch."""

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
        """Same table and key as in the seed."""

        table_name = "projection_snapshots"
        primary_key = peewee.CompositeKey("projection_name", "key")


class ProjectionDeadLetter(peewee.Model):
    """Events that could not be folded. ``event`` is text: PostgreSQL's JSON takes no escaped NUL."""

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
        """Found by projection and key."""

        table_name = "projection_dead_letters"
        indexes = ((("projection_name", "key"), False),)


class ProjectionWriter(peewee.Model):
    """The ledger of commits: the last turn that each writer committed (see store/dialects/postgres.py)."""

    writer = peewee.CharField(max_length=32, primary_key=True)
    turn = peewee.BigIntegerField()
    at = UtcField()

    class Meta:
        """One row a process."""

        table_name = "projection_writers"
