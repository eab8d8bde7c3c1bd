"""How cost grows, on SQLite: over keys, sizes of a state, skewed keys, and subscribers: ``make bench-growth``.

Durable events a second, one thread dispatches, all Receipts awaited at the end. A state is written whole,
once a turn, so its size is what a turn costs; how many events share a turn is what a hot key gains. With
skew, also what a cold key's single event waits beside a flood on one other key. A million keys have one
event each, once: all are loaded and inserted. Subscribers get one delta at a time, as in fan_out.

Tried, and left: one UPDATE … FROM json_each instead of a statement a row (no faster, 3.3 µs a row either way).
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
    """A key for each size."""

    name = "bench.pages"

    def key(self, event: Written) -> str:
        """Its size."""
        return f"{event.size}"

    def apply(self, state: Page, event: Written) -> int:
        """Count, and fill."""
        if not state.text:
            state.text = "x" * event.size
        state.total += 1
        return state.total


def awaited(system: ProjectionSystem, events: list[Added]) -> Callable[[], int]:
    """Dispatch all, then await all."""

    def work() -> int:
        receipts = [system.bus.dispatch(event) for event in events]
        for receipt in receipts:
            receipt.result(120)
        return len(events)

    return work


def in_fifties(system: ProjectionSystem, size: int, count: int) -> Callable[[], int]:
    """Dispatch fifty events, await them, and so on: a turn, and so a whole state, for each fifty or fewer."""

    def work() -> int:
        for _ in range(count // 50):
            for receipt in [system.bus.dispatch(Written(size)) for _ in range(50)]:
                receipt.result(60)
        return count

    return work


def zipf(count: int, keys: int) -> list[Added]:
    """Events over keys whose shares fall as the inverse of their rank."""
    weights = list(itertools.accumulate(1 / rank for rank in range(1, keys + 1)))
    chosen = random.Random(7).choices(range(keys), cum_weights=weights, k=count)
    return [Added(f"key {key}", 1) for key in chosen]


def one_hot(count: int, keys: int) -> list[Added]:
    """Nine of ten events on one key."""
    return [Added("hot" if n % 10 else f"key {n % keys}", 1) for n in range(count)]


def cold_beside_hot(system: ProjectionSystem, count: int) -> list[float]:
    """Return how many seconds single events of cold keys took, each sent into a flood on a hot one."""
    taken = []
    for number in range(20):
        flood = [system.bus.dispatch(Added("hot", 1)) for _ in range(count)]
        started = time.perf_counter()
        system.bus.dispatch(Added(f"cold {number}", 1)).result(60)
        taken.append(time.perf_counter() - started)
        flood[-1].result(60)
    return taken


def to_subscribers(count: int, options: argparse.Namespace) -> list[float]:
    """Return the deltas a second that so many sockets get of one key, a delta at a time."""
    server = Server("keyfold_hub.py")
    crowd = Crowd(server.port, count, "/ws/projection/bench.counter/a", greeting=True)
    frame = 4 + payload_length()
    server.order(0, 0)
    drain_rest(crowd)
    rounds = min(200, max(20, 10_000 // count))  # what a socket may have unread is bounded
    rates = []
    for _ in range(options.repetitions):
        seconds = server.order(rounds, 1)
        crowd.drain(rounds * count * frame)
        rates.append(rounds * count / seconds)
    crowd.close()
    server.close()
    return rates


def main() -> None:
    """Print all of it."""
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
            url, dispatch_timeout=120, mailbox_limit=1_000_000, in_flight_limit=2_000_000, max_live_actors=2_000_000
        ) as system,
    ):  # fmt: skip
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
