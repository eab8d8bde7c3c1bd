"""Four processes with four threads on the same keys: kills, freezes and outages lose no confirmed event."""

from __future__ import annotations

import signal
import threading
from collections import Counter, defaultdict
from collections.abc import Iterator
from contextlib import contextmanager

import pytest
from keyfold.actors import ProjectionSystem
from support.counting import Totals
from support.postgres import PostgresServer
from support.programs import SECONDS, python

PROCESSES, THREADS = 4, 4

MEMBER = """
events, keys = int(sys.argv[2]), int(sys.argv[3])
talk = threading.Lock()
def tell(receipts):
    applied = [one for receipt in receipts for one in receipt.result(60)]
    with talk:
        print(*[f"{one.key}:{one.version}" for one in applied], sep="\\n", flush=True)
def work(lane):
    waiting = []
    for n in range(lane, events, 4):
        waiting.append(system.bus.dispatch(Added(f"key {n % keys}")))
        if len(waiting) == 20:
            tell(waiting)
            waiting = []
    tell(waiting)
threads = [threading.Thread(target=work, args=(lane,)) for lane in range(4)]
for thread in threads: thread.start()
for thread in threads: thread.join()
system.close()
print("end", flush=True)
"""


class Member:
    """A process that dispatches, and reports the key and the version of each event."""

    def __init__(self, url: str, events: int, keys: int) -> None:
        self.confirmed: list[tuple[str, int]] = []
        self.ended = False
        self._changed = threading.Condition()
        self.process = python(MEMBER, url, str(events), str(keys))
        self._threads = [threading.Thread(target=self._follow), threading.Thread(target=self._listen)]
        self._errors = ""
        for thread in self._threads:
            thread.start()

    def _follow(self) -> None:
        assert self.process.stdout is not None
        with self.process.stdout:
            for line in self.process.stdout:
                key, _, version = line.strip().partition(":")
                with self._changed:
                    if version:
                        self.confirmed.append((key, int(version)))
                    self.ended = self.ended or key == "end"
                    self._changed.notify_all()

    def _listen(self) -> None:
        assert self.process.stderr is not None
        with self.process.stderr:
            self._errors = self.process.stderr.read()

    def wait_for(self, count: int) -> None:
        """Return when that many events are confirmed."""
        with self._changed:
            assert self._changed.wait_for(lambda: len(self.confirmed) >= count, SECONDS)

    def ends_within(self, seconds: float) -> bool:
        """Say whether all its events are confirmed by then."""
        with self._changed:
            return self._changed.wait_for(lambda: self.ended, seconds)

    def wait_for_end(self) -> None:
        """Return when all its events are confirmed and it has ended well."""
        assert self.ends_within(SECONDS), self._errors
        assert self.process.wait(SECONDS) == 0, self._errors

    def remove(self) -> None:
        """Kill it in any condition."""
        if self.process.poll() is None:
            self.process.kill()
            self.process.wait(SECONDS)
        for thread in self._threads:
            thread.join(SECONDS)


@contextmanager
def fleet(url: str, events: int, keys: int, *, first: int | None = None) -> Iterator[list[Member]]:
    """Start all processes; each dispatches so many events over so many keys, the first one ``first``."""
    with ProjectionSystem(url) as system:
        system.start()  # the tables are there before they race
    members = [Member(url, first or events, keys), *(Member(url, events, keys) for _ in range(1, PROCESSES))]
    try:
        yield members
    finally:
        for member in members:
            member.remove()


def check(url: str, members: list[Member], *, unconfirmed: int = 0) -> int:
    """Return the number of events in the rows, after a check: no version twice, no confirmed event missing.

    As many as are unconfirmed at most may be in the rows all the same.
    """
    confirmed = [one for member in members for one in member.confirmed]
    assert len(set(confirmed)) == len(confirmed), "a version was given twice"
    versions = defaultdict(set)
    for key, version in confirmed:
        versions[key].add(version)
    found = Counter[str]()
    with ProjectionSystem(url) as system:
        totals = system.register(Totals())
        for key, seen in versions.items():
            snapshot = totals.snapshot(key)
            assert snapshot is not None
            assert snapshot.state.total == snapshot.version
            assert seen <= set(range(1, snapshot.version + 1))
            found[key] = snapshot.version
    assert 0 <= found.total() - len(confirmed) <= unconfirmed
    return found.total()


@pytest.mark.parametrize("keys", [10, 1_000])
def test_four_processes_on_the_same_keys_lose_and_double_nothing(database_url: str, keys: int) -> None:
    """Every total is exact, and every version was given to exactly one event."""
    with fleet(database_url, 1_000, keys) as members:
        for member in members:
            member.wait_for_end()
        assert check(database_url, members) == 4_000


def test_one_is_killed_in_the_middle(database_url: str) -> None:
    """The others finish, and its confirmed events are in the rows."""
    # The first one has more events than it could ever confirm before the kill.
    with fleet(database_url, 1_000, 10, first=10_000_000) as members:
        victim, *others = members
        victim.wait_for(100)
        victim.process.kill()
        for member in others:
            member.wait_for_end()
        victim.remove()
        assert not victim.ended
        # Each of its threads had 20 events under way, and up to 20 confirmed ones not yet reported.
        check(database_url, members, unconfirmed=2 * THREADS * 20)


def test_one_is_frozen_in_the_middle(database_url: str) -> None:
    """On PostgreSQL the others finish meanwhile, on SQLite once it is thawed. Then all events are there."""
    if database_url.startswith("postgresql"):
        # A tenth of Keyfold's own value, to keep the test short.
        database_url += (
            "?options=-c%20idle_in_transaction_session_timeout%3D1000"
            "%20-c%20lock_timeout%3D1000%20-c%20statement_timeout%3D3000"
        )
    with fleet(database_url, 1_000, 10) as members:
        victim, *others = members
        victim.wait_for(100)
        victim.process.send_signal(signal.SIGSTOP)
        if database_url.startswith("postgresql"):
            for member in others:
                member.wait_for_end()
        else:
            others[0].ends_within(1.0)  # unless the frozen one has the lock of the file
        victim.process.send_signal(signal.SIGCONT)
        for member in members:
            member.wait_for_end()
        assert check(database_url, members) == 4_000


def test_postgresql_is_killed_and_started_again_under_load(postgres_server: PostgresServer) -> None:
    """Everything that was accepted is written, once."""
    with fleet(postgres_server.url, 1_000, 100) as members:
        for member in members:
            member.wait_for(100)
        postgres_server.kill()
        postgres_server.start()
        for member in members:
            member.wait_for_end()
        assert check(postgres_server.url, members) == 4_000
