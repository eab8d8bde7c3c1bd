"""One delta to 1,000 sockets, and bursts of 50, beside the usual alternatives: ``make bench-fan_out``.

Each server is a process of its own. The time ends when its kernel has taken every frame. All frames fit into
the kernel's buffers, and are read and counted after each run, so no client slows a server. All servers send
frames of the same length, without compression.

The reactor has its own loop over selectors. asyncio's transport.write, the second bare loop, costs up to a
tenth more than send, and 1.2 kB per socket, where Keyfold's own state is 1.1 kB in all (tracemalloc). Neither
rules it out; simplicity decided: one call sends, and one object is the socket.

Out of reach here: eight times Flask-Sock. Its loop of ``ws.send`` reaches more than half of the bare loop of
``send``, so no server can be eight times as fast. Its cost are two threads per socket (``held_sockets``),
which sleep here.
"""

from __future__ import annotations

import argparse
from contextlib import ExitStack

from crowd import Crowd, Server, raise_limits
from harness import compare, environment, row, section

PATHS = {
    "bare.py": "",
    "bare_asyncio.py": "",
    "keyfold_hub.py": "/ws/projection/bench.counter/a",
    "node_ws.mjs": "/",
    "websockets_broadcast.py": "/",
    "flask_sock_idiom.py": "/",
}
TEXTS = {
    "bare.py": "bare loop of send",
    "bare_asyncio.py": "bare loop of asyncio's transport.write",
    "keyfold_hub.py": "keyfold: publish until every socket has it",
    "node_ws.mjs": "Node ws: client.send in a loop",
    "websockets_broadcast.py": "websockets.broadcast",
    "flask_sock_idiom.py": "Flask-Sock: ws.send in a loop",
}


def main() -> None:
    """Print all sides."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--sockets", type=int, default=1_000)
    parser.add_argument("--repetitions", type=int, default=9)
    options = parser.parse_args()
    raise_limits()
    print(environment("keyfold", "websockets", "flask-sock"))
    with ExitStack() as stack:
        compare_all(stack, options)


def compare_all(stack: ExitStack, options: argparse.Namespace) -> None:
    frame_bytes = 4 + payload_length()
    servers, crowds = {}, {}
    for program, path in PATHS.items():
        arguments = [str(payload_length())] if program.endswith(".mjs") else []
        servers[program] = server = Server(program, *arguments)
        stack.callback(server.close)
        crowds[program] = crowd = Crowd(server.port, options.sockets, path, greeting="keyfold" in program)
        stack.callback(crowd.close)
    first = servers["keyfold_hub.py"].order(0, 0)
    assert first >= 0
    drain_rest(crowds["keyfold_hub.py"])
    for figures, title, rounds, burst in (
        ("single", "one delta at a time", 20, 1),
        ("bursts", "bursts of 50 deltas", 1, 50),
    ):
        section(f"{title}, to {options.sockets:,} sockets, deltas delivered per second:", figures)
        rates: dict[str, list[float]] = {program: [] for program in PATHS}
        for _ in range(options.repetitions + 1):
            for program in PATHS:
                seconds = servers[program].order(rounds, burst)
                frames = rounds * burst * options.sockets
                crowds[program].drain(frames * frame_bytes)
                rates[program].append(frames / seconds)
        for program in PATHS:
            del rates[program][0]  # the first run warms up
            print(row(program.partition(".")[0], TEXTS[program], rates[program]))
        ours = rates["keyfold_hub.py"]
        for program in PATHS:
            if program != "keyfold_hub.py":
                print(f"  against {TEXTS[program]}:{compare(ours, rates[program])}")


def payload_length() -> int:
    """Return the length of one delta message of Keyfold."""
    from keyfold.web.live.protocol.messages import delta_messages

    [frame] = delta_messages(
        "projection.bench.counter.a", "delta", "abcdefghijkl", 123_456, [b'{"sku":"apple","total":4711}']
    )
    return len(frame)


def drain_rest(crowd: Crowd) -> None:
    """Discard the first messages."""
    for sock in crowd.sockets:
        sock.recv(1 << 16)


if __name__ == "__main__":
    main()
