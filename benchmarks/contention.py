"""The cost of several processes that write the same keys: ``make bench-contention``.

Each process has 16 threads. Each thread awaits the commit of its event before it dispatches the next one, to
one of the same keys at random. The other side is pessimistic locking in as many processes and threads: SELECT
FOR UPDATE, UPDATE, COMMIT, one event per transaction. Both on one PostgreSQL with its default durability;
both check their totals.

A conflict is a commit that found the row changed by another process: the actor reads the row and folds again.
The share of a process should be 1: equal shares mean that no process starves.

Over 1,000 keys a conflict usually means that another process wrote the key earlier, not at the same time. It
costs one reload.

Tried and rejected: the loser of a conflict waits, longer each time; the winner, which has the newest state,
then keeps the key (shares of 0.01 to 3.97). The writer reads the rows of conflicts at once, before the actors
ask: no gain on two cores. Chosen: the winner pauses (actors/key_actor/contention_backoff.py). At four
processes, the p99 of one key fell from 84 to 38 ms, the most conflicts of one commit from 53 to 17, and the
throughput rose by a fifth.
"""

from __future__ import annotations

import argparse
import json
import multiprocessing
import random
import statistics
import threading
import time
from collections import Counter
from collections.abc import Callable
from typing import Any, NamedTuple

import psycopg2
from harness import environment, postgres, record, row, section
from keyfold.actors import Projection, ProjectionSystem
from keyfold.actors.key_actor.actor import KeyActor
from support.counting import Added, Total

THREADS = 16


class Counts(Projection[Added, Total]):
    """The read model of both sides."""

    name = "bench"

    def key(self, event: Added) -> str:
        return event.key

    def apply(self, state: Total, event: Added) -> dict[str, int]:
        state.total += event.amount
        return {"total": state.total}


class Done(NamedTuple):
    """The result of one process.

    Attributes:
        seconds: The time from each event to its commit.
        attempts: The number of commits by the number of their conflicts.
    """

    seconds: list[float]
    attempts: Counter[int]


class Task(NamedTuple):
    """The task of one process."""

    side: str
    number: int
    url: str
    keys: int
    seconds: float


Run = Callable[[Callable[[], Callable[[str], object]]], list[float]]


def keyfold(task: Task, run: Run) -> Done:
    """Dispatch through the library."""
    attempts, under_way = Counter[int](), Counter[KeyActor]()
    on_conflict, on_saved = KeyActor._on_conflict, KeyActor._on_saved

    def count_conflict(actor: KeyActor) -> None:
        under_way[actor] += 1
        on_conflict(actor)

    def count_turn(actor: KeyActor) -> None:
        attempts[under_way.pop(actor, 0)] += 1
        on_saved(actor)

    # In this process alone, which ends with the run: the library has no use for this distribution.
    KeyActor._on_conflict, KeyActor._on_saved = count_conflict, count_turn  # type: ignore[method-assign]
    with ProjectionSystem(task.url) as system:
        system.register(Counts())
        return Done(run(lambda: lambda key: system.bus.dispatch(Added(key)).result(60)), attempts)


def for_update(task: Task, run: Run) -> Done:
    """Run one transaction per event, which locks the row before it reads it."""

    def connect() -> Callable[[str], object]:
        connection = psycopg2.connect(task.url)
        cursor = connection.cursor()

        def one(key: str) -> None:
            cursor.execute("SELECT state FROM locked WHERE key = %s FOR UPDATE", (key,))
            [[state]] = cursor.fetchall()
            state["total"] += 1
            cursor.execute("UPDATE locked SET state = %s WHERE key = %s", (json.dumps(state), key))
            connection.commit()

        return one

    return Done(run(connect), Counter())


SIDES = {"keyfold": keyfold, "for update": for_update}


