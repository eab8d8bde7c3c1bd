"""Making the tables at the first use."""

from __future__ import annotations

import threading
from collections.abc import Callable
from time import monotonic
from typing import TYPE_CHECKING, Any

from ..connect.database import describe_database, is_postgres
from ..errors import StoreError, StoreUnavailable
from .migrations import migrate

if TYPE_CHECKING:
    import peewee

    from ..connect.connections import Connections

_PATIENCE = 10.0
"""Seconds for which the migration of an SQLite file that others have locked is tried again."""
_MOMENT_MILLISECONDS = 200
"""How long another writer may have the lock where only the calling thread's own transaction would be waited for."""


class Tables:
    """The tables of one store; ``made`` once they are known to be up to date."""

    def __init__(self, database: peewee.Database, connections: Connections, *, made: bool) -> None:
        self._database = database
        self._connections = connections
        self.made = connections.file_has_to_be_there = made

    def ensure(self) -> None:
        """Bring the tables up to date. Raises StoreError."""
        if self.made:
            return
        # On a thread of its own: the caller may have a transaction of the app's open, and tables made inside
        # of that would be nobody else's until it ends. No pool: its threads are joined at the interpreter's exit.
        errors: list[BaseException] = [RuntimeError("the migration's thread ended without a word")]
        migration = threading.Thread(
            target=self._migrate,
            args=(errors, self._has_sqlite_transaction()),
            name="keyfold-migration",
            daemon=True,
        )
        try:
            migration.start()
        except RuntimeError as error:
            msg = f"the tables of {describe_database(self._database)} can't be made: {error}"
            raise StoreUnavailable(msg) from error
        migration.join()
        if errors:
            raise errors[-1]
        self.made = self._connections.file_has_to_be_there = True

    def _has_sqlite_transaction(self) -> bool:
        """Return whether this thread has a transaction open, which may keep every other connection from writing."""
        if is_postgres(self._database):
            return False
        if self._database.in_transaction():
            return True
        return not self._database.is_closed() and getattr(
            self._database.connection(), "in_transaction", False
        )

    def _migrate(self, errors: list[BaseException], in_transaction: bool) -> None:  # noqa: FBT001
        try:
            self._migrate_patiently(in_transaction=in_transaction)
            errors.clear()
        except BaseException as error:
            errors.append(error)

    def _migrate_patiently(self, *, in_transaction: bool) -> None:
        deadline = monotonic() + _PATIENCE
        while True:
            try:
                self._connections.run(
                    self._migrate_now if in_transaction else lambda: migrate(self._database)
                )
            except StoreUnavailable as error:
                if "database is locked" not in str(error):
                    raise
                if in_transaction:
                    msg = (
                        f"the tables of {describe_database(self._database)} are still to be made, and this thread has a transaction "
                        "open on the same database, which locks everyone else out: run 'flask keyfold migrate' first,"
                        " or call store.ensure_tables() or dispatch the first event outside of a transaction"
                    )
                    raise StoreError(msg) from error
                # SQLite does not wait, whatever its busy timeout, when two processes turn a new file to WAL.
                if monotonic() > deadline:
                    raise
                threading.Event().wait(0.1)
            else:
                return

    def _migrate_now(self) -> None:
        """Migrate without waiting for a lock that only the caller's own thread could let go of."""
        run: Callable[[str], Any] = self._database.execute_sql
        [usual] = run("PRAGMA busy_timeout").fetchone()
        run(f"PRAGMA busy_timeout = {_MOMENT_MILLISECONDS}")
        try:
            migrate(self._database)
        finally:
            run(f"PRAGMA busy_timeout = {usual}")
