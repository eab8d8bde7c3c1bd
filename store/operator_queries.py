"""What operators ask of the tables: keys, sizes, dead letters."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from .connect.database import is_postgres
from .rows import RowKey, StoredLetter
from .schema.migrations import pending
from .schema.models import as_utc
from .validation import plain

if TYPE_CHECKING:
    from .snapshot_store import SnapshotStore

_MAX_BIGINT = 2**63 - 1
_LETTER = "id, projection_name, key, event_type, event, error, traceback, parked, at"
_KEY = "projection_name, key, epoch, version, schema_version, halted, {size}, updated_at"


class KeyFacts(NamedTuple):
    """One row of projection_snapshots but for its state. ``bytes`` is the length of that as text."""

    name: str
    key: str
    epoch: str
    version: int
    schema_version: int
    halted: bool
    bytes: int
    updated_at: datetime


class Queries:
    """Reads of one store, each one statement. All raise StoreError; none changes anything."""

    def __init__(self, store: SnapshotStore) -> None:
        self._store = store
        self._param = store.database.param
        self._size = (
            "octet_length(state::text)" if is_postgres(store.database) else "length(CAST(state AS BLOB))"
        )

    # -- dead letters

    def letters(
        self,
        name: str | None = None,
        key: str | None = None,
        *,
        parked: bool = False,
        after: int = 0,
        limit: int = 100,
    ) -> list[StoredLetter]:
        """Return the oldest dead letters with an id above ``after``; with ``parked`` only those that wait."""
        where, parameters = _where(projection_name=name, key=key)
        if parked:
            where.append("parked")
        sql = f"SELECT {_LETTER} FROM projection_dead_letters WHERE {_all(where)} AND id > ? ORDER BY id LIMIT ?"
        return self._rows(sql, *parameters, after, limit, make=_letter)

    def newest_letters(self, name: str, limit: int = 20) -> list[StoredLetter]:
        """Return the newest events of a projection that could not be folded, newest first.

        What is parked behind such an event is left out: nothing is wrong with it.
        """
        sql = (
            f"SELECT {_LETTER} FROM projection_dead_letters WHERE projection_name = ? AND (NOT parked OR id IN ("
            "SELECT min(id) FROM projection_dead_letters WHERE projection_name = ? AND parked GROUP BY key"
            ")) ORDER BY id DESC LIMIT ?"
        )
        return self._rows(sql, name, name, limit, make=_letter)

    def letter(self, number: int) -> StoredLetter | None:
        """Return a dead letter by its id, or None."""
        sql = f"SELECT {_LETTER} FROM projection_dead_letters WHERE id = ?"
        return next(iter(self._rows(sql, number, make=_letter)), None)

    def count_parked(self, name: str, key: str) -> int:
        """Return how many events are parked for a key."""
        sql = "SELECT count(*) FROM projection_dead_letters WHERE projection_name = ? AND key = ? AND parked"
        return int(self._rows(sql, name, key, make=lambda row: row[0])[0])

    def first_parked(self, name: str, key: str) -> StoredLetter | None:
        """Return the head of the events parked for a key, or None."""
        return next(iter(self.letters(name, key, parked=True, limit=1)), None)

    # -- keys

    def keys(
        self,
        name: str,
        *,
        prefix: str = "",
        after: str = "",
        halted: bool = False,
        largest: bool = False,
        limit: int = 100,
    ) -> list[KeyFacts]:
        """Return keys in their order, those above ``after`` and with this prefix; or the largest first.

        Tombstones are left out, unless they are halted. The largest take a scan of the projection's rows.
        """
        where = [
            "projection_name = ?",
            "key > ?",
            "substr(key, 1, ?) = ?",
            "halted" if halted else "(version > 0 OR halted)",
        ]
        order = f"{self._size} DESC, key" if largest else "key"
        sql = (
            f"SELECT {_KEY.format(size=self._size)} FROM projection_snapshots "
            f"WHERE {_all(where)} ORDER BY {order} LIMIT ?"
        )
        return self._rows(sql, name, after, len(prefix), prefix, limit, make=_key_facts)

    def epochs(
        self, name: str | None = None, key: str | None = None, *, after: RowKey = ("", ""), limit: int = 500
    ) -> list[tuple[str, str, str]]:
        """Return name, key and epoch of rows in their order, those above ``after``, tombstones included."""
        where, parameters = _where(projection_name=name, key=key)
        sql = (
            f"SELECT projection_name, key, epoch FROM projection_snapshots WHERE {_all(where)} "
            "AND (projection_name, key) > (?, ?) ORDER BY projection_name, key LIMIT ?"
        )
        return self._rows(sql, *parameters, *after, limit, make=tuple)

    # -- totals

    def totals(self) -> dict[str, dict[str, int]]:
        """Return, for each projection that has any, the dead letters, those of them parked, and halted keys."""
        facts: dict[str, dict[str, int]] = {}
        for word, sql in (
            ("dead_letters", "SELECT projection_name, count(*) FROM projection_dead_letters GROUP BY 1"),
            (
                "parked",
                "SELECT projection_name, count(*) FROM projection_dead_letters WHERE parked GROUP BY 1",
            ),
            ("halted", "SELECT projection_name, count(*) FROM projection_snapshots WHERE halted GROUP BY 1"),
        ):
            for name, count in self._rows(sql, make=lambda row: row):
                facts.setdefault(name, {"dead_letters": 0, "parked": 0, "halted": 0})[word] = count
        return facts

    def pending_migrations(self) -> list[str]:
        """Return the names of the migrations that the database has not had. It is reached for that.

        With ``auto_migrate`` they are run first, as at any first use.
        """
        self._store.ensure_tables()
        return self._store.run(lambda: pending(self._store.database))

    def _rows(self, sql: str, *parameters: Any, make: Callable[[Any], Any]) -> list[Any]:
        self._store.ensure_tables()
        run: Callable[..., Any] = self._store.database.execute_sql
        given = [_as_bigint(value) if isinstance(value, int) else value for value in parameters]
        rows = self._store.run(lambda: run(sql.replace("?", self._param), given).fetchall())
        return [make(row) for row in rows]


def _as_bigint(number: int) -> int:
    """Return the nearest number that a database knows: no row has a number beyond those, so it is as far off."""
    return max(-_MAX_BIGINT, min(number, _MAX_BIGINT))


def _where(**wanted: str | None) -> tuple[list[str], list[str]]:
    given = {column: plain(value) for column, value in wanted.items() if value is not None}
    return [f"{column} = ?" for column in given], list(given.values())


def _all(conditions: list[str]) -> str:
    return " AND ".join(conditions) or "TRUE"


def _letter(row: tuple[Any, ...]) -> StoredLetter:
    number, name, key, event_type, event, error, traceback, parked, at = row
    return StoredLetter(number, name, key, event_type, event, error, traceback, bool(parked), as_utc(at))


def _key_facts(row: tuple[Any, ...]) -> KeyFacts:
    name, key, epoch, version, schema_version, halted, size, at = row
    return KeyFacts(name, key, epoch, version, schema_version, bool(halted), size, as_utc(at))
