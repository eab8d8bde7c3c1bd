"""From a URL, or an app's own Peewee database, to one that the store can work on."""

from __future__ import annotations

import secrets
import sqlite3
from typing import Any
from urllib.parse import urlsplit

import peewee
from playhouse import db_url

from ..errors import ProjectionError

_SQLITE_PRAGMAS = {"journal_mode": "wal", "synchronous": "normal", "busy_timeout": 5000}

# Without these, a peer that vanished without closing the connection would block a thread for hours.
_POSTGRES_DEFAULTS = {
    "application_name": "keyfold",
    "connect_timeout": 5,
    "keepalives": 1,
    "keepalives_idle": 5,
    "keepalives_interval": 2,
    "keepalives_count": 3,
    "tcp_user_timeout": 10_000,
    # A process that is frozen in the middle of a transaction would block its rows for others. A transaction
    # that a time-out ends is tried again; a COMMIT that a time-out ends is looked up in the ledger.
    "options": (
        "-c idle_in_transaction_session_timeout=10000 -c lock_timeout=10000 -c statement_timeout=30000"
    ),
}

# The names that a URL may have for the one supported driver, as SQLAlchemy writes them; empty for no name.
_DRIVERS = {"sqlite": ("",), "postgres": ("", "psycopg2"), "postgresql": ("", "psycopg2")}

_EXAMPLES = "for instance sqlite:///shop.db or postgresql://user:password@host/name"


class MemoryDatabase(peewee.SqliteDatabase):
    """A database in memory that all threads share, and that ends with this object.

    SQLite gives each connection to ``:memory:`` a database of its own; under its memdb VFS
    (https://www.sqlite.org/src/file/src/memdb.c) all connections to one name share one.
    """

    def __init__(self) -> None:
        name = f"file:/keyfold-{secrets.token_hex(8)}?vfs=memdb"
        super().__init__(name, pragmas={"busy_timeout": 5000}, uri=True)
        # The database is gone with its last connection, and threads come and go.
        self._keeper = sqlite3.connect(name, uri=True, check_same_thread=False)

    def release(self) -> None:
        """Close the connection of this object; the database ends with its last other connection."""
        self._keeper.close()


def open_database(source: str | peewee.Database) -> peewee.Database:
    """Return a Peewee database for a URL, or check and return the app's own. Does not connect yet.

    SQLite files get WAL, ``synchronous=normal`` and a busy timeout; ``sqlite://`` is in memory. A
    relative path is relative to the working directory.

    Args:
        source: ``sqlite:///relative.db``, ``sqlite:////absolute.db``, ``sqlite://``, or
            ``postgresql://user:password@host/name``, to which parameters of libpq may be added
            (``?sslmode=require``). ``postgres://`` and ``postgresql+psycopg2://`` are the same. Or a
            thread-safe ``peewee.SqliteDatabase`` or ``peewee.PostgresqlDatabase``.

    Returns:
        A database to pass to ``SnapshotStore``, ``migrate``, ``pending`` and ``rollback``.

    Raises:
        ProjectionError: The source is anything else. The message says how to write it, without the password.
    """
    if isinstance(source, peewee.Database):
        return _checked(source)
    if not isinstance(source, str) or "://" not in source:
        shown = "a database URL" if isinstance(source, str) else f"{type(source).__name__}"
        msg = f"the database must be a URL, {_EXAMPLES}, or a peewee.Database; got {shown}"
        raise ProjectionError(msg)
    try:
        scheme, _, rest = source.partition("://")
        kind, _, driver = scheme.lower().partition("+")
        if kind in _DRIVERS:
            url = f"{kind}://{rest}"
            if driver not in _DRIVERS[kind]:
                msg = (
                    f"the driver {driver!r} in {_without_password(source)} is not supported; "
                    f"write {_without_password(url)}"
                )
                raise ProjectionError(msg)
            return _open_sqlite(url) if kind == "sqlite" else _open_postgres(url)
    except ProjectionError:
        raise
    except Exception as error:
        msg = f"the database URL {_without_password(source)} is not usable: {error}; {_EXAMPLES}"
        raise ProjectionError(msg) from None
    msg = f"the database URL {_without_password(source)} names neither SQLite nor PostgreSQL; {_EXAMPLES}"
    raise ProjectionError(msg)


def describe_database(database: peewee.Database) -> str:
    """Return the name of a database for people, without a password."""
    if isinstance(database, peewee.PostgresqlDatabase):
        parameters = database.connect_params
        host = parameters.get("host", "local socket")
        port = parameters.get("port", 5432)
        return f"PostgreSQL {database.database} on {host}:{port}"
    if isinstance(database, MemoryDatabase):
        return "SQLite in memory"
    return f"SQLite file {database.database}"


def driver_error(error: Exception) -> Exception:
    """Return the driver's own error, which Peewee wraps in one of its own: it alone has the SQLSTATE."""
    inner = getattr(error, "orig", None)
    return inner if isinstance(inner, Exception) else error


def _open_sqlite(url: str) -> peewee.Database:
    settings = db_url.parse(url)
    if urlsplit(url).netloc:
        msg = (
            f"{url} has only two slashes; a relative file takes three (sqlite:///shop.db), "
            "an absolute one four"
        )
        raise ProjectionError(msg)
    name = settings.pop("database")
    if name == ":memory:":
        return MemoryDatabase()
    return peewee.SqliteDatabase(name, pragmas=_SQLITE_PRAGMAS, **settings)


def _open_postgres(url: str) -> peewee.Database:
    settings: dict[str, Any] = db_url.parse(url, unquote_password=True, unquote_user=True)
    name = settings.pop("database")
    if not name:
        msg = f"the database URL {_without_password(url)} names no database; {_EXAMPLES}"
        raise ProjectionError(msg)
    return peewee.PostgresqlDatabase(name, **{**_POSTGRES_DEFAULTS, **settings})


def _checked(database: peewee.Database) -> peewee.Database:
    kind = type(database).__name__
    if not isinstance(database, (peewee.SqliteDatabase, peewee.PostgresqlDatabase)):
        msg = f"{kind} is not supported: use SQLite, or PostgreSQL through psycopg2"
        raise ProjectionError(msg)
    if isinstance(getattr(database, "_adapter", None), peewee.Psycopg3Adapter):
        msg = f"this {kind} uses psycopg 3; only psycopg2 is supported"
        raise ProjectionError(msg)
    if not database.thread_safe:
        msg = f"this {kind} has thread_safe=False, but several threads use it; leave thread_safe at True"
        raise ProjectionError(msg)
    if isinstance(database, peewee.SqliteDatabase) and database.database in (":memory:", ""):
        msg = (
            "each thread would get its own copy of this in-memory database; "
            "pass the URL 'sqlite://' instead, or use a file"
        )
        raise ProjectionError(msg)
    return database


def _without_password(url: str) -> str:
    scheme, _, rest = url.partition("://")
    try:
        parts = urlsplit(
            f"//{rest}"
        )  # apart from the scheme, as urlsplit finds no password behind an invalid one
        if parts.password is None:
            return url
        host = parts.netloc.rpartition("@")[2]
        return f"{scheme}:{parts._replace(netloc=f'{parts.username}:***@{host}').geturl()}"
    except ValueError:
        return "(unreadable)"
