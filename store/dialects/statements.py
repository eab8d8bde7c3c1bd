"""The statements that both databases spell alike."""

from __future__ import annotations

_LETTER_COLUMNS = "id, projection_name, key, event_type, event, error, traceback, parked, at"


class Statements:
    """The SQL that differs between the databases in its placeholder and in three expressions only.

    Each dialect builds it once. It has more than twelve attributes, as each statement is one of them: in this
    way all SQL stands in this package, and none of it is put together when it is run.

    Args:
        param: The driver's placeholder for a parameter.
        state_param: The placeholder of a state, with the cast that it needs.
        for_update: The end of a SELECT that locks its rows; empty if transactions lock the whole database.
        state_bytes: The size of a state as text, in bytes.
    """

    def __init__(self, *, param: str, state_param: str, for_update: str, state_bytes: str) -> None:
        p = self._param = param
        self._state_bytes = state_bytes

        # Amendments.
        self.lock_row = f"""
            SELECT epoch, version, halted, commit_id FROM projection_snapshots
            WHERE projection_name = {p} AND key = {p} {for_update}
        """
        self.lock_letter = f"""
            SELECT id FROM projection_dead_letters
            WHERE id = {p} AND projection_name = {p} AND key = {p} {for_update}
        """
        self.insert_row = f"""
            INSERT INTO projection_snapshots
                (projection_name, key, epoch, version, schema_version, state, updated_at, halted, commit_id)
            VALUES ({p}, {p}, {p}, {p}, {p}, {state_param}, {p}, {p}, {p}) ON CONFLICT DO NOTHING
        """
        self.update_row = f"""
            UPDATE projection_snapshots
            SET epoch = {p}, version = {p}, schema_version = {p}, state = {state_param}, updated_at = {p},
                commit_id = {p}
            WHERE projection_name = {p} AND key = {p}
        """
        self.update_epoch = (
            f"UPDATE projection_snapshots SET epoch = {p} WHERE projection_name = {p} AND key = {p}"
        )
        self.update_halted = f"""
            UPDATE projection_snapshots SET halted = {p} OR EXISTS (
                SELECT 1 FROM projection_dead_letters AS l
                WHERE l.projection_name = {p} AND l.key = {p} AND l.parked
            )
            WHERE projection_name = {p} AND key = {p}
        """
        self.insert_letter = f"""
            INSERT INTO projection_dead_letters
                (projection_name, key, event_type, event, error, traceback, parked, at)
            VALUES ({p}, {p}, {p}, {p}, {p}, {p}, {p}, {p})
        """
        self.delete_letter = f"DELETE FROM projection_dead_letters WHERE id = {p}"

        # Operators' queries of dead letters and keys.
        self.letter = f"SELECT {_LETTER_COLUMNS} FROM projection_dead_letters WHERE id = {p}"
        self.newest_letters = f"""
            SELECT {_LETTER_COLUMNS} FROM projection_dead_letters
            WHERE projection_name = {p} AND (NOT parked OR id IN (
                SELECT min(id) FROM projection_dead_letters
                WHERE projection_name = {p} AND parked GROUP BY key
            ))
            ORDER BY id DESC LIMIT {p}
        """
        self.count_parked = f"""
            SELECT count(*) FROM projection_dead_letters WHERE projection_name = {p} AND key = {p} AND parked
        """
        self.total_letters = "SELECT projection_name, count(*) FROM projection_dead_letters GROUP BY 1"
        self.total_parked = (
            "SELECT projection_name, count(*) FROM projection_dead_letters WHERE parked GROUP BY 1"
        )
        self.total_halted = (
            "SELECT projection_name, count(*) FROM projection_snapshots WHERE halted GROUP BY 1"
        )

        # Processes.
        self.report_process = f"""
            INSERT INTO projection_processes (process, facts, at) VALUES ({p}, {p}, {p})
            ON CONFLICT (process) DO UPDATE SET facts = excluded.facts, at = excluded.at
        """
        self.recent_processes = f"SELECT facts, at FROM projection_processes WHERE at > {p} ORDER BY process"
        self.delete_process = f"DELETE FROM projection_processes WHERE process = {p}"
        self.delete_old_processes = f"DELETE FROM projection_processes WHERE at < {p}"

        # Migrations.
        self.record_migration = f"INSERT INTO projection_migrations (number, name, at) VALUES ({p}, {p}, {p})"
        self.delete_migration = f"DELETE FROM projection_migrations WHERE number = {p}"

    def letters(self, *, name: bool, key: bool, parked: bool) -> str:
        """Return the SELECT of the oldest dead letters.

        Args:
            name: With a condition on the projection's name, whose parameter comes first.
            key: With a condition on the key, whose parameter comes next.
            parked: Parked letters only.

        Returns:
            A statement whose last two parameters are the id that all ids are above, and the limit.
        """
        where = self._where(name=name, key=key) + ("parked AND " if parked else "")
        return (
            f"SELECT {_LETTER_COLUMNS} FROM projection_dead_letters "
            f"WHERE {where}id > {self._param} ORDER BY id LIMIT {self._param}"
        )

    def keys(self, *, halted: bool, largest: bool) -> str:
        """Return the SELECT of a projection's keys, in their order or the largest first.

        Returns:
            A statement with five parameters: the projection's name, the key that all keys are above, the
            length of the prefix, the prefix, and the limit.
        """
        p = self._param
        condition = "halted" if halted else "(version > 0 OR halted)"
        order = f"{self._state_bytes} DESC, key" if largest else "key"
        return f"""
            SELECT projection_name, key, epoch, version, schema_version, halted, {self._state_bytes},
                   updated_at
            FROM projection_snapshots
            WHERE projection_name = {p} AND key > {p} AND substr(key, 1, {p}) = {p} AND {condition}
            ORDER BY {order} LIMIT {p}
        """

    def epochs(self, *, name: bool, key: bool) -> str:
        """Return the SELECT of rows' epochs in the order of their row keys.

        Args:
            name: As for ``letters``.
            key: As for ``letters``.

        Returns:
            A statement whose last three parameters are the row key that all are above, and the limit.
        """
        p = self._param
        return f"""
            SELECT projection_name, key, epoch FROM projection_snapshots
            WHERE {self._where(name=name, key=key)} (projection_name, key) > ({p}, {p})
            ORDER BY projection_name, key LIMIT {p}
        """

    def _where(self, *, name: bool, key: bool) -> str:
        return (f"projection_name = {self._param} AND " if name else "") + (
            f"key = {self._param} AND " if key else ""
        )
