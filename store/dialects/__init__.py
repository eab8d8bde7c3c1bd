"""The SQL of SQLite and of PostgreSQL: one class per database, and nothing but them knows which one it is."""

from __future__ import annotations

from typing import TYPE_CHECKING

import peewee

from .postgres import PostgresDialect
from .sqlite import SqliteDialect

if TYPE_CHECKING:
    from .base import Dialect


def new_dialect(database: peewee.Database) -> Dialect:
    """Return a new dialect for a database that ``open_database`` has returned."""
    return PostgresDialect() if isinstance(database, peewee.PostgresqlDatabase) else SqliteDialect()
