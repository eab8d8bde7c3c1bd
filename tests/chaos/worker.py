"""One process of a round: ``python worker.py URL FOLDER NAME SEED SECONDS``. It keeps a journal."""

from __future__ import annotations

import faulthandler
import gc
import json
import logging
import os
import random
import signal
import sys
import threading
from collections.abc import Callable
from contextlib import closing
from pathlib import Path
from time import monotonic
from typing import Any

import psycopg2
from journal import Journal, id_of
from keyfold.actors import Applied, ProjectionRuntime, ProjectionSystem, Receipt
from keyfold.actors.broadcaster import Broadcaster, Committed
from keyfold.store import Position, VersionConflict
from world import EVENT_OF, ILL_TYPED, KEYS, OWN, POISON, SLOW, Echoes, Halts, Letters, limits

THREADS = 3
PATIENCE = 30.0
"""Seconds that a Receipt may take after the end of the round. Then it never ends."""
HANGS = 150.0
"""Seconds after the end of the round when a process that still runs shows its threads and ends."""


class NotedBroadcaster(Broadcaster):
    """Notes each commit, then fails now and then."""

    def __init__(self, journal: Journal, system: str, chance: random.Random) -> None:
        self._journal, self._system, self._chance = journal, system, chance

    def publish(self, committed: Committed) -> None:
        """Note it before anything may fail."""
        ids = [json.loads(delta)["id"] for delta in committed.deltas]
        self._journal.note(
            "published", system=self._system, projection=committed.projection, key=committed.key,
            epoch=committed.epoch, base=committed.base_version, ids=ids,
        )  # fmt: skip
        if self._chance.random() < 0.02:
            raise ConnectionError("nobody listens")

    def publish_snapshot(
        self, projection: str, key: str, position: Position, state: bytes, reason: str
    ) -> None:
        """Note the new epoch."""
        self._journal.note(
            "replaced", system=self._system, projection=projection, key=key, epoch=position.epoch,
            version=position.version,
        )  # fmt: skip

    def invalidate(self, projection: str, key: str) -> None:
        """Take no notice."""


