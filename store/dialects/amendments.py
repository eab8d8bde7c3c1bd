"""Changing a row and the letters of its key together: halting, resuming, retrying, skipping."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..connect.database import is_postgres
from ..rows import Amendment, differ

if TYPE_CHECKING:
    import peewee

_LOCK_ROW = (
    "SELECT epoch, version, halted, commit_id FROM projection_snapshots "
    "WHERE projection_name = ? AND key = ? {lock}"
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
        (projection_name, key, epoch, version, schema_version, state, updated_at, halted, commit_id)
    VALUES (?, ?, ?, ?, ?, {state}, ?, ?, ?) ON CONFLICT DO NOTHING
"""
_UPDATE = """
    UPDATE projection_snapshots
    SET epoch = ?, version = ?, schema_version = ?, state = {state}, updated_at = ?, commit_id = ?
    WHERE projection_name = ? AND key = ?
"""
_NEW_EPOCH = "UPDATE projection_snapshots SET epoch = ? WHERE projection_name = ? AND key = ?"
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
    name, key, base, _, position, state, schema_version, halt, letters, removed, _, commit_id = amendment
    now: Any = datetime.now(UTC)
    now = now if postgres else now.isoformat()
    if not _lock(run, amendment):
        return False
    text = "null" if state is None else state.decode()
    if base is None:
        inserted = run(_INSERT, name, key, *position, schema_version, text, now, halt, commit_id)
        if inserted.rowcount != 1:
            return False
    elif state is not None:
        run(_UPDATE, *position, schema_version, text, now, commit_id, name, key)
    elif position.epoch != base.epoch:
        run(_NEW_EPOCH, position.epoch, name, key)
    for letter in removed:
        run(_REMOVE, letter)
    for kept in letters:
        run(_KEEP, *kept, now)
    run(_FLAG, halt, name, key, name, key)
    return True


def _lock(run: Callable[..., Any], amendment: Amendment) -> bool:
    """Lock what the amendment is for. False: not all of it is there any more."""
    name, key, base = amendment.name, amendment.key, amendment.base
    if base is not None:
        *found, commit_id = run(_LOCK_ROW, name, key).fetchone() or (None,)
        if found != [*base, amendment.was_halted] or differ(commit_id, amendment.base_commit_id):
            return False
    return all(run(_LOCK_LETTER, letter, name, key).fetchone() for letter in amendment.removed)
