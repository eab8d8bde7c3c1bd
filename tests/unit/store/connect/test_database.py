"""From a URL to a database."""

from __future__ import annotations

import peewee
import pytest
from keyfold.store import ProjectionError, open_database
from keyfold.store.connect.database import MemoryDatabase, describe_database


@pytest.mark.parametrize("scheme", ["postgres", "postgresql", "postgresql+psycopg2", "POSTGRESQL+psycopg2"])
def test_each_spelling_of_psycopg2_opens_the_same_database(scheme: str) -> None:
    """SQLAlchemy's URLs name the driver; password, port and libpq's parameters arrive."""
    database = open_database(f"{scheme}://kim:p%40ss@db.internal:6543/shop?sslmode=require")
    assert isinstance(database, peewee.PostgresqlDatabase)
    parameters = database.connect_params
    assert (parameters["user"], parameters["password"], parameters["port"]) == ("kim", "p@ss", 6543)
    assert parameters["sslmode"] == "require"
    assert parameters["application_name"] == "keyfold"
    assert describe_database(database) == "PostgreSQL shop on db.internal:6543"


@pytest.mark.parametrize("driver", ["psycopg", "psycopg_async", "asyncpg", "pg8000", "pool"])
def test_other_drivers_of_postgresql_are_refused_by_name(driver: str) -> None:
    """The message says which URL to write instead, and never the password."""
    with pytest.raises(ProjectionError) as caught:
        open_database(f"postgresql+{driver}://kim:secret@db.internal/shop")
    assert f"'{driver}'" in str(caught.value)
    assert "write postgresql://kim:***@db.internal/shop" in str(caught.value)
    assert "secret" not in str(caught.value)


def test_drivers_of_sqlite_are_refused_by_name() -> None:
    """Python's own is the only one."""
    with pytest.raises(ProjectionError, match=r"'pysqlite'.* write sqlite:///shop\.db"):
        open_database("sqlite+pysqlite:///shop.db")


def test_other_databases_are_refused_whatever_their_driver() -> None:
    """As without a driver."""
    with pytest.raises(ProjectionError, match="names neither SQLite nor PostgreSQL"):
        open_database("mysql+pymysql://kim@db.internal/shop")


def test_names_for_people() -> None:
    """Of each kind of database."""
    memory = MemoryDatabase()
    assert describe_database(memory) == "SQLite in memory"
    memory.release()
    assert describe_database(open_database("sqlite:///shop.db")) == "SQLite file shop.db"
