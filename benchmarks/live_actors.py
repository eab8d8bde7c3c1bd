"""Live key actors in one process: how many, on how many threads, in how much memory: ``make bench-live_actors``.

The same keys and states in a plain dict are the baseline, in a process of its own; the difference is
what an actor costs beyond its key and state. ``pykka.ThreadingActor``, a thread each, is the peer.
"""

from __future__ import annotations

import argparse
import gc
import subprocess
import sys
import threading
import time

import pykka
from durable import Added, Counter, Counters
from harness import environment, sqlite_file
from keyfold.actors import ProjectionSystem


def resident_bytes() -> int:
    """Return what the process holds of memory now."""
    gc.collect()
    with open("/proc/self/status") as status:
        return next(int(line.split()[1]) * 1024 for line in status if line.startswith("VmRSS"))


def baseline(count: int) -> None:
    """Keys and states alone."""
    before = resident_bytes()
    states = {f"key {n}": Counter(n) for n in range(count)}
    print(f"{(resident_bytes() - before) / len(states):.0f}")


def pykka_threads(count: int) -> None:
    """Pykka's own actors, a thread each."""
    before, started = resident_bytes(), time.perf_counter()
    refs = [pykka.ThreadingActor.start() for _ in range(count)]
    seconds = time.perf_counter() - started
    print(f"{(resident_bytes() - before) / count:.0f} {1e6 * seconds / count:.0f}")
    for ref in refs:
        ref.stop(block=False)


def keyfold(count: int) -> None:
    """Key actors, each of which has folded and saved one event."""
    with (
        sqlite_file() as url,
        ProjectionSystem(url, idle_seconds=3600, max_live_actors=2 * count, dispatch_timeout=60) as system,
    ):
        system.register(Counters())
        system.bus.dispatch(Added("warm", 0)).result(60)
        before, started = resident_bytes(), time.perf_counter()
        for n in range(count):
            system.bus.dispatch(Added(f"key {n}", 1))
        dispatched = time.perf_counter() - started
        assert system.settle(300)
        settled = time.perf_counter() - started
        live = system.stats()["projections"]["bench"]["live"]
        assert live == count + 1
        used = (resident_bytes() - before) / count
        print(
            f"{live} {threading.active_count()} {used:.0f} {1e6 * dispatched / count:.1f} {count / settled:.0f}"
        )


def run(what: str, count: int) -> list[str]:
    """Run one side in a process of its own and return what it printed."""
    command = [sys.executable, __file__, "--only", what, "--actors", str(count)]
    return subprocess.run(command, check=True, capture_output=True, text=True).stdout.split()


def main() -> None:
    """Print all sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--actors", type=int, default=200_000)
    parser.add_argument("--only", choices=["baseline", "keyfold", "pykka"])
    options = parser.parse_args()
    if options.only:
        {"baseline": baseline, "keyfold": keyfold, "pykka": pykka_threads}[options.only](options.actors)
        return
    print(environment("keyfold", "pykka"))
    [plain] = run("baseline", options.actors)
    live, threads, used, spawn, rate = run("keyfold", options.actors)
    peers = 2_000
    peer_bytes, peer_spawn = run("pykka", peers)
    print(f"  keyfold: {int(live):,} live key actors on {threads} threads")
    print(
        f"    {used} bytes a key in all, {plain} of them key and state: {int(used) - int(plain)} bytes an actor"
    )
    print(f"    {spawn} µs a dispatch that spawns; first event of each key folded and saved: {int(rate):,}/s")
    print(
        f"  pykka.ThreadingActor: {peers:,} on {peers:,} threads, {int(peer_bytes):,} bytes and {peer_spawn} µs each"
    )


if __name__ == "__main__":
    main()
