"""Changing a row and the dead letters of its key together: halting, resuming, retrying, skipping."""

from __future__ import annotations

from collections.abc import Callable
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Any

from ..rows import Amendment, differ

if TYPE_CHECKING:
    import peewee

    from .statements import Statements


def amend(database: peewee.Database, statements: Statements, amendment: Amendment) -> bool:
    """Make one amendment within the caller's transaction.

    It takes several statements, and the first one locks the row. Another transaction that parks an event for
    the key at the same time has either ended before, so that its letter is seen, or comes later and finds the
    position or the halt changed.

    Returns:
        Whether the row and the letters were still there; if not, nothing is changed.
    """

    def run(sql: str, *parameters: Any) -> Any:
        return database.execute_sql(sql, parameters)

    name, key, base, _, position, state, schema_version, halt, letters, removed, _, commit_id = amendment
    if not _lock(run, statements, amendment):
        return False
    now = datetime.now(UTC).isoformat()
    text = "null" if state is None else state.decode()
    if base is None:
        inserted = run(
            statements.insert_row, name, key, *position, schema_version, text, now, halt, commit_id
        )
        if inserted.rowcount != 1:
            return False
    elif state is not None:
        run(statements.update_row, *position, schema_version, text, now, commit_id, name, key)
    elif position.epoch != base.epoch:
        run(statements.update_epoch, position.epoch, name, key)
    for number in removed:
        run(statements.delete_letter, number)
    for letter in letters:
        run(statements.insert_letter, *letter, now)
    run(statements.update_halted, halt, name, key, name, key)
    return True


def _lock(run: Callable[..., Any], statements: Statements, amendment: Amendment) -> bool:
    """Lock the row and the letters of an amendment, and return whether all of them are still there."""
    name, key, base = amendment.name, amendment.key, amendment.base
    if base is not None:
        *found, commit_id = run(statements.lock_row, name, key).fetchone() or (None,)
        if found != [*base, amendment.was_halted] or differ(commit_id, amendment.base_commit_id):
            return False
    return all(run(statements.lock_letter, number, name, key).fetchone() for number in amendment.removed)
