"""How a writer learns what became of a commit whose answer was lost."""

from __future__ import annotations

import secrets
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import peewee

_REGISTER = """
    INSERT INTO projection_writers (writer, turn, at) VALUES (%s, 0, now())
    ON CONFLICT (writer) DO UPDATE SET at = excluded.at
"""
_FORGET_OLD = "DELETE FROM projection_writers WHERE at < now() - interval '7 days'"
_LAST_TURN = "SELECT turn FROM projection_writers WHERE writer = %s FOR UPDATE"
_A_DAY = 86_400.0
_SIGN_OFF = "DELETE FROM projection_writers WHERE writer = %s"


class Ledger:
    """One row of projection_writers, that each commit of its writer stamps with the number of the turn.

    Afterwards the row tells whether a turn was committed, however the connection ended. PostgreSQL's
    own ``pg_xact_status(xid)`` can't: after a crash of the server, the number of a transaction that
    was lost with it is given out again, and somebody else's commit would be taken for ours.
    """

    def __init__(self) -> None:
        self.writer = secrets.token_hex(16)
        self._turn = 0
        self._registered = False
        self._stamped_at = 0.0

    def next_turn(self, database: peewee.Database) -> int:
        """Return the number to stamp on the next commit. The first call makes the row.

        So does the first after a day without: another writer may have forgotten this one meanwhile, and a commit
        without a row would leave no stamp.
        """
        if not self._registered or monotonic() - self._stamped_at > _A_DAY:
            database.execute_sql(_FORGET_OLD)
            database.execute_sql(_REGISTER, (self.writer,))
            self._registered = True
        self._stamped_at = monotonic()
        self._turn += 1
        return self._turn

    def has_committed(self, database: peewee.Database, turn: int) -> bool:
        """Return whether this turn is committed. Waits while the server still works on it.

        The row is locked by the transaction that stamps it, so reading it for update waits for the
        old connection's end, one way or the other. No row (the server was restored from a backup):
        the turn is not there either, and the next one registers again.
        """
        row = database.execute_sql(_LAST_TURN, (self.writer,)).fetchone()
        self._registered = row is not None
        return row is not None and row[0] == turn

    def sign_off(self, database: peewee.Database) -> None:
        """Remove the row at the end of the writer's life."""
        if self._registered:
            database.execute_sql(_SIGN_OFF, (self.writer,))