class Life:
    """One system of this process, and the threads that trouble it."""

    def __init__(self, url: str, journal: Journal, name: str, seed: str, **settings: Any) -> None:
        self.name, self.seed, self.journal = name, seed, journal
        self.broadcaster = NotedBroadcaster(journal, name, random.Random(f"{seed} broadcaster"))
        self.system = ProjectionSystem(url, broadcaster=self.broadcaster, **settings)
        self.letters, self.halts, self.echoes = Letters(), Halts(), Echoes()
        self.runtimes: dict[str, ProjectionRuntime[Any, Any]] = {
            projection.name: self.system.register(projection)
            for projection in (self.letters, self.halts, self.echoes)
        }
        self.receipts: list[tuple[str, list[str], Receipt]] = []
        self.stopping = threading.Event()
        self._numbers = iter(range(10**9))
        self._echoing = random.Random(f"{seed} echo")
        self.runtimes[Letters.name].on_applied(self._echo)

    def new_id(self) -> str:
        """Return a name that no other event of the round has."""
        return f"{self.name}.{next(self._numbers)}"

    # -- events

    def dispatch(
        self, projection: str, keys: list[str], thread: str, then: str = "", size: int = 0
    ) -> Receipt | None:
        """Dispatch an event, and note its outcome."""
        id_ = self.new_id()
        event = EVENT_OF[projection](id_, keys, then, "x" * size)
        if then == "list in event":
            event.pad = ["x" * size]
        elif then == "nan in event":
            event.amount = float("nan")
        self.journal.note(
            "try", id=id_, projection=projection, keys=keys, thread=thread, then=then, size=size
        )
        try:
            receipt = self.system.bus.dispatch(event)
        except BaseException as error:
            self.journal.note("refused", id=id_, error=type(error).__name__)
            return None
        self.journal.note("accepted", id=id_)
        self.receipts.append((id_, keys, receipt))
        receipt.add_done_callback(lambda receipt: self._ended(id_, keys, receipt))
        return receipt

    def _ended(self, id_: str, keys: list[str], receipt: Receipt) -> None:
        parts = getattr(receipt, "parts", (receipt,))
        for key, part in zip(keys, parts, strict=False):
            error = part.exception(0)
            if error is not None:
                self.journal.note("ended", id=id_, key=key, error=type(error).__name__)
            else:
                [applied] = part.result(0)
                self.journal.note("ended", id=id_, **_facts(applied))
        self.journal.note("done", id=id_)

    def _echo(self, _key: str, _state: Any) -> None:
        if not self.stopping.is_set() and self._echoing.random() < 0.05:
            self.dispatch(
                Echoes.name, [self._echoing.choice(KEYS)], f"{self.name} hook {threading.get_ident()}"
            )

    # -- threads

    def run(self, seconds: float) -> None:
        """Trouble the system for so long, then see it off."""
        parts = [self._dispatcher(number) for number in range(THREADS)]
        parts += [self._operator, self._writer]
        threads = [threading.Thread(target=self._guard(part), daemon=True) for part in parts]
        for thread in threads:
            thread.start()
        self.stopping.wait(seconds)
        self.stopping.set()
        for thread in threads:
            thread.join(PATIENCE)
            if thread.is_alive():
                self.journal.note("stuck", thread=thread.name)
                faulthandler.dump_traceback()
        self.see_off()

    def _guard(self, part: Callable[[], None]) -> Callable[[], None]:
        def run() -> None:
            try:
                part()
            except BaseException as error:
                self.journal.note("crashed", error=repr(error))
                raise

        return run

    def _dispatcher(self, number: int) -> Callable[[], None]:
        def run() -> None:
            chance, thread = random.Random(f"{self.seed} {number}"), f"{self.name} {number}"
            while not self.stopping.is_set():
                receipts = [self._one(chance, thread) for _ in range(chance.choice([1, 2, 10, 40]))]
                if chance.random() < 0.5:
                    for receipt in receipts:
                        if receipt is not None:
                            receipt.exception(PATIENCE)
                else:
                    self.stopping.wait(chance.uniform(0.0, 0.02))

        return run

    def _one(self, chance: random.Random, thread: str) -> Receipt | None:
        projection = Letters.name if chance.random() < 0.7 else Halts.name
        keys = chance.sample(KEYS, chance.choice([1, 1, 1, 2, 3]))
        then = ""
        if chance.random() < (0.02 if projection == Letters.name else 0.01):
            then = chance.choice(POISON + ILL_TYPED)
        size = chance.choice([0, 0, 0, 0, 0, 0, 300, 12_000 if chance.random() < 0.9 else 45_000])
        return self.dispatch(projection, keys, thread, then, size)

    def _operator(self) -> None:
        chance = random.Random(f"{self.seed} operator")
        while not self.stopping.wait(chance.uniform(0.0, 0.03)):
            key = chance.choice(KEYS)
            match chance.randrange(10):
                case 0:
                    self._replace(chance.choice([Letters.name, Echoes.name, Halts.name]), key, chance)
                case 1 | 2 | 3:
                    state = self._attempt("read", self.runtimes[Letters.name].read, key)
                    if state is not None and state.half:
                        self.journal.note("half read", key=key, id=state.half)
                case 4 | 5:
                    self._retry_or_skip(Letters.name, chance)
                case 6:
                    self._retry_or_skip(Halts.name, chance)
                case _:
                    self._resume(key, chance)

    def _replace(self, projection: str, key: str, chance: random.Random) -> None:
        runtime = self.runtimes[projection]
        events = [EVENT_OF[projection](self.new_id(), [key]) for _ in range(chance.randrange(3))]
        ids = [event.id for event in events]
        if events:
            self._attempt("rebuild", runtime.rebuild, key, events, projection=projection, ids=ids)
        else:
            self._attempt("wipe", runtime.wipe, key, projection=projection, ids=ids)

    def _retry_or_skip(self, projection: str, chance: random.Random) -> None:
        letters = self.runtimes[projection].dead_letters
        found = self._attempt("find", letters.find, None, limit=5)
        if not found:
            return
        letter = found[0] if chance.random() < 0.7 else chance.choice(found)
        id_, skips = id_of(letter.event), chance.random() < 0.5
        facts = {"projection": projection, "id": id_, "letter": letter.id}
        self._mend(chance)
        if skips:
            self._attempt("skip", letters.skip, letter.id, of=letter.key, **facts)
        else:
            applied = self._attempt("retry", letters.retry, letter.id, of=letter.key, **facts)
            for one in applied or ():
                self.journal.note("retried", id=id_, **_facts(one))

    def _resume(self, key: str, chance: random.Random) -> None:
        self._mend(chance)
        self._attempt("resume", self.runtimes[Halts.name].dead_letters.resume, key, projection=Halts.name)

    def _mend(self, chance: random.Random) -> None:
        self.letters.mended = self.halts.mended = chance.random() < 0.5

    def _attempt(self, what: str, call: Callable[..., Any], key: Any, *args: Any, **facts: Any) -> Any:
        """Note the attempt, and its outcome. ``limit`` goes to the call."""
        options = {"limit": facts.pop("limit")} if "limit" in facts else {}
        number = self.new_id()
        self.journal.note("attempt", of=what, number=number, key=facts.pop("of", key), **facts)
        try:
            result = call(key, *args, **options)
        except BaseException as error:
            self.journal.note("attempted", number=number, error=type(error).__name__)
            return None
        self.journal.note("attempted", number=number)
        return result

    def _writer(self) -> None:
        """Count up values that belong to no projection, each over the one it was made of."""
        chance, store = random.Random(f"{self.seed} writer"), self.system.store
        while not self.stopping.wait(chance.uniform(0.0, 0.05)):
            key = chance.choice(KEYS)
            try:
                row = store.row(OWN, key)
                count = json.loads(row.state)["count"] if row is not None else 0
                self.journal.note("writing", key=key, count=count + 1)
                expected = None if row is None else row.position  # the parent has made it
                position = store.write(OWN, key, {"count": count + 1}, expected=expected)
            except VersionConflict:
                self.journal.note("not written", key=key)
            except Exception as error:
                self.journal.note("maybe written", key=key, error=type(error).__name__)
            else:
                self.journal.note("written", key=key, count=count + 1, version=position.version)

    # -- the end

    def see_off(self) -> None:
        """Wait for all Receipts, note the facts, close."""
        system = self.system
        settled = system.settle(PATIENCE)
        undone = self.undone(PATIENCE)
        # A Receipt is told a moment before its event is no longer under way, and an actor retires in between.
        settled = system.settle(PATIENCE) and settled
        facts = system.stats()
        self.journal.note(
            "settled", settled=settled, undone=undone, in_flight=facts["in_flight"],
            actors={
                name: [one["spawned"], one["retired"], one["live"]]
                for name, one in self._stable_actors().items()
            },
        )  # fmt: skip
        self.close(20.0)

    def _stable_actors(self) -> dict[str, Any]:
        """Return the facts of the projections between two retirements."""
        deadline = monotonic() + 5
        while True:
            projections: dict[str, Any] = self.system.stats()["projections"]
            if monotonic() > deadline or all(
                p["spawned"] - p["retired"] == p["live"] for p in projections.values()
            ):
                return projections
            threading.Event().wait(0.01)

    def close(self, timeout: float) -> None:
        """Close, and note how long it took and which Receipts have not ended by it."""
        began = monotonic()
        self.system.close(timeout)
        self.journal.note(
            "closed", system=self.name, timeout=timeout, took=monotonic() - began, undone=self.undone(1.0),
            in_flight=self.system.stats()["in_flight"],
        )  # fmt: skip

    def undone(self, patience: float) -> list[str]:
        """Return the events with Receipts that do not end within this number of seconds in all."""
        deadline, undone = monotonic() + patience, []
        for id_, _, receipt in list(self.receipts):
            try:
                receipt.exception(max(0.0, deadline - monotonic()))
            except TimeoutError:
                undone.append(id_)
        return undone


