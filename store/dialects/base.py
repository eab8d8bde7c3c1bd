"""What differs between the databases."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from ..rows import Amendment, DeadLetter, Head, Renewal, Row, RowKey, Save

if TYPE_CHECKING:
    import peewee

    from ..errors import StoreError
    from ..writing.ledger import Ledger
    from .fork_gate import ForkGate


class Dialect(Protocol):
    """The statements and the errors of one kind of database. One object per store."""

    @property
    def gate(self) -> ForkGate | None:
        """Entered around each operation; None where a fork has to wait for none."""

    def before_connecting(self, database: peewee.Database) -> None:
        """Refuse, by a StoreError, to open a new connection if what it would open is not what was in use."""

    def connected(self, database: peewee.Database) -> None:
        """Take note of the calling thread's new connection."""

    def check_connection(self, database: peewee.Database) -> None:
        """Refuse, by a StoreError, to use the calling thread's connection if its file is gone."""

    def select(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among row_keys."""

    def heads(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        """Return the commits of the rows that exist among row_keys."""

    def renew(self, database: peewee.Database, renewals: Sequence[Renewal]) -> list[RowKey]:
        """Draw new epochs for rows that have lost a commit, and return the row keys of those that got one."""

    def commit(
        self,
        database: peewee.Database,
        saves: Sequence[Save],
        letters: Sequence[DeadLetter],
        amendments: Sequence[Amendment],
        ledger: Ledger | None,
        *,
        lock_seconds: float | None,
    ) -> list[bool]:
        """Write all in one transaction; say for each save and amendment whether its base was still there."""

    def locked(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the row keys whose rows another transaction has locked at the moment."""

    def classify(self, error: Exception, where: str) -> StoreError:
        """Say whether trying again later can help."""

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        """Say the same of an error of connecting, which says nothing about any data."""
