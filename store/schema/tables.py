"""Making the tables at the first use of a store."""

from __future__ import annotations

import threading
from contextlib import nullcontext
from time import monotonic
from typing import TYPE_CHECKING

from ..connect.database import describe_database
from ..errors import StoreError, StoreUnavailable
from .migrations import migrate

if TYPE_CHECKING:
    import peewee

    from ..connect.connections import Connections
    from ..dialects.base import Dialect

_PATIENCE = 10.0
"""Seconds for which the migration of an SQLite file that others have locked is tried again."""
_PAUSE_SECONDS = 0.1


class Tables:
    """The tables of one store, which are brought up to date once."""

    def __init__(
        self, database: peewee.Database, dialect: Dialect, connections: Connections, *, exist: bool
    ) -> None:
        self._database = database
        self._dialect = dialect
        self._connections = connections
        self._exist = exist

    def ensure(self) -> None:
        """Bring the tables up to date.

        Raises:
            StoreError: They can't be made.
        """
        if self._exist:
            return
        # On a thread of its own: the caller may have a transaction of the app's open, and no other connection
        # would see tables that are made inside it. No pool: its threads are joined at the interpreter's exit.
        errors: list[BaseException] = [RuntimeError("the migration's thread ended without a result")]
        migration = threading.Thread(
            target=self._migrate,
            args=(errors, self._dialect.blocks_migration(self._database)),
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
        self._exist = True
        self._connections.require_file()

    def _migrate(self, errors: list[BaseException], blocked: bool) -> None:  # noqa: FBT001
        try:
            self._migrate_patiently(blocked=blocked)
            errors.clear()
        except BaseException as error:
            errors.append(error)

    def _migrate_patiently(self, *, blocked: bool) -> None:
        deadline = monotonic() + _PATIENCE
        while True:
            try:
                self._connections.run(lambda: self._migrate_once(blocked=blocked))
            except StoreUnavailable as error:
                if not self._dialect.is_busy(error):
                    raise
                if blocked:
                    msg = (
                        f"the tables of {describe_database(self._database)} are still to be made, and this "
                        "thread has a transaction open on the same database, which keeps all others from "
                        "writing: run 'flask keyfold migrate' first, or call store.ensure_tables() or "
                        "dispatch the first event outside of a transaction"
                    )
                    raise StoreError(msg) from error
                # When two processes switch a new file to WAL, SQLite ignores its busy timeout.
                if monotonic() > deadline:
                    raise
                threading.Event().wait(_PAUSE_SECONDS)
            else:
                return

    def _migrate_once(self, *, blocked: bool) -> None:
        """Migrate; where the caller's transaction may be in the way, without waiting for its end."""
        waiting = self._dialect.without_waiting(self._database) if blocked else nullcontext()
        with waiting:
            migrate(self._database)
