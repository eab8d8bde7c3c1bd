"""A short life of a system that executes nearly every line of actors/ and store/, and its judge.

The thread CALLER goes through it step by step. Each step notes beforehand which events may reach which key,
so that it can be judged wherever it was interrupted.
"""

from __future__ import annotations

import gc
import json
import os
import sqlite3
import threading
from collections import Counter
from contextlib import closing, suppress
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import psycopg2
from journal import id_of
from keyfold.actors import (
    ApplyError,
    BroadcastError,
    Closed,
    InvalidEvent,
    KeyHalted,
    MailboxFull,
    Projection,
    ProjectionSystem,
    Receipt,
)
from keyfold.actors.broadcaster import Broadcaster, Committed
from keyfold.store import Position, ProjectionError, SnapshotStore

PATIENCE = 0.6
"""Seconds that a step waits for a Receipt; if it does not end, the system is closed."""
CLOSE_SECONDS = 0.6
MARGIN = 3.0
"""Seconds by which a close may be late on a busy machine."""
HANGS = 8.0
"""Seconds after which a step that waits hangs, though the system was closed meanwhile."""


@dataclass
class Entry:
    """An event with a name of its own, for one key or several."""

    id: str
    keys: list[str]
    then: str = ""


@dataclass
class HaltingEntry:
    """The same, for HaltingBooks alone."""

    id: str
    keys: list[str]
    then: str = ""


@dataclass
class Book:
    """The events by name, and their number; ``half`` is empty unless an event was folded by half."""

    seen: dict[str, int] = field(default_factory=dict)
    folded: int = 0
    half: str = ""
    extra: Any = None


class Books(Projection[Entry, Book]):
    """Folds Entry into Book. With ``mended`` no event is poison."""

    name = "fault.books"

    def __init__(self) -> None:
        self.mended = False

    def keys(self, event: Entry) -> list[str]:
        """The event's own."""
        return event.keys

    def apply(self, state: Book, event: Entry) -> dict[str, int]:
        """Count the event, half of it before it raises."""
        state.half = event.id
        state.seen[event.id] = state.seen.get(event.id, 0) + 1
        if event.then == "poison" and not self.mended:
            raise ValueError(event.id)
        if event.then == "unencodable" and not self.mended:
            state.extra = 1j
        state.folded += 1
        state.half = ""
        return {event.id: state.folded}


class HaltingBooks(Books):
    """The same, with keys that wait for an operator."""

    name = "fault.halting"
    events = HaltingEntry
    on_error = "halt"


class FlakyBroadcaster(Broadcaster):
    """Fails for key ``deaf``, and remembers the positions of the others."""

    def __init__(self) -> None:
        self.problems: list[str] = []
        self._at: dict[tuple[str, str], Position] = {}

    def publish(self, committed: Committed) -> None:
        """Check that versions of one epoch are told in order, without a gap."""
        address = committed.projection, committed.key
        before = self._at.get(address)
        if before is not None and before.epoch == committed.epoch and before.version > committed.base_version:
            self.problems.append(f"{address} was told {before}, then {committed.base_version} of the epoch")
        self._at[address] = Position(committed.epoch, committed.version)
        if committed.key == "deaf":
            raise ConnectionError("nobody listens")

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        """Go to another epoch."""
        self._at[projection, key] = position

    def invalidate(self, projection: str, key: str) -> None:
        """Take no notice."""


class Account:
    """The events of one key, by the answers that the application got."""

    def __init__(self) -> None:
        self.must: set[str] = set()
        """Confirmed: once in the state."""
        self.may: set[str] = set()
        """No answer, or none that tells: at most once, in the state or as a letter."""
        self.letters: set[str] = set()
        """Raised: a letter, and not in the state."""
        self.either: set[str] = set()
        """A letter with an interrupted retry: once, in the state or as a letter."""
        self.gone: set[str] = set()
        """Replaced by a rebuild or a wipe: not in the state."""

    def replacing(self, ids: set[str]) -> None:
        """Be prepared for either outcome of a rebuild: the events of now, or these."""
        self.may |= self.must | self.either | ids
        self.must, self.either = set(), set()

    def replaced(self, before: set[str], ids: set[str]) -> None:
        """The rebuild succeeded: none of the events before it is left."""
        self.must = set(ids)
        self.gone |= before


