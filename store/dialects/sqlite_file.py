"""Whether the file that a connection to SQLite has open is still the one at its path."""

from __future__ import annotations

import os
import threading
from typing import TYPE_CHECKING, NamedTuple

from ..errors import StoreUnavailable

if TYPE_CHECKING:
    import peewee


_stat = os.stat  # not Path.stat, which takes four times as long: this is called twice per commit


class _Open(NamedTuple):
    """A connection and the file that it has open, by device and inode; None if it has no file."""

    connection: object
    file: tuple[int, int] | None


class SqliteFile:
    """Detects that the file of one database was deleted or replaced while it is in use.

    On POSIX a deleted file exists as long as it is open: all commits would go into it, and be lost with the
    last connection. A new connection to the path would make a new, empty file there.
    """

    def __init__(self) -> None:
        self._path = ""
        """As SQLite resolved it at the first connection; empty before that, and for a database in memory."""
        self._thread = threading.local()

    def check_path(self, database: peewee.Database) -> None:
        """Check, before a new connection, that the path leads to the file that was in use.

        Raises:
            StoreUnavailable: The file was deleted; or the path leads to another one, as a relative path does
                after a change of the working directory.
        """
        if not self._path:
            return
        try:
            there = _stat(self._path)
            is_uri = database.connect_params.get("uri", False)
            if there.st_size and (is_uri or os.path.samestat(there, _stat(database.database))):
                return
        except OSError:
            pass
        raise self._gone()

    def note_connection(self, database: peewee.Database) -> None:
        """Remember which file the calling thread's new connection has open."""
        connection = database.connection()
        if not self._path:
            rows = database.execute_sql("PRAGMA database_list").fetchall()
            path = next((file for _, name, file in rows if name == "main"), "")
            if path and os.path.exists(path):  # noqa: PTH110  # a VFS may have names that are no paths
                self._path = path
        self._thread.open = _Open(connection, self._file_at_path())

    def check_connection(self, database: peewee.Database) -> None:
        """Check that the calling thread's connection has the file at the path open.

        Raises:
            StoreUnavailable: The file was deleted, moved or replaced.
        """
        known: _Open | None = getattr(self._thread, "open", None)
        if known is None or known.connection is not database.connection():
            self.note_connection(database)  # it is the app's own, and was open before the call
            known = self._thread.open
        if self._path and (known.file is None or known.file != self._file_at_path()):
            raise self._gone()

    def _file_at_path(self) -> tuple[int, int] | None:
        try:
            found = _stat(self._path)
        except OSError:
            return None
        return found.st_dev, found.st_ino

    def _gone(self) -> StoreUnavailable:
        msg = (
            f"SQLite file {self._path} was deleted or replaced while it was in use; nothing is written until "
            "it is back"
        )
        return StoreUnavailable(msg)
