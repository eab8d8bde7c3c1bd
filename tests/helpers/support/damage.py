"""Rows that do not load, as another release, a migration or a person would make them."""

from __future__ import annotations

from keyfold.actors import ProjectionSystem

BROKEN = '{"total": "many", "amounts": []}'
"""JSON, but no state of Totals."""


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
