"""How a writer learns what became of a commit whose answer was lost."""

from __future__ import annotations

import secrets
from time import monotonic
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import peewee

_FORGET_OLD = """
    DELETE FROM projection_writers WHERE writer IN (
        SELECT writer FROM projection_writers WHERE at < now() - interval '7 days' FOR UPDATE SKIP LOCKED
    )
"""
_LAST_TURN = """
    INSERT INTO projection_writers (writer, turn, at) VALUES (%s, 0, now())
    ON CONFLICT (writer) DO UPDATE SET at = excluded.at
    RETURNING turn
"""
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
        self._forgot_at: float | None = None

    def next_turn(self, database: peewee.Database) -> int:
        """Return the number to stamp on the next commit.

        The first call, and one a day, removes the rows of writers that have not committed for a week. If such
        a writer is only asleep, its next commit makes its row again.
        """
        now = monotonic()
        if self._forgot_at is None or now - self._forgot_at > _A_DAY:
            self._forgot_at = now  # before the statement: if that fails, the commit can do without
            database.execute_sql(_FORGET_OLD)
        self._turn += 1
        return self._turn

    def has_committed(self, database: peewee.Database, turn: int) -> bool:
        """Return whether this turn is committed. Waits while the server still works on it.

        The row is written, although only its number is asked for: so the statement waits for the end of the
        old connection's transaction also where that inserts the row, which nobody else can see yet.
        """
        return bool(database.execute_sql(_LAST_TURN, (self.writer,)).fetchone() == (turn,))

    def sign_off(self, database: peewee.Database) -> None:
        """Remove the row at the end of the writer's life."""
        if self._turn:
            database.execute_sql(_SIGN_OFF, (self.writer,))
