"""Dispatch to fold without a database, beside the bare loop over the same events: ``make bench-dispatch``.

The SnapshotWriter is replaced by one that answers Saved at once; everything else is the library as it is. The
bare loop only calls apply and msgspec: no library can be faster.
"""

from __future__ import annotations

import argparse
import queue
from typing import Any

import msgspec
import pykka
from durable import Added, Counter, Counters, in_bulk
from harness import compare, environment, interleaved, row
from keyfold.actors import ProjectionSystem, engine
from keyfold.store.writing.writer_messages import SAVED, Load, Loaded


class NoDatabase(pykka.ThreadingActor):
    """Answers as the SnapshotWriter does, and writes nothing."""

    use_daemon_thread = True

    def __init__(self, *_arguments: Any, **_options: Any) -> None:
        super().__init__()

    @staticmethod
    def _create_actor_inbox() -> Any:
        return queue.SimpleQueue()

    def on_receive(self, message: Any) -> None:
        message.reply(Loaded(None) if type(message) is Load else SAVED)


def main() -> None:
    """Print both sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--keys", type=int, default=100)
    parser.add_argument("--repetitions", type=int, default=5)
    options = parser.parse_args()
    engine.SnapshotWriter = NoDatabase  # type: ignore[misc, assignment]
    print(environment("keyfold", "pykka", "msgspec"))
    events = [Added(f"key {n % options.keys}", 1) for n in range(options.events)]
    projection, encode = Counters(), msgspec.json.Encoder().encode

    def bare_loop() -> int:
        states = {f"key {n}": Counter() for n in range(options.keys)}
        deltas = [encode(projection.apply(states[projection.key(event)], event)) for event in events]
        return len(deltas)

    with ProjectionSystem(
        "sqlite://", dispatch_timeout=60, mailbox_limit=1_000_000, in_flight_limit=1_000_000
    ) as system:
        system.register(Counters())
        system.bus.dispatch(Added("key 0", 0)).result(60)
        bulk = in_bulk(system, options.events, options.keys)
        rates = interleaved({"keyfold": bulk, "bare": bare_loop}, options.repetitions)
    print(row("keyfold", "keyfold, dispatch to resolved Receipt, no database", rates["keyfold"]))
    print(row("bare", "bare loop: key, apply, encode", rates["bare"]))
    print(compare(rates["keyfold"], rates["bare"]))


if __name__ == "__main__":
    main()
