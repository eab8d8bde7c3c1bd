"""Rounds of trouble for two processes on one database: ``make chaos``, or ``make chaos MINUTES=5 SEED=7``.

    python tests/chaos/rounds.py --seed 7 --round 12 --database sqlite

Each round has a fresh database, two processes (tests/chaos/worker.py), and limits drawn by its seed. Then
connections are killed, rows and files are locked, and in every other round a process is killed by SIGKILL and
replaced. At the end the oracle compares the journals with the rows. The first violation ends the run.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import sqlite3
import subprocess
import sys
import tempfile
import threading
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, closing, contextmanager, suppress
from pathlib import Path
from time import monotonic
from typing import IO, Any, NamedTuple, Self
from urllib.parse import urlsplit

import psycopg2
from journal import read_journals
from keyfold.actors import ProjectionSystem
from keyfold.store import SnapshotStore
from oracle import Final, Letter, Oracle, Row, Violation
from support.postgres import PostgresServer
from support.tcp_proxy import TcpProxy
from world import EVENT_OF, KEYS, OWN, Echoes, Halts, Letters

HERE = Path(__file__).parent
SECONDS = 8.0
"""How long the processes of one round live, in ``make chaos``."""
_MOST_LOG = 20_000
_KINDS = ("sqlite", "postgresql")


class Round(NamedTuple):
    """The outcome of a round."""

    violations: list[Violation]
    counts: dict[str, int]
    log: str


class Trouble:
    """Locks and kills, from outside of the processes."""

    def __init__(self, url: str, seed: str, proxy: TcpProxy | None) -> None:
        self.counts: Counter[str] = Counter()
        self._url, self._seed, self._proxy = url, seed, proxy
        self._stopping = threading.Event()
        parts = [self._lock_file]
        if proxy is not None:
            parts = [self._kill_backends, self._lock_rows, self._lose_commits]
        self._threads = [threading.Thread(target=self._run, args=(part,)) for part in parts]

    def __enter__(self) -> Self:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        for thread in self._threads:
            thread.join()

    def _run(self, part: Callable[[random.Random], None]) -> None:
        chance = random.Random(f"{self._seed} {part.__name__}")
        while not self._stopping.wait(chance.uniform(0.1, 0.7)):
            with suppress(sqlite3.Error, psycopg2.Error):
                part(chance)
                self.counts[part.__name__.strip("_")] += 1

    def _lock_file(self, chance: random.Random) -> None:
        with closing(
            sqlite3.connect(self._url.removeprefix("sqlite:///"), isolation_level=None)
        ) as connection:
            connection.execute("BEGIN IMMEDIATE")
            self._stopping.wait(chance.uniform(0.0, 0.4))

    def _kill_backends(self, chance: random.Random) -> None:
        with closing(psycopg2.connect(self._url)) as connection:
            connection.autocommit = True
            cursor = connection.cursor()
            cursor.execute(
                "SELECT pid FROM pg_stat_activity "
                "WHERE datname = current_database() AND application_name <> ''"
            )
            if pids := sorted(pid for (pid,) in cursor.fetchall()):
                cursor.execute("SELECT pg_terminate_backend(%s)", (chance.choice(pids),))

    def _lose_commits(self, chance: random.Random) -> None:
        """The answer to a COMMIT gets lost, or the COMMIT itself: nobody can tell which."""
        assert self._proxy is not None
        lose = self._proxy.swallow_reply_to if chance.random() < 0.7 else self._proxy.cut_before
        lose(b"COMMIT")

    def _lock_rows(self, chance: random.Random) -> None:
        with closing(psycopg2.connect(self._url)) as connection:
            cursor = connection.cursor()
            cursor.execute("SET lock_timeout = 1000")
            cursor.execute(
                "SELECT 1 FROM projection_snapshots WHERE projection_name = %s AND key = %s FOR UPDATE",
                (chance.choice([Letters.name, Halts.name, Echoes.name, OWN]), chance.choice(KEYS)),
            )
            self._stopping.wait(chance.choice([0.05, 0.2, 2.0]))


def play(url: str, seed: str, seconds: float, folder: Path) -> Round:
    """Run one round and judge it."""
    store = SnapshotStore(url)
    for key in KEYS:
        store.write(OWN, key, {"count": 0})
    log = folder / "stderr"
    with ExitStack() as stack:
        port, proxy, their_url = urlsplit(url).port, None, url
        if port is not None:
            proxy = TcpProxy(port)
            stack.callback(proxy.close)
            their_url = url.replace(f":{port}/", f":{proxy.port}/")
        workers = Workers(their_url, seed, folder, stack.enter_context(log.open("w")))
        stack.callback(workers.kill)
        with Trouble(url, seed, proxy) as trouble:
            workers.live(seconds)
        workers.wait()
    final = read_final(url)
    oracle = Oracle(read_journals(folder), final, killed=workers.killed)
    violations = oracle.judge() + afterlife(url, final)
    counts = oracle.counts() | trouble.counts | {"killed": len(workers.killed)}
    return Round(violations, counts, log.read_text()[-_MOST_LOG:])


class Workers:
    """The processes of a round: A and B, and in every other round C after B was killed."""

    def __init__(self, url: str, seed: str, folder: Path, stderr: IO[str]) -> None:
        self.killed: set[str] = set()
        self._arguments = url, str(folder)
        self._seed, self._stderr = seed, stderr
        self._processes: list[subprocess.Popen[bytes]] = []

    def live(self, seconds: float) -> None:
        """Return when they have begun to end."""
        chance, began = random.Random(self._seed), monotonic()
        first, second = self._start("A", seconds), self._start("B", seconds)
        if chance.random() < 0.5:
            with suppress(subprocess.TimeoutExpired):
                second.wait(seconds * chance.uniform(0.3, 0.8))
            second.kill()
            second.wait()
            self.killed.add("B")
            self._start("C", max(1.0, seconds - (monotonic() - began)))
        with suppress(subprocess.TimeoutExpired):
            first.wait(max(0.0, seconds - (monotonic() - began)))

    def wait(self) -> None:
        """Return when all have ended; one that hangs ends by itself."""
        for process in self._processes:
            process.wait()

    def kill(self) -> None:
        """End those that are left, after an error in the round itself."""
        for process in self._processes:
            process.kill()
            process.wait()

    def _start(self, name: str, seconds: float) -> subprocess.Popen[bytes]:
        command = [
            sys.executable,
            str(HERE / "worker.py"),
            *self._arguments,
            name,
            f"{self._seed} {name}",
            str(seconds),
        ]
        # A program's folder comes first on its path; the helpers' and the library's are handed on.
        paths = os.pathsep.join(path for path in sys.path if path)
        process = subprocess.Popen(command, env={**os.environ, "PYTHONPATH": paths}, stderr=self._stderr)
        self._processes.append(process)
        return process


def read_final(url: str) -> Final:
    """Read all rows and letters with the driver alone."""
    postgres = url.startswith("postgresql")
    connect: Any = psycopg2.connect if postgres else sqlite3.connect
    with closing(connect(url if postgres else url.removeprefix("sqlite:///"))) as connection:
        cursor = connection.cursor()
        state = "state::text" if postgres else "state"
        cursor.execute(
            f"SELECT projection_name, key, epoch, version, {state}, halted FROM projection_snapshots"
        )
        rows = {
            (name, key): Row(epoch, version, json.loads(text), bool(halted))
            for name, key, epoch, version, text, halted in cursor.fetchall()
        }
        cursor.execute(
            "SELECT id, projection_name, key, event, parked FROM projection_dead_letters ORDER BY id"
        )
        return Final(rows, [Letter(*row) for row in cursor.fetchall()])


def afterlife(url: str, final: Final) -> list[Violation]:
    """Read each row through a fresh system, and fold one more event into each key that is not halted."""
    violations = []
    with ProjectionSystem(url, tuning={"report_seconds": 0}) as system:
        system.register(Letters())
        system.register(Halts())
        system.register(Echoes())
        for (name, key), row in final.rows.items():
            if name == OWN:
                continue
            try:
                state = system.runtime(name).read(key)
                assert (None if state is None else state.log) == (row.state and row.state["log"]), (
                    "another state"
                )
                if not row.halted:
                    [applied] = system.bus.dispatch(EVENT_OF[name]("last", [key])).result(20)
                    assert (applied.version, row.epoch) == (row.version + 1, applied.epoch), applied
            except Exception as error:
                violations.append(
                    Violation("what is committed can be read back", f"{name} {key!r}: {error!r}"[:500], [])
                )
    return violations


@contextmanager
def fresh_database(kind: str, folder: Path, servers: dict[str, Any]) -> Iterator[str]:
    """Yield the URL of an empty database."""
    if kind == "sqlite":
        yield f"sqlite:///{folder}/chaos.db"
        return
    if kind not in servers:
        servers[kind] = PostgresServer(durable=False)
        servers[kind].start()
    name = servers[kind].create_database()
    try:
        yield servers[kind].url_of(name)
    finally:
        servers[kind].drop_database(name)


def report(round_: Round, command: str) -> str:
    """Return the first violation of each promise, the command that repeats the round, and the log."""
    first = {one.promise: one for one in reversed(round_.violations)}
    found = "\n\n".join(str(one) for one in round_.violations if one is first[one.promise])
    by_promise = Counter(one.promise for one in round_.violations)
    head = f"{len(round_.violations)} violations: {dict(by_promise)}\nagain: {command}"
    return f"{head}\n\n{found}\n\n{round_.counts}\n{round_.log}"


def main() -> int:
    """Play rounds until the time is over or a promise is broken."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--seed", type=int, default=random.randrange(10**6))
    parser.add_argument("--minutes", type=float, default=60.0)
    parser.add_argument(
        "--seconds", type=float, default=SECONDS, help="how long the processes of a round live"
    )
    parser.add_argument("--round", type=int, help="this one alone")
    parser.add_argument("--database", choices=_KINDS, help="on this one alone")
    chosen = parser.parse_args()
    print(f"SEED={chosen.seed}", flush=True)
    servers: dict[str, Any] = {}
    totals: Counter[str] = Counter()
    ends = monotonic() + 60 * chosen.minutes
    number = chosen.round or 1
    played = 0
    try:
        while monotonic() < ends:
            for kind in [chosen.database] if chosen.database else _KINDS:
                folder = Path(tempfile.mkdtemp(prefix="keyfold-chaos-"))
                with fresh_database(kind, folder, servers) as url:
                    round_ = play(url, f"{chosen.seed} {number}", chosen.seconds, folder)
                played += 1
                totals.update(round_.counts)
                print(f"round {number} {kind}: {round_.counts}", flush=True)
                if round_.violations:
                    command = f"make chaos SEED={chosen.seed} ROUND={number} DATABASE={kind}"
                    print(report(round_, command))
                    print(f"journals: {folder}")
                    return 1
                shutil.rmtree(folder)
            if chosen.round:
                break
            number += 1
    finally:
        for server in servers.values():
            server.remove()
    print(f"SEED={chosen.seed}: {played} rounds, no promise broken: {dict(totals)}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
