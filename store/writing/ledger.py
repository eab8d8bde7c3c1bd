"""How a writer learns whether a commit happened whose answer was lost."""

from __future__ import annotations

import secrets
from time import monotonic

_SECONDS_PER_DAY = 86_400.0


class Ledger:
    """One row of projection_writers, which each commit of its writer stamps with a transaction number.

    Afterwards the row tells whether a transaction was committed, however the connection ended. PostgreSQL's
    own ``pg_xact_status(xid)`` can't: after a crash of the server, the id of a transaction that was lost with
    it is given out again, and the commit of another process would be taken for ours.

    This object is the writer's side: it counts. The dialect has the statements. The number is in the column
    ``turn``.
    """

    def __init__(self) -> None:
        self.writer = secrets.token_hex(16)
        self._transaction_number = 0
        self._cleaned_up_at: float | None = None

    @property
    def is_used(self) -> bool:
        """Whether any transaction was given a number."""
        return self._transaction_number > 0

    def next_transaction_number(self) -> int:
        """Return the number to stamp on the next commit."""
        self._transaction_number += 1
        return self._transaction_number

    def is_clean_up_due(self) -> bool:
        """Return whether the rows of dead writers have to be removed: at the first call, then once per day.

        The caller is taken to do it. If that fails, the commit goes on without it until the next day.
        """
        now = monotonic()
        if self._cleaned_up_at is not None and now - self._cleaned_up_at <= _SECONDS_PER_DAY:
            return False
        self._cleaned_up_at = now
        return True
