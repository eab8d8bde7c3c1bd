"""The growth of cost over keys, sizes of a state, skew and subscribers, on SQLite: ``make bench-growth``.

Durable events per second: one thread dispatches, and awaits all Receipts at the end. A commit writes the
whole state of a key, so its cost grows with the size of the state; a hot key gains, because many events share
one commit. With skewed keys, also the time that a single event of a cold key waits beside a flood on another
key. A million keys get one event each, once: all are loaded and inserted. Subscribers get one delta at a
time, as in fan_out.

Tried and rejected: an UPDATE FROM json_each for one statement per row (3.3 µs per row either way).
"""

from __future__ import annotations

import argparse
import itertools
import random
import statistics
import time
from collections.abc import Callable
from dataclasses import dataclass

from crowd import Crowd, Server, raise_limits
from durable import Added, Counters, in_bulk
from fan_out import drain_rest, payload_length
from harness import environment, interleaved, rate, row, sqlite_file
from keyfold.actors import Projection, ProjectionSystem


@dataclass
class Written:
    """Make the state of a key as large as this."""

    size: int


@dataclass
class Page:
    """A state of a given size."""

    total: int = 0
    text: str = ""


class Pages(Projection[Written, Page]):
    """One key per size."""

    name = "bench.pages"

    def key(self, event: Written) -> str:
        return f"{event.size}"

    def apply(self, state: Page, event: Written) -> int:
        if not state.text:
            state.text = "x" * event.size
        state.total += 1
        return state.total


def awaited(system: ProjectionSystem, events: list[Added]) -> Callable[[], int]:
    """Return work that dispatches all events, then awaits all."""

    def work() -> int:
        receipts = [system.bus.dispatch(event) for event in events]
        for receipt in receipts:
            receipt.result(120)
        return len(events)

    return work


def in_fifties(system: ProjectionSystem, size: int, count: int) -> Callable[[], int]:
    """Return work that repeats: dispatch fifty events, which share a commit or two, and await them."""

    def work() -> int:
        for _ in range(count // 50):
            for receipt in [system.bus.dispatch(Written(size)) for _ in range(50)]:
                receipt.result(60)
        return count

    return work


def zipf(count: int, keys: int) -> list[Added]:
    """Return events over keys with shares in inverse proportion to their rank."""
    weights = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    chosen = random.Random(7).choices(range(keys), cum_weights=weights, k=count)
    return [Added(f"key {key}", 1) for key in chosen]


def one_hot(count: int, keys: int) -> list[Added]:
    """Return events of which nine of ten are on one key."""
    return [Added("hot" if n % 10 else f"key {n % keys}", 1) for n in range(count)]


def cold_beside_hot(system: ProjectionSystem, count: int) -> list[float]:
    """Return the seconds that single events of cold keys took, each beside a flood on a hot key."""
    taken = []
    for number in range(20):
        flood = [system.bus.dispatch(Added("hot", 1)) for _ in range(count)]
        started = time.perf_counter()
        system.bus.dispatch(Added(f"cold {number}", 1)).result(60)
        taken.append(time.perf_counter() - started)
        flood[-1].result(60)
    return taken


def to_subscribers(count: int, options: argparse.Namespace) -> list[float]:
    """Return the deltas per second to this number of sockets on one key, one delta at a time."""
    server = Server("keyfold_hub.py")
    crowd = Crowd(server.port, count, "/ws/projection/bench.counter/a", greeting=True)
    frame = 4 + payload_length()
    server.order(0, 0)
    drain_rest(crowd)
    rounds = min(200, max(20, 10_000 // count))  # the unread bytes of a socket are bounded
    rates = []
    for _ in range(options.repetitions):
        seconds = server.order(rounds, 1)
        crowd.drain(rounds * count * frame)
        rates.append(rounds * count / seconds)
    crowd.close()
    server.close()
    return rates


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=50_000)
    parser.add_argument("--max-keys", type=int, default=100_000)
    parser.add_argument("--million", type=int, default=1_000_000)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    raise_limits()
    print(environment("keyfold", "msgspec"))
    with (
        sqlite_file() as url,
        ProjectionSystem(
            url,
            dispatch_timeout=120,
            mailbox_limit=1_000_000,
            in_flight_limit=2_000_000,
            max_live_actors=2_000_000,
        ) as system,
    ):
        system.register(Counters())
        system.register(Pages())
        system.bus.dispatch(Added("key 0", 0)).result(60)
        sides: dict[str, Callable[[], int]] = {}
        texts: dict[str, str] = {}

        def side(figure: str, text: str, work: Callable[[], int]) -> None:
            sides[figure], texts[figure] = work, text

        for keys in (1, 100, 10_000, options.max_keys):
            text = f"over {keys:,} key{'s' if keys > 1 else ''}"
            side(f"keys_{keys}", text, in_bulk(system, options.events, keys))
        for size in (100, 10_000, 1_000_000):
            text = f"one key, in fifties, a state of {size:,} bytes"
            side(f"bytes_{size}", text, in_fifties(system, size, 2_000))
        hot = awaited(system, one_hot(options.events, 10_000))
        side("hot_key", "nine of ten on one key, the others over 10,000", hot)
        side("zipf", "Zipf over 10,000 keys", awaited(system, zipf(options.events, 10_000)))
        for figure, values in interleaved(sides, options.repetitions).items():
            print(row(figure, texts[figure], values))
        million = in_bulk(system, options.million, options.million)
        print(row("keys_once", f"over {options.million:,} keys, once", [rate(million)]))
        flood = cold_beside_hot(system, 20_000)
        alone = cold_beside_hot(system, 1)
        for name, seconds in (("beside 20,000 events of a hot key", flood), ("alone", alone)):
            middle, worst = 1e3 * statistics.median(seconds), 1e3 * max(seconds)
            print(f"  a cold key's event {name:<40} median {middle:.1f} ms, worst {worst:.1f} ms")
    for count in (1, 10, 1_000, 9_000):
        text = f"to {count:,} subscriber{'s' if count > 1 else ''}, deltas"
        print(row(f"subscribers_{count}", text, to_subscribers(count, options)))


if __name__ == "__main__":
    main()
