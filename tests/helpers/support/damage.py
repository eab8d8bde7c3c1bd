"""Rows that do not load or have gone back, as after another release, a restored backup or a manual change."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import peewee
from keyfold.actors import ProjectionSystem
from keyfold.store import SnapshotStore
from keyfold.store.rows import Row, RowKey

BROKEN = '{"total": "many", "amounts": []}'
"""JSON, but not a state of Totals."""


def damage(
    system: ProjectionSystem, key: str, state: str = BROKEN, *, name: str = "test.totals", schema: int = 1
) -> None:
    """Put this text in place of the state that a row has."""
    database = system.store.database
    sql = (
        f"UPDATE projection_snapshots SET state = {database.param}, schema_version = {database.param} "
        f"WHERE projection_name = {database.param} AND key = {database.param}"
    )
    changed = system.store.run(lambda: database.execute_sql(sql, (state, schema, name, key)).rowcount)
    assert changed == 1, f"{name} has no row of {key}"


class Copy(NamedTuple):
    """A row as a backup has it. ``values`` is empty where there was none."""

    name: str
    key: str
    values: dict[str, Any]


def copy_row(store: SnapshotStore, key: str, *, name: str = "test.totals") -> Copy:
    """Return a copy of a row, to be put back later."""
    database = store.database
    postgres = isinstance(database, peewee.PostgresqlDatabase)

    def read() -> dict[str, Any]:
        columns = [column.name for column in database.get_columns("projection_snapshots")]
        wanted = ", ".join("state::text" if postgres and column == "state" else column for column in columns)
        sql = f"SELECT {wanted} FROM projection_snapshots WHERE projection_name = {{0}} AND key = {{0}}"
        row = database.execute_sql(sql.format(database.param), (name, key)).fetchone()
        return {} if row is None else dict(zip(columns, row, strict=True))

    store.ensure_tables()
    return Copy(name, key, store.run(read))


def restore(store: SnapshotStore, copy: Copy) -> None:
    """Set a row back to its copy: later commits are lost."""
    database = store.database

    def write() -> None:
        with database.atomic():
            sql = "DELETE FROM projection_snapshots WHERE projection_name = {0} AND key = {0}"
            database.execute_sql(sql.format(database.param), (copy.name, copy.key))
            if copy.values:
                columns, values = zip(*copy.values.items(), strict=True)
                sql = (
                    f"INSERT INTO projection_snapshots ({', '.join(columns)}) "
                    f"VALUES ({', '.join([database.param] * len(columns))})"
                )
                database.execute_sql(sql, values)

    store.run(write)


class Replica:
    """A replica that stays at the present version of one row. The store reads this row from it."""

    def __init__(self, store: SnapshotStore, name: str, key: str) -> None:
        self._store, self._row_key = store, (name, key)
        self._row = store.rows([self._row_key])
        self._primary = store.rows
        store.rows = self._rows  # type: ignore[method-assign]

    def _rows(self, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        rows = self._primary(row_keys)
        return rows | self._row if self._row_key in row_keys else rows

    def catch_up(self) -> None:
        """Let the store read the present row again."""
        self._store.rows = self._primary  # type: ignore[method-assign]
