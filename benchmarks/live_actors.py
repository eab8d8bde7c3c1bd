"""Live key actors in one process: their number, threads and memory: ``make bench-live_actors``.

The baseline is a plain dict with the same keys and states, in a process of its own. The difference is the
memory of an actor beyond its key and state. The other side is ``pykka.ThreadingActor``, which has one thread
per actor.
"""

from __future__ import annotations

import argparse
import gc
import statistics
import subprocess
import sys
import threading
import time

import pykka
from durable import Added, Counter, Counters
from harness import environment, record, sqlite_file
from keyfold.actors import ProjectionSystem


def resident_bytes() -> int:
    """Return the resident memory of the process."""
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def baseline(count: int) -> None:
    """Measure keys and states alone."""
    before = resident_bytes()
    states = {f"key {n}": Counter(n) for n in range(count)}
    print(f"{(resident_bytes() - before) / len(states):.0f}")


def pykka_threads(count: int) -> None:
    """Measure Pykka's own actors, with one thread each."""
    before, started = resident_bytes(), time.perf_counter()
    refs = [pykka.ThreadingActor.start() for _ in range(count)]
    seconds = time.perf_counter() - started
    print(f"{(resident_bytes() - before) / count:.0f} {1e6 * seconds / count:.0f}")
    for ref in refs:
        ref.stop(block=False)


def keyfold(count: int) -> None:
    """Measure key actors, each of which has folded and saved one event."""
    with (
        sqlite_file() as url,
        ProjectionSystem(
            url,
            idle_seconds=3600,
            max_live_actors=2 * count,
            dispatch_timeout=60,
            tuning={"report_seconds": 0},
        ) as system,
    ):
        system.register(Counters())
        system.bus.dispatch(Added("warm", 0)).result(60)
        before, started = resident_bytes(), time.perf_counter()
        for n in range(count):
            system.bus.dispatch(Added(f"key {n}", 1))
        assert system.settle(1_000)
        settled = time.perf_counter() - started
        live = system.stats()["projections"]["bench"]["live"]
        assert live == count + 1
        used = (resident_bytes() - before) / count
        print(f"{live} {threading.active_count()} {used:.0f} {count / settled:.0f}")


def spawn(count: int) -> None:
    """Measure dispatches that spawn while the only dispatcher thread is blocked, to compute alone."""
    held, release = threading.Event(), threading.Event()

    class Held(Counters):
        def apply(self, state: Counter, event: Added) -> dict[str, int]:
            held.set()
            release.wait()
            return super().apply(state, event)

    limits = {"max_live_actors": 2 * count, "in_flight_limit": 2 * count}
    tuning = {"report_seconds": 0, "dispatcher_threads": 1}
    with sqlite_file() as url, ProjectionSystem(url, tuning=tuning, **limits) as system:
        system.register(Held())
        first = system.bus.dispatch(Added("held", 1))
        assert held.wait(60)
        seconds = []
        for run in range(5):
            events = [Added(f"key {run} {n}", 1) for n in range(count // 5)]
            started = time.perf_counter()
            for event in events:
                system.bus.dispatch(event)
            seconds.append((time.perf_counter() - started) / len(events))
        release.set()
        first.result(60)
        assert system.settle(300)
    print(f"{1e6 * statistics.median(seconds):.1f} {1e6 * min(seconds):.1f} {1e6 * max(seconds):.1f}")


def run(side: str, count: int) -> list[str]:
    """Run one side in a process of its own and return the words that it printed."""
    command = [sys.executable, __file__, "--only", side, "--actors", str(count)]
    return subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout.split()


def main() -> None:
    """Print all sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, nargs="+", default=[10_000, 100_000, 1_000_000])
    parser.add_argument("--only", choices=["baseline", "keyfold", "spawn", "pykka"])
    options = parser.parse_args()
    sides = {"baseline": baseline, "keyfold": keyfold, "spawn": spawn, "pykka": pykka_threads}
    if options.only:
        sides[options.only](*options.actors)
        return
    print(environment("keyfold", "pykka"))
    for count in options.actors:
        [plain] = run("baseline", count)
        live, threads, used, rate = run("keyfold", count)
        each = record(f"bytes.actors_{count}", int(used) - int(plain))
        record("threads", int(threads))
        print(f"  keyfold: {int(live):,} live key actors on {threads} threads")
        print(f"    {used} bytes per key in all, {plain} of them key and state: {each:.0f} bytes per actor")
        print(f"    first event of each key loaded, folded and saved: {int(rate):,}/s")
    median, least, greatest = run("spawn", 50_000)
    record("spawn", float(median))
    print(
        f"  keyfold: {median} µs per dispatch that spawns, with nothing beside it   ({least} to {greatest})"
    )
    peers = 2_000
    peer_bytes, peer_spawn = run("pykka", peers)
    record("pykka.bytes", int(peer_bytes))
    print(
        f"  pykka.ThreadingActor: {peers:,} on {peers:,} threads, "
        f"{int(peer_bytes):,} bytes and {peer_spawn} µs each"
    )


if __name__ == "__main__":
    main()
