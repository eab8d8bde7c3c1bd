"""The write path on PostgreSQL beside eventsourcing and beside the raw statement: ``make bench-write_path``.

``eventsourcing`` runs a ProjectionRunner with a PostgreSQL view, as its documentation shows; its events are
stored before the time starts, so only the projection is timed. It reads events from a log and can replay
them, which Keyfold does not; it sends nothing to browsers. Both keep a total for each of 100 keys.

The raw statement is one UPDATE of 500 rows from VALUES, with a version check, and a commit: the limit of the
database itself. Against it Keyfold writes 1,000 keys in rounds of one event each, so that every event writes
a row; all events of a round are awaited before the next. And once in bulk, where the events of a key during a
commit share the next commit; a raw loop has no counterpart for that.

One thread that awaits each commit is the worst case: no other event shares its commit, and each event passes
from the caller to the actor, to the writer, back to the actor and to the caller. The raw statement for one
row, on the caller's own thread, is the share of the database in it.
"""

from __future__ import annotations

import argparse
import itertools
from collections.abc import Callable

from durable import Added, Counters, in_bulk
from harness import compare, environment, interleaved, postgres, row
from keyfold.actors import ProjectionSystem
from keyfold.store import Position, SnapshotStore
from keyfold.store.rows import Save, new_epoch
from keyfold.store.writing.ledger import Ledger
from peers import EventSourced, RawStatement

BATCH = 500


def in_rounds(system: ProjectionSystem, keys: list[str], rounds: int) -> Callable[[], int]:
    """Return work that repeats: dispatch one event per key, and await all of them."""

    def work() -> int:
        for _ in range(rounds):
            receipts = [system.bus.dispatch(Added(key, 1)) for key in keys]
            for receipt in receipts:
                receipt.result(60)
        return rounds * len(keys)

    return work


def by_the_store(store: SnapshotStore, keys: list[str], rounds: int) -> Callable[[], int]:
    """Return work of the store alone: write each key over its last version, BATCH rows per commit."""
    ledger, epoch, versions = Ledger(), new_epoch(), itertools.count()

    def work() -> int:
        for version in itertools.islice(versions, rounds):
            base = Position(epoch, version) if version else None
            saves = [Save("bench.store", key, base, epoch, version + 1, b'{"total":1}', 1) for key in keys]
            for start in range(0, len(keys), BATCH):
                assert all(store.commit(saves[start : start + BATCH], (), ledger))
        return rounds * len(keys)

    return work


def main() -> None:
    """Print all sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--projected", type=int, default=2_000)
    parser.add_argument("--rounds", type=int, default=10)
    parser.add_argument("--alone", type=int, default=500)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment("keyfold", "psycopg2-binary", "eventsourcing", "psycopg"))
    keys = [f"key {n}" for n in range(1_000)]
    with postgres() as url, ProjectionSystem(url, dispatch_timeout=60, mailbox_limit=100_000) as system:
        store = SnapshotStore(url)
        store.keep_connection()
        counters = system.register(Counters())
        for key in keys:
            system.bus.dispatch(Added(key, 0))
        assert system.settle(60)
        # The last row of the raw table is the one that is written alone.
        raw, sourced = RawStatement(url, len(keys) + 1), EventSourced(url, 100)
        version = itertools.count()

        def raw_rounds() -> int:
            return sum(
                raw.write(keys[start : start + BATCH], base)
                for base in itertools.islice(version, options.rounds)
                for start in range(0, len(keys), BATCH)
            )

        alone = itertools.count()

        def raw_alone() -> int:
            return sum(
                raw.write([f"key {len(keys)}"], base) for base in itertools.islice(alone, options.alone)
            )

        sides: dict[str, Callable[[], int]] = {
            "bulk": in_bulk(system, options.events, 100),
            "bulk of 1,000 keys": in_bulk(system, options.events, 1_000),
            "rounds": in_rounds(system, keys, options.rounds),
            "raw": raw_rounds,
            "raw alone": raw_alone,
            "alone": in_rounds(system, keys[:1], options.alone),
            "store": by_the_store(store, keys, options.rounds),
            "sourced": lambda: sourced.project(options.projected),
        }
        rates = interleaved(sides, options.repetitions, prepare=lambda: sourced.store(options.projected))
        total = sum(counters.read_required(key).total for key in keys)
        assert total == options.repetitions * (
            2 * options.events + options.rounds * len(keys) + options.alone
        ), total
        raw.close()
        store.disconnect()
        sourced.check()
    print(row("bulk_100", "keyfold, 100 keys in bulk, durable events", rates["bulk"]))
    print(
        row("eventsourcing", "eventsourcing's ProjectionRunner, 100 keys, projecting alone", rates["sourced"])
    )
    print(compare(rates["bulk"], rates["sourced"]))
    print(row("raw", "raw statement, 1,000 keys, 500 rows per commit", rates["raw"]))
    print(row("store", "keyfold's store, 1,000 keys, 500 rows per commit", rates["store"]))
    print(compare(rates["store"], rates["raw"]))
    print(row("rounds", "keyfold, 1,000 keys in rounds, one row per event", rates["rounds"]))
    print(compare(rates["rounds"], rates["raw"]))
    print(row("bulk_1000", "keyfold, 1,000 keys in bulk, events", rates["bulk of 1,000 keys"]))
    print(compare(rates["bulk of 1,000 keys"], rates["raw"]))
    print(row("raw_alone", "raw statement, one row per commit", rates["raw alone"]))
    print(row("alone", "keyfold, one thread awaits each commit", rates["alone"]))
    print(compare(rates["alone"], rates["raw alone"]))


if __name__ == "__main__":
    main()
