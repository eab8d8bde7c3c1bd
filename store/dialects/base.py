"""The contract of the two dialects, and the types that both of them use."""

from __future__ import annotations

from collections.abc import Sequence
from contextlib import AbstractContextManager
from typing import TYPE_CHECKING, Any, NamedTuple, Protocol

if TYPE_CHECKING:
    import peewee

    from ..errors import StoreError
    from ..rows import Amendment, DeadLetter, Head, Renewal, Row, RowKey, Save
    from ..writing.ledger import Ledger
    from .fork_gate import ForkGate
    from .statements import Statements


class ColumnTypes(NamedTuple):
    """The types of columns that differ between the databases."""

    state: str
    moment: str
    identity: str
    """An integer that the database counts up, never uses twice, and that is the primary key."""


class Dialect(Protocol):
    """The statements and the errors of one kind of database.

    There is one object per store. Its methods run on the calling thread's connection, which is open except
    where a method says otherwise, and let the driver's errors pass: ``Connections`` turns them into a
    StoreError by ``classify``.
    """

    @property
    def statements(self) -> Statements:
        """The statements that are alike in both databases, with this one's placeholders."""

    @property
    def column_types(self) -> ColumnTypes:
        """The types of columns for the migrations."""

    # -- connections

    @property
    def gate(self) -> ForkGate | None:
        """A gate to enter around each operation; None where a fork does not have to wait for operations."""

    def before_connecting(self, database: peewee.Database) -> None:
        """Check that a new connection would open the database that was in use.

        Raises:
            StoreError: It would not.
        """

    def connected(self, database: peewee.Database) -> None:
        """Take note of the calling thread's new connection."""

    def check_connection(self, database: peewee.Database) -> None:
        """Check that the calling thread's connection still has the database's file open.

        Raises:
            StoreError: The file is gone.
        """

    def interrupt(self, connection: Any) -> None:
        """Make the running call of another thread fail, on that thread's connection. May raise anything."""

    # -- rows

    def select(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Row]:
        """Return the rows that exist among ``row_keys``, by one statement."""

    def heads(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> dict[RowKey, Head]:
        """Return the commits of the rows that exist among ``row_keys``, by one statement."""

    def renew(self, database: peewee.Database, renewals: Sequence[Renewal]) -> list[RowKey]:
        """Give new epochs to the rows that have lost a commit, and return the row keys of these rows."""

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
        """Write everything in one transaction.

        Returns:
            For each save, then for each amendment, whether its base was still there. Saves and amendments
            without their base are not written; the others are.

        Raises:
            CommitInDoubt: The answer to the COMMIT was lost.
        """

    def locked(self, database: peewee.Database, row_keys: Sequence[RowKey]) -> set[RowKey]:
        """Return the row keys whose rows another transaction has locked at the moment."""

    # -- the ledger

    def has_committed(self, database: peewee.Database, ledger: Ledger, transaction_number: int) -> bool:
        """Return whether the ledger's transaction of this number is committed.

        Waits while the server still works on that transaction.
        """

    def remove_writer(self, database: peewee.Database, ledger: Ledger) -> None:
        """Remove the ledger's row."""

    # -- migrations

    def migrating(self, database: peewee.Database) -> AbstractContextManager[None]:
        """Enter a transaction that no other process migrates in. DDL is transactional in both databases."""

    def blocks_migration(self, database: peewee.Database) -> bool:
        """Return whether the calling thread's open transaction may keep another connection from migrating.

        The thread's connection may be closed.
        """

    def without_waiting(self, database: peewee.Database) -> AbstractContextManager[None]:
        """Enter a block whose statements hardly wait for locks.

        It is used where only the calling thread's own transaction, which can't end meanwhile, may hold them.
        """

    # -- errors

    def is_busy(self, error: StoreError) -> bool:
        """Return whether an error of a migration only says that others have locked the whole database."""

    def classify(self, error: Exception, where: str) -> StoreError:
        """Return a StoreError for a driver's error; its class says whether trying again later can help.

        Args:
            error: The driver's own error, not Peewee's wrapper.
            where: The name of the database, for the message.
        """

    def classify_connecting(self, error: Exception, where: str) -> StoreError:
        """Return a StoreError for an error of connecting, which says nothing about any data."""
