"""Durable events per second, beside the seed's algorithm on the same database: ``make bench-durable``.

In bulk: one thread dispatches, and awaits all Receipts at the end. Closed loop: each of many threads awaits
its own commit. The seed's algorithm runs with its best of 1, 4 and 8 threads. Both sides check their totals.
PostgreSQL has its default durability; SQLite has WAL and synchronous=NORMAL on both sides.

Tried and rejected: waking a waiting thread over a socket instead of a lock releases the interpreter's lock
while the kernel wakes it. The bare wake-ups are 1.4 to 2 times as fast this way, but where a request
computes, the waking thread may then wait 5 ms for the lock, per waiting thread. The wake-up is half of the
time in the closed loop (py-spy --gil).

Out of reach here: in the closed loop each event wakes a waiting thread, so the bare wake-ups, in the
table, are the bound; the seed's algorithm at its best thread count wakes no thread. In bulk on SQLite,
the seed's transaction does not flush to the disk and takes 45 to 75 µs. Thirty times that speed would be
2 µs per event, and an event without any database (``dispatch``) takes twice as long: 0.9 µs to dispatch,
0.6 to fold and resolve, 0.7 to ask for the result on one thread, the rest for thread switches and for the
garbage collector, which scans 100,000 Receipts.
"""

from __future__ import annotations

import argparse
import queue
import statistics
import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

from harness import compare, environment, interleaved, postgres, row, section, sqlite_file
from keyfold.actors import Projection, ProjectionSystem
from seed import Seed


@dataclass
class Added:
    """Add an amount to the counter of a key."""

    key: str
    amount: int


@dataclass
class Counter:
    """The sum."""

    total: int = 0


class Counters(Projection[Added, Counter]):
    """The read model of both sides."""

    name = "bench"

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Counter, event: Added) -> dict[str, int]:
        state.total += event.amount
        return {"total": state.total}


def in_bulk(system: ProjectionSystem, count: int, keys: int) -> Callable[[], int]:
    """Return work of one thread: dispatch ``count`` events over the keys, then await all."""
    events = [Added(f"key {n % keys}", 1) for n in range(count)]

    def work() -> int:
        receipts = [system.bus.dispatch(event) for event in events]
        for receipt in receipts:
            receipt.result(60)
        return count

    return work


def closed_loop(system: ProjectionSystem, count: int, keys: int, threads: int) -> Callable[[], int]:
    """Return work of several threads: each awaits the commit of its event before the next one."""
    shares = [[Added(f"key {n % keys}", 1) for n in range(start, count, threads)] for start in range(threads)]

    def one(events: list[Added]) -> None:
        for event in events:
            system.bus.dispatch(event).result(60)

    def work() -> int:
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, shares))
        return count

    return work


def bare_wake_ups(count: int, threads: int) -> Callable[[], int]:
    """Return the wake-ups alone: as many threads, each woken once per event by one other thread.

    No closed loop of threads can be faster: on some machines a wake-up costs more than a commit.
    """

    def work() -> int:
        waiting: queue.SimpleQueue[threading.Lock | None] = queue.SimpleQueue()

        def wake() -> None:
            while (sleeper := waiting.get()) is not None:
                sleeper.release()

        def one(events: int) -> None:
            for _ in range(events):
                sleeper = threading.Lock()
                sleeper.acquire()
                waiting.put(sleeper)
                sleeper.acquire(timeout=60)

        waker = threading.Thread(target=wake)
        waker.start()
        with ThreadPoolExecutor(threads) as pool:
            list(pool.map(one, [count // threads] * threads))
        waiting.put(None)
        waker.join()
        return count

    return work


def measure(url: str, options: argparse.Namespace) -> None:
    """Print all comparisons on one database."""
    seed = Seed(url)
    with ProjectionSystem(url, dispatch_timeout=60, mailbox_limit=100_000) as system:
        counters = system.register(Counters())
        system.bus.dispatch(Added("key 0", 0)).result(60)
        few = [(f"key {n % options.keys}", 1) for n in range(options.seed_events)]
        sides: dict[str, Callable[[], int]] = {
            "bulk": in_bulk(system, options.events, options.keys),
            "loop": closed_loop(system, options.loop_events, options.keys, options.threads),
            "alone": closed_loop(system, options.loop_events // 10, options.keys, 1),
            "wakeups": bare_wake_ups(options.loop_events, options.threads),
        }
        for threads in (1, 4, 8):
            sides[f"seed {threads}"] = lambda threads=threads: seed.run(few, threads)
        rates = interleaved(sides, options.repetitions)
        best = max((1, 4, 8), key=lambda threads: statistics.median(rates[f"seed {threads}"]))
        theirs = rates[f"seed {best}"]
        print(row("bulk", f"keyfold, one thread, {options.events:,} events in bulk", rates["bulk"]))
        print(row("seed", "seed's algorithm, best of 1, 4, 8 threads", theirs), f"  with {best}")
        print(compare(rates["bulk"], theirs))
        print(row("loop", f"keyfold, {options.threads} threads, each awaits its commit", rates["loop"]))
        print(compare(rates["loop"], theirs))
        print(
            row("wakeups", f"{options.threads} threads, each woken once per event, no work", rates["wakeups"])
        )
        print(row("alone", "keyfold, one thread, awaits each commit", rates["alone"]))
        done = options.repetitions * (options.events + options.loop_events + options.loop_events // 10)
        total = sum(counters.read_required(f"key {n}").total for n in range(options.keys))
        assert total == done, (total, done)
        assert seed.total() == 3 * options.repetitions * options.seed_events


def main() -> None:
    """Run on both databases."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=100_000)
    parser.add_argument("--loop-events", type=int, default=10_000)
    parser.add_argument("--seed-events", type=int, default=2_000)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--threads", type=int, default=64)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment("keyfold", "pykka", "peewee", "psycopg2-binary", "msgspec"))
    for name, database in (("SQLite", sqlite_file), ("PostgreSQL", postgres)):
        title = f"{name}, {options.keys} keys, durable events; median of {options.repetitions} (range)"
        section(title, figures=name.lower())
        with database() as url:
            measure(url, options)


if __name__ == "__main__":
    main()
