"""Fixtures of all tests: fresh databases of both kinds, and a guard against leaked threads."""

from __future__ import annotations

import signal
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from support.postgres import PostgresServer
from support.redis_server import RedisServer
from support.tcp_proxy import TcpProxy

# A background job of a shell ignores SIGINT, and so would every server that a test starts and ends by it.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


@pytest.fixture(scope="session")
def _shared_postgres() -> Iterator[PostgresServer]:
    server = PostgresServer(durable=False)
    server.start()
    yield server
    server.remove()


@pytest.fixture(scope="session")
def _postgres_template(_shared_postgres: PostgresServer) -> Iterator[Path]:
    """An initialised data directory to copy: initdb takes a second, a copy a tenth."""
    made = PostgresServer()
    yield made.data
    made.remove()


@pytest.fixture
def sqlite_url(tmp_path: Path) -> str:
    """The URL of a SQLite file that does not exist yet."""
    return f"sqlite:///{tmp_path}/keyfold.db"


@pytest.fixture
def postgres_url(_shared_postgres: PostgresServer) -> Iterator[str]:
    """The URL of a fresh, empty database on the session's PostgreSQL."""
    name = _shared_postgres.create_database()
    yield _shared_postgres.url_of(name)
    _shared_postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def file_url(request: pytest.FixtureRequest, _shared_postgres: PostgresServer) -> Iterator[str]:
    """As ``database_url``, but reached through the file system alone, from any network."""
    if request.param == "sqlite":
        yield request.getfixturevalue("sqlite_url")
        return
    name = _shared_postgres.create_database()
    yield _shared_postgres.file_url_of(name)
    _shared_postgres.drop_database(name)


@pytest.fixture(params=["sqlite", "postgresql"])
def database_url(request: pytest.FixtureRequest) -> str:
    """The URL of a fresh, empty database: each test runs on SQLite and on PostgreSQL."""
    name = "sqlite_url" if request.param == "sqlite" else "postgres_url"
    url: str = request.getfixturevalue(name)
    return url


@pytest.fixture
def postgres_server(_postgres_template: Path) -> Iterator[PostgresServer]:
    """A running PostgreSQL of the test's own, to kill and start again."""
    server = PostgresServer(_postgres_template)
    server.start()
    yield server
    server.remove()


@pytest.fixture
def postgres_proxy(postgres_server: PostgresServer) -> Iterator[TcpProxy]:
    """A proxy in front of ``postgres_server``."""
    proxy = TcpProxy(postgres_server.port)
    yield proxy
    proxy.close()


@pytest.fixture
def redis_server() -> Iterator[RedisServer]:
    """A Redis of the test's own, which it may stop, freeze and start again."""
    server = RedisServer()
    server.start()
    yield server
    server.remove()


@pytest.fixture(autouse=True)
def _no_threads_left_behind() -> Iterator[None]:
    """A system that a test does not close would disturb the next one."""
    before = set(threading.enumerate())
    yield
    left = [
        t for t in threading.enumerate() if t not in before and t.name.startswith(("keyfold", "Snapshot"))
    ]
    for thread in left:
        thread.join(5)
    assert not [thread.name for thread in left if thread.is_alive()], "threads were left behind"