def mayflies(url: str, journal: Journal, name: str, seed: str, stopping: threading.Event) -> None:
    """Make systems that live for a moment, and close them with a backlog."""
    chance = random.Random(f"{seed} mayflies")
    number = 0
    while not stopping.wait(chance.uniform(0.2, 0.8)):
        number += 1
        settings = limits(chance) | {"in_flight_limit": 500, "mailbox_limit": 200, "dispatch_timeout": 0.1}
        life = Life(url, journal, f"{name}m{number}", f"{seed} {number}", **settings)
        for _ in range(chance.choice([1, 20, 200])):
            then = SLOW if chance.random() < 0.2 else ""
            life.dispatch(Letters.name, chance.sample(KEYS, chance.choice([1, 2])), life.name, then)
        life.stopping.set()
        life.close(chance.choice([0.0, 0.2, 0.2, 2.0]))


def _facts(applied: Applied) -> dict[str, Any]:
    return {
        "key": applied.key,
        "epoch": applied.epoch,
        "version": applied.version,
        "delta": applied.delta["id"],
    }


def connections_to(url: str, name: str) -> int:
    """Return how many connections to the database this process has open."""
    if url.startswith("postgresql"):
        with closing(psycopg2.connect(url.partition("?")[0])) as connection:
            cursor = connection.cursor()
            cursor.execute("SELECT count(*) FROM pg_stat_activity WHERE application_name = %s", (name,))
            return sum(count for (count,) in cursor.fetchall())
    file = url.removeprefix("sqlite:///")
    count = 0
    for number in os.listdir("/proc/self/fd"):  # noqa: PTH208
        try:
            count += os.readlink(f"/proc/self/fd/{number}") == file  # noqa: PTH115
        except OSError:
            continue
    return count


def main() -> None:
    """Live for so many seconds, or until SIGTERM."""
    url, folder, name, seed, seconds = sys.argv[1:]
    if url.startswith("postgresql"):
        url += f"?application_name={name}"
    faulthandler.dump_traceback_later(float(seconds) + HANGS, exit=True)
    logging.basicConfig(level=logging.CRITICAL)
    logging.disable(logging.CRITICAL)
    journal = Journal(Path(folder) / f"{name}.journal")
    life = Life(url, journal, name, seed, **limits(random.Random(seed)))
    signal.signal(signal.SIGTERM, lambda *_: life.stopping.set())
    short = threading.Thread(target=mayflies, args=(url, journal, name, seed, life.stopping), daemon=True)
    short.start()
    journal.note("began")
    life.run(float(seconds))
    short.join(PATIENCE)
    left = [t for t in threading.enumerate() if t is not threading.main_thread()]
    for thread in left:
        thread.join(2)
    connections = connections_to(url, name)
    for _ in range(20):
        if not connections:
            break
        gc.collect()
        threading.Event().wait(0.05)
        connections = connections_to(url, name)
    journal.note(
        "ended well",
        threads=[thread.name for thread in left if thread.is_alive()],
        connections=connections,
    )


if __name__ == "__main__":
    main()
