"""The questions of operators to the tables: keys, sizes, dead letters."""

from __future__ import annotations

from collections.abc import Callable
from datetime import datetime
from typing import TYPE_CHECKING, Any, NamedTuple

from .rows import RowKey, StoredLetter, as_utc
from .schema.migrations import pending
from .validation import plain

if TYPE_CHECKING:
    from .snapshot_store import SnapshotStore

_MAX_BIGINT = 2**63 - 1


class KeySummary(NamedTuple):
    """One row of projection_snapshots without its state. ``bytes`` is the size of the state as text."""

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
        self._statements = store.dialect.statements

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
        """Return the oldest dead letters with an id above ``after``, oldest first.

        Args:
            name: Only letters of this projection.
            key: Only letters of this key.
            parked: Only letters that wait for their key to be resumed.
            after: The id that all ids are above.
            limit: The maximal number of letters.
        """
        sql = self._statements.letters(name=name is not None, key=key is not None, parked=parked)
        return self._rows(sql, *_given(name, key), after, limit, make=_letter)

    def newest_letters(self, name: str, limit: int = 20) -> list[StoredLetter]:
        """Return the newest events of a projection that could not be folded, newest first.

        Of the events parked for a key only the first is among them: the events behind it have no error.
        """
        return self._rows(self._statements.newest_letters, name, name, limit, make=_letter)

    def letter(self, number: int) -> StoredLetter | None:
        """Return a dead letter by its id, or None."""
        return next(iter(self._rows(self._statements.letter, number, make=_letter)), None)

    def count_parked(self, name: str, key: str) -> int:
        """Return how many events are parked for a key."""
        [count] = self._rows(self._statements.count_parked, name, key, make=lambda row: row[0])
        return int(count)

    def first_parked(self, name: str, key: str) -> StoredLetter | None:
        """Return the oldest of the events parked for a key, or None."""
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
    ) -> list[KeySummary]:
        """Return keys of a projection. Tombstones are left out, unless they are halted.

        Args:
            name: The name of the projection.
            prefix: Only keys that begin with it.
            after: Only keys above it in the database's order.
            halted: Only halted keys.
            largest: Order by the size of the state, the largest first, instead of by key. It takes a scan of
                the projection's rows.
            limit: The maximal number of keys.
        """
        sql = self._statements.keys(halted=halted, largest=largest)
        return self._rows(sql, name, after, len(prefix), prefix, limit, make=_key_summary)

    def epochs(
        self, name: str | None = None, key: str | None = None, *, after: RowKey = ("", ""), limit: int = 500
    ) -> list[tuple[str, str, str]]:
        """Return name, key and epoch of rows in the order of their row keys, those above ``after``.

        Tombstones are among them.
        """
        sql = self._statements.epochs(name=name is not None, key=key is not None)
        return self._rows(sql, *_given(name, key), *after, limit, make=tuple)

    # -- totals

    def totals(self) -> dict[str, dict[str, int]]:
        """Return the numbers of dead letters, parked letters and halted keys, per projection that has any."""
        totals: dict[str, dict[str, int]] = {}
        for word, sql in (
            ("dead_letters", self._statements.total_letters),
            ("parked", self._statements.total_parked),
            ("halted", self._statements.total_halted),
        ):
            for name, count in self._rows(sql, make=lambda row: row):
                totals.setdefault(name, {"dead_letters": 0, "parked": 0, "halted": 0})[word] = count
        return totals

    def pending_migrations(self) -> list[str]:
        """Return the names of the migrations that the database has not had.

        With ``auto_migrate`` they are run first, as at any first use.
        """
        self._store.ensure_tables()
        return self._store.run(lambda: pending(self._store.database))

    def _rows(self, sql: str, *parameters: Any, make: Callable[[Any], Any]) -> list[Any]:
        self._store.ensure_tables()
        run: Callable[..., Any] = self._store.database.execute_sql
        given = [_as_bigint(value) if isinstance(value, int) else value for value in parameters]
        return [make(row) for row in self._store.run(lambda: run(sql, given).fetchall())]


def _as_bigint(number: int) -> int:
    """Return the nearest number that a database knows. It finds the same rows: none has a larger number."""
    return max(-_MAX_BIGINT, min(number, _MAX_BIGINT))


def _given(name: str | None, key: str | None) -> list[str]:
    return [plain(text) for text in (name, key) if text is not None]


def _letter(row: tuple[Any, ...]) -> StoredLetter:
    number, name, key, event_type, event, error, traceback, parked, at = row
    return StoredLetter(number, name, key, event_type, event, error, traceback, bool(parked), as_utc(at))


def _key_summary(row: tuple[Any, ...]) -> KeySummary:
    name, key, epoch, version, schema_version, halted, size, at = row
    return KeySummary(name, key, epoch, version, schema_version, bool(halted), size, as_utc(at))