class Given:
    """A Receipt that was handed out, and the event that it is for."""

    def __init__(self, projection: str, event: Entry | HaltingEntry, receipt: Receipt) -> None:
        self.projection, self.event, self.receipt = projection, event, receipt
        self.judged = False


class Outcome:
    """The outcome of one run of the scenario."""

    def __init__(self) -> None:
        self.violations: list[str] = []
        self.notes: list[str] = []
        self.step = ""
        self.finished = threading.Event()

    def violated(self, problem: str) -> None:
        """Note that a promise was broken."""
        self.violations.append(problem)


class Database:
    """The database seen from outside of the library."""

    def __init__(self, url: str) -> None:
        self.url = url
        self.postgres = url.startswith("postgresql")
        self.file = url.removeprefix("sqlite:///")

    def connect(self) -> Any:
        """Return a fresh connection of the driver."""
        if self.postgres:
            connection = psycopg2.connect(self.url)
            connection.autocommit = True
            return connection
        return sqlite3.connect(self.file, isolation_level=None, timeout=5)

    def ask(self, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
        """Run one statement."""
        with closing(self.connect()) as connection:
            cursor = connection.cursor()
            cursor.execute(sql.replace("?", "%s") if self.postgres else sql, parameters)
            return list(cursor.fetchall()) if cursor.description else []

    def has_tables(self) -> bool:
        """Return whether the library has made its tables."""
        tables = "pg_tables WHERE tablename" if self.postgres else "sqlite_master WHERE name"
        return bool(self.ask(f"SELECT 1 FROM {tables} = 'projection_processes'"))

    def connections(self) -> int:
        """Return how many connections this process, or for PostgreSQL any, has open besides our own."""
        if self.postgres:
            own = "application_name = 'keyfold' AND datname = current_database()"
            return int(self.ask(f"SELECT count(*) FROM pg_stat_activity WHERE {own}")[0][0])
        count = 0
        for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
            with suppress(OSError):
                count += os.readlink(f"/proc/self/fd/{number}") == self.file  # noqa: PTH115
        return count


class Scenario:
    """One life of a system on one database."""

    def __init__(self, url: str) -> None:
        self.database = Database(url)
        self.outcome = Outcome()
        self.given: list[Given] = []
        self.accounts: dict[tuple[str, str], Account] = {}
        self.system: ProjectionSystem | None = None
        self.broadcaster = FlakyBroadcaster()
        self._books, self._halting = Books(), HaltingBooks()
        self._made = self._stuck = False
        self._number = 0

    # -- the application's side

    def run(self) -> None:
        """Go through all steps, on the calling thread, then close."""
        steps = [
            self._make, self._dispatch, self._several_keys, self._poison, self._foreign_writer, self._burst,
            self._retry_and_skip, self._halt, self._resume, self._own_values, self._replace, self._deaf,
            self._read, self._more_keys_than_actors, self._settle,
        ]  # fmt: skip
        for step in steps:
            if self._stuck:
                break
            self.outcome.step = step.__name__
            try:
                step()
            except (KeyboardInterrupt, SystemExit) as interrupt:
                self.outcome.notes.append(f"{step.__name__}: {interrupt!r}")
            except (ProjectionError, RuntimeError, MemoryError, ValueError, KeyError) as error:
                self.outcome.notes.append(f"{step.__name__}: {error!r}"[:300])
            if not self._made:
                break
        if self.system is not None:
            self._close()

    def _make(self) -> None:
        system = ProjectionSystem(
            self.database.url, broadcaster=self.broadcaster, max_live_actors=8,
            mailbox_limit=3, in_flight_limit=6, dispatch_timeout=PATIENCE, turn_limit=64, commit_limit=8,
            tuning={"dispatcher_threads": 1, "report_seconds": 0.1},
        )  # fmt: skip
        self.system = system
        books, _ = system.register(self._books), system.register(self._halting)
        books.on_applied(lambda _key, _state: None)
        self._made = True

    def _dispatch(self) -> None:
        self._send("a", "b", "a")
        self._await()

    def _several_keys(self) -> None:
        self._hand(Entry(self._name(), ["a", "b"]))
        self._hand(Entry(self._name(), ["b", "c"], "poison"))
        self._await()

    def _poison(self) -> None:
        self._send("a")
        self._hand(Entry(self._name(), ["a"], "poison"))
        self._hand(Entry(self._name(), ["a"], "unencodable"))
        self._send("a")
        self._await()
        with suppress(InvalidEvent):
            self._system().runtime("fault.books").apply_event(object())

    def _foreign_writer(self) -> None:
        """Another process folds an event into a key between two turns of ours."""
        self._send("a")
        self._await()
        database, name = self.database, self._name()
        where = "WHERE projection_name = 'fault.books' AND key = 'a'"
        column = "state::text" if database.postgres else "state"
        rows = database.has_tables() and database.ask(
            f"SELECT {column}, version FROM projection_snapshots {where}"
        )
        if rows and rows[0][1]:
            state = json.loads(rows[0][0])
            state["seen"][name], state["folded"] = 1, state["folded"] + 1
            change = "UPDATE projection_snapshots SET state = ?, version = version + 1"
            sql = f"{change} {where} AND version = ? RETURNING key"
            if database.ask(sql, json.dumps(state), rows[0][1]):
                self._account("fault.books", "a").must.add(name)
        for _ in range(3):
            self._send("a")
            self._await()

    def _burst(self) -> None:
        self._send(*"abcbaaabcbaab")
        self._await()

    def _retry_and_skip(self) -> None:
        letters = self._system().runtime("fault.books").dead_letters
        self._books.mended = True
        for number, letter in enumerate(letters.find()):
            id_, account = id_of(letter.event), self._account("fault.books", letter.key)
            account.letters.discard(id_)
            account.may.discard(id_)
            if number % 3 == 2:
                account.may.add(id_)
                letters.skip(letter.id)
                account.may.discard(id_)
                account.gone.add(id_)
            else:
                account.either.add(id_)
                letters.retry(letter.id)
                account.either.discard(id_)
                account.must.add(id_)
        self._books.mended = False

    def _halt(self) -> None:
        for then in ("", "poison", "", ""):
            self._hand(HaltingEntry(self._name(), ["h"], then), "fault.halting")
        self._await()

    def _resume(self) -> None:
        letters = self._system().runtime("fault.halting").dead_letters
        self._halting.mended = True
        account = self._account("fault.halting", "h")
        parked, account.letters = account.letters, set()
        account.either |= parked
        letters.resume("h")
        account.either -= parked
        account.must |= parked
        self._hand(HaltingEntry(self._name(), ["h"]), "fault.halting")
        self._await()

    def _own_values(self) -> None:
        store = self._system().store
        position = store.write("fault.own", "x", {"n": 1})
        store.write("fault.own", "x", {"n": 2}, expected=position)
        if store.read("fault.own", "x") != {"n": 2}:
            self.outcome.violated("a value that was written is not read")

    def _replace(self) -> None:
        runtime = self._system().runtime("fault.books")
        account = self._account("fault.books", "c")
        events = [Entry(self._name(), ["c"]), Entry(self._name(), ["c"])]
        ids = {event.id for event in events}
        before = set(account.must)
        account.replacing(ids)
        runtime.rebuild("c", events)
        account.replaced(before, ids)
        account.replacing(set())
        runtime.wipe("c")
        account.replaced(ids, set())
        self._send("c")
        self._await()

    def _deaf(self) -> None:
        self._send("deaf")
        self._await()

    def _read(self) -> None:
        runtime = self._system().runtime("fault.books")
        runtime.read("a")
        runtime.snapshot("b")
        runtime.read("nobody")
        runtime.dead_letters.find()
        self._system().stats()

    def _more_keys_than_actors(self) -> None:
        for number in range(9):
            self._send(f"many {number}")
        self._send("a", "b", "c")
        self._await()

    def _settle(self) -> None:
        system = self._system()
        settled = system.settle(PATIENCE)
        in_flight = system.stats()["in_flight"]
        undone = sum(not given.receipt.done() for given in self.given)
        if in_flight < 0:
            self.outcome.violated(f"{in_flight} events are in flight")
        # Once more, and longer: after an interrupted dispatch, an event may be on its way without a Receipt.
        if not undone and (not settled or in_flight) and not system.settle(MARGIN):
            in_flight = system.stats()["in_flight"]
            self.outcome.violated(
                f"all Receipts have ended, yet settle() is False with {in_flight} in flight"
            )

    def _close(self) -> None:
        assert self.system is not None
        self.outcome.step = "_close"
        for _ in range(3):
            began = monotonic()
            try:
                self.system.close(CLOSE_SECONDS)
            except (KeyboardInterrupt, SystemExit, Exception) as error:
                self.outcome.notes.append(f"close: {error!r}"[:300])
            else:
                break
            finally:
                if monotonic() - began > CLOSE_SECONDS + MARGIN:
                    self.outcome.violated(f"close({CLOSE_SECONDS}) took {monotonic() - began:.1f} s")

    def _system(self) -> ProjectionSystem:
        assert self.system is not None
        return self.system

    def _name(self) -> str:
        self._number += 1
        return f"e{self._number}"

    def _account(self, projection: str, key: str) -> Account:
        return self.accounts.setdefault((projection, key), Account())

    def _send(self, *keys: str) -> None:
        for key in keys:
            if not self._stuck:
                self._hand(Entry(self._name(), [key]))

    def _hand(self, event: Entry | HaltingEntry, projection: str = "fault.books") -> None:
        accounts = [self._account(projection, key) for key in event.keys]
        for account in accounts:
            account.may.add(event.id)
        try:
            receipt = self._system().bus.dispatch(event)
        except (MailboxFull, Closed, InvalidEvent) as refusal:
            self.outcome.notes.append(f"{event.id} is refused: {refusal}"[:200])
            self._stuck |= isinstance(refusal, MailboxFull)  # after waiting for PATIENCE seconds
            for account in accounts:
                account.may.discard(event.id)
            return
        # The append cannot be interrupted: the injector only raises in the library.
        self.given.append(Given(projection, event, receipt))

    def _await(self) -> None:
        """Wait for all Receipts, PATIENCE seconds in all."""
        deadline = monotonic() + PATIENCE
        for given in self.given:
            if given.judged:
                continue
            try:
                error = given.receipt.exception(max(0.0, deadline - monotonic()))
            except TimeoutError:
                self._stuck = True
                self.outcome.notes.append(f"{given.event.id} has no outcome after {PATIENCE} s")
                continue
            self._learn(given, error)

    def _learn(self, given: Given, error: BaseException | None) -> None:
        given.judged = True
        event = given.event
        for key in event.keys:
            account = self._account(given.projection, key)
            if error is None or (isinstance(error, BroadcastError) and len(event.keys) == 1):
                account.must.add(event.id)
            elif len(event.keys) == 1 and isinstance(error, (ApplyError, KeyHalted)):
                account.may.discard(event.id)
                account.letters.add(event.id)
            elif len(event.keys) == 1 and isinstance(error, (MailboxFull, Closed)):
                account.may.discard(event.id)

    # -- the judge's side

    def judge(self, threads_before: set[threading.Thread]) -> None:
        """Look for violations. Called on CALLER after the close; nothing is injected any more."""
        outcome = self.outcome
        outcome.step = "judge"
        for given in self.given:
            if not given.receipt.done():
                outcome.violated(f"the Receipt of {given.event.id} for {given.event.keys} never ends")
            elif not given.judged:
                self._learn(given, given.receipt.exception(0))
        left = [
            t
            for t in threading.enumerate()
            if t not in threads_before and t is not threading.current_thread()
        ]
        for thread in left:
            thread.join(1)
        if alive := sorted(thread.name for thread in left if thread.is_alive()):
            outcome.violated(f"threads are left: {alive}")
        if self.system is not None and (in_flight := self.system.stats()["in_flight"]):
            outcome.violated(f"{in_flight} events are in flight after close")
        outcome.violations += self.broadcaster.problems
        self._judge_connections()
        if self.database.has_tables():
            self._judge_rows()
        self._judge_afterlife()

    def _judge_connections(self) -> None:
        count = self.database.connections()
        for _ in range(10):
            if not count:
                return
            gc.collect()  # a connection in a cycle
            threading.Event().wait(0.02)  # a backend of PostgreSQL needs a moment to leave
            count = self.database.connections()
        self.outcome.violated(f"{count} database connections are left")

    def _judge_rows(self) -> None:
        column = "state::text" if self.database.postgres else "state"
        rows = {
            (name, key): (json.loads(state), version)
            for name, key, state, version in self.database.ask(
                f"SELECT projection_name, key, {column}, version FROM projection_snapshots"
            )
            if name != "fault.own"
        }
        letters = Counter(
            (name, key, id_of(event))
            for name, key, event in self.database.ask(
                "SELECT projection_name, key, event FROM projection_dead_letters"
            )
        )
        for address in self.accounts.keys() | rows.keys():
            state, version = rows.get(address, (None, 0))
            self._judge_row(address, state or {"seen": {}, "folded": 0, "half": ""}, version, letters)
        for (name, key, id_), count in letters.items():
            account = self._account(name, key)
            if count > 1:
                self.outcome.violated(f"{count} letters of {id_} for {key!r}")
            if id_ not in account.letters | account.may | account.either:
                self.outcome.violated(f"a letter of {id_} for {key!r}, which is folded, skipped or unknown")

    def _judge_row(
        self,
        address: tuple[str, str],
        state: dict[str, Any],
        version: int,
        letters: Counter[tuple[str, str, str]],
    ) -> None:
        outcome, account, seen = self.outcome, self._account(*address), state["seen"]
        if state["half"] or sum(seen.values()) != state["folded"]:
            outcome.violated(f"{address} holds a half changed state: {state}")
        if version != state["folded"]:
            outcome.violated(f"{address} is at version {version} with {state['folded']} events")
        for id_ in account.must:
            if seen.get(id_, 0) != 1:
                outcome.violated(f"{id_} is confirmed, and {seen.get(id_, 0)} times in {address}")
        for id_, count in seen.items():
            if id_ not in account.must | account.may | account.either or id_ in account.gone:
                outcome.violated(f"{id_} is in {address}, though it was refused, is a letter or was replaced")
            if count + letters[(*address, id_)] > 1:
                outcome.violated(
                    f"{id_} is {count} times in {address}, with {letters[(*address, id_)]} letters"
                )
        for id_ in account.letters:
            if not letters[(*address, id_)]:
                outcome.violated(f"{id_} raised for {address}, and there is no letter of it")

        for id_ in account.either:
            if seen.get(id_, 0) + letters[(*address, id_)] != 1:
                outcome.violated(
                    f"the retry of {id_} was interrupted, and it is neither in {address} nor a letter"
                )

    def _judge_afterlife(self) -> None:
        """A fresh system reads every key, and writes to every key again."""
        with ProjectionSystem(self.database.url, tuning={"report_seconds": 0}, close_timeout=5) as system:
            books, halting = Books(), HaltingBooks()
            books.mended = halting.mended = True
            system.register(books)
            runtime = system.register(halting)
            expected = dict[tuple[str, str], int]()
            for name, key in self.accounts:
                snapshot = system.runtime(name).snapshot(key)
                expected[name, key] = 0 if snapshot is None else snapshot.version
            parked = runtime.dead_letters.find("h", parked=True)
            while parked and not parked[0].event.startswith("{"):
                runtime.dead_letters.skip(parked.pop(0).id)  # a repr is for people only
            if parked:
                expected["fault.halting", "h"] = expected.get(("fault.halting", "h"), 0) + len(parked)
                runtime.dead_letters.resume("h")
            for (name, key), version in expected.items():
                kind = Entry if name == "fault.books" else HaltingEntry
                try:
                    [applied] = system.bus.dispatch(kind("last", [key])).result(5)
                except Exception as error:
                    self.outcome.violated(f"{key!r} can't be written again: {error!r}"[:300])
                else:
                    if applied.version != version + 1:
                        self.outcome.violated(
                            f"{key!r} was at {version}, and is at {applied.version} after one event"
                        )
        SnapshotStore(self.database.url).read("fault.own", "x")
