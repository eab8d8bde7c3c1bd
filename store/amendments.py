"""Changing a row and the letters of its key together: halting, resuming, retrying, skipping."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from .database import is_postgres
from .records import Amendment

if TYPE_CHECKING:
    import peewee

_LOCK_ROW = (
    "SELECT epoch, version, halted FROM projection_snapshots WHERE projection_name = ? AND key = ? {lock}"
)
_LOCK_LETTER = (
    "SELECT id FROM projection_dead_letters WHERE id = ? AND projection_name = ? AND key = ? {lock}"
)
_REMOVE = "DELETE FROM projection_dead_letters WHERE id = ?"
_KEEP = """
    INSERT INTO projection_dead_letters (projection_name, key, event_type, event, error, traceback, parked, at)
    VALUES (?, ?, ?, ?, ?, ?, ?, ?)
"""
_INSERT = """
    INSERT INTO projection_snapshots
        (projection_name, key, epoch, version, schema_version, state, updated_at, halted)
    VALUES (?, ?, ?, ?, ?, {state}, ?, ?) ON CONFLICT DO NOTHING
"""
_UPDATE = """
    UPDATE projection_snapshots
    SET epoch = ?, version = ?, schema_version = ?, state = {state}, updated_at = ?
    WHERE projection_name = ? AND key = ?
"""
_FLAG = """
    UPDATE projection_snapshots SET halted = ? OR EXISTS (
        SELECT 1 FROM projection_dead_letters AS l WHERE l.projection_name = ? AND l.key = ? AND l.parked
    )
    WHERE projection_name = ? AND key = ?
"""


def amend(database: peewee.Database, amendment: Amendment) -> bool:
    """Make one amendment within the caller's transaction. False: its base was gone, and nothing is changed.

    Several statements, and the row is locked by the first: whoever parks an event for the key at the same
    time has done so before, and is seen, or comes later, and finds the position or the halt changed.
    """

    def run(sql: str, *parameters: Any) -> Any:
        if postgres:
            sql = sql.format(lock="FOR UPDATE", state="?::jsonb").replace("?", "%s")
        else:
            sql = sql.format(lock="", state="?")
        return database.execute_sql(sql, parameters)

    postgres = is_postgres(database)
    name, key, base, was_halted, position, state, schema_version, halt, letters, removed = amendment
    now: Any = datetime.now(UTC)
    now = now if postgres else now.isoformat()
    if base is not None and run(_LOCK_ROW, name, key).fetchone() != (*base, was_halted):
        return False
    if not all(run(_LOCK_LETTER, letter, name, key).fetchone() for letter in removed):
        return False
    text = "null" if state is None else state.decode()
    if base is None:
        inserted = run(_INSERT, name, key, *position, schema_version, text, now, halt)
        if inserted.rowcount != 1:
            return False
    elif state is not None:
        run(_UPDATE, *position, schema_version, text, now, name, key)
    for letter in removed:
        run(_REMOVE, letter)
    for kept in letters:
        run(_KEEP, *kept, now)
    run(_FLAG, halt, name, key, name, key)
    return True