def member(task: Task, ready: Any, results: Any) -> None:
    """Run one of the processes."""

    def run(connect: Callable[[], Callable[[str], object]]) -> list[float]:
        taken: list[float] = []

        def work(lane: int) -> None:
            one, choice = connect(), random.Random(task.number * THREADS + lane)
            one(f"key {lane % task.keys}")  # connects and warms up, once per thread
            ready.wait(60)
            now = time.perf_counter()
            until = now + task.seconds
            while now < until:
                started = now
                one(f"key {choice.randrange(task.keys)}")
                now = time.perf_counter()
                taken.append(now - started)

        threads = [threading.Thread(target=work, args=(lane,)) for lane in range(THREADS)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return taken

    results.put(SIDES[task.side](task, run))


def measure(side: str, url: str, processes: int, keys: int, seconds: float) -> list[Done]:
    """Run the processes at the same time."""
    context = multiprocessing.get_context("spawn")
    ready, results = context.Barrier(processes * THREADS), context.Queue()
    members = [
        context.Process(target=member, args=(Task(side, number, url, keys, seconds), ready, results))
        for number in range(processes)
    ]
    for one in members:
        one.start()
    done = [results.get(timeout=120) for _ in members]
    for one in members:
        one.join()
    return done


def prepare(url: str, keys: int) -> None:
    """Make all rows of both sides, so that their creation is not measured."""
    with ProjectionSystem(url) as system:
        system.register(Counts())
        receipts = [system.bus.dispatch(Added(f"key {n}", 0)) for n in range(keys)]
        for receipt in receipts:
            receipt.result(60)
    with psycopg2.connect(url) as connection:
        cursor = connection.cursor()
        cursor.execute("CREATE TABLE IF NOT EXISTS locked (key text PRIMARY KEY, state jsonb)")
        for n in range(keys):
            cursor.execute(
                "INSERT INTO locked VALUES (%s, '{\"total\": 0}') ON CONFLICT DO NOTHING", (f"key {n}",)
            )
    connection.close()


def check(url: str, events: dict[str, int]) -> None:
    """Check the rows of each side against its confirmed events."""
    with psycopg2.connect(url) as connection:
        cursor = connection.cursor()
        for side, table in (("keyfold", "projection_snapshots"), ("for update", "locked")):
            cursor.execute(f"SELECT sum((state->>'total')::bigint) FROM {table}")
            [[total]] = cursor.fetchall()
            assert total == events[side], (side, total, events[side])
    connection.close()


def lines(figure: str, text: str, runs: list[list[Done]], seconds: float) -> str:
    """Return medians over the repetitions, and the worst values."""
    rates = [sum(len(done.seconds) for done in run) / seconds for run in runs]
    waits = sorted(wait * 1e3 for run in runs for done in run for wait in done.seconds)
    p99 = record(f"{figure}.p99", waits[int(len(waits) * 0.99)])
    text = row(f"{figure}.rate", text, rates)
    text += f"\n      p50 {statistics.median(waits):.1f} ms, p99 {p99:.1f}, longest {waits[-1]:.0f}"
    if len(runs[0]) > 1:
        shares = [
            len(done.seconds) * len(run) / sum(len(one.seconds) for one in run)
            for run in runs
            for done in run
        ]
        text += f"; share per process {min(shares):.2f} to {max(shares):.2f}"
    attempts = sum((done.attempts for run in runs for done in run), Counter[int]())
    if not attempts or len(runs[0]) == 1:
        return text
    conflicts = sum(count * number for count, number in attempts.items())
    few = [attempts[count] / attempts.total() for count in range(3)]
    return text + (
        f"\n      {conflicts / attempts.total():.2f} conflicts per commit: "
        f"{few[0]:.0%} of the commits met none, {few[1]:.0%} one, "
        f"{few[2]:.0%} two, {1 - sum(few):.1%} more; at most {max(attempts)}"
    )


def main() -> None:
    """Print all combinations."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=1.5)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    print(environment("keyfold", "psycopg2-binary"))
    for keys in (1, 10, 1_000):
        title = f"{keys:,} key{'s' * (keys > 1)}, {THREADS} threads per process"
        section(f"{title}; median of {options.repetitions} (range)", figures=f"keys_{keys}")
        with postgres() as url:
            prepare(url, keys)
            runs: dict[tuple[str, int], list[list[Done]]] = {}
            events: Counter[str] = Counter()
            for _ in range(options.repetitions):
                for processes in (1, 2, 4):
                    for side in SIDES:
                        run = measure(side, url, processes, keys, options.seconds)
                        runs.setdefault((side, processes), []).append(run)
                        events[side] += sum(len(done.seconds) + THREADS for done in run)
            check(url, events)
        for (side, processes), some in runs.items():
            text = f"{side}, {processes} process{'es' * (processes > 1)}"
            print(lines(f"{side.replace(' ', '_')}.processes_{processes}", text, some, options.seconds))


if __name__ == "__main__":
    main()
