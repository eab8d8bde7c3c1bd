"""Keyfold's hub behind Werkzeug: from the call that an actor makes after a commit to the last socket."""

from __future__ import annotations

import threading
from dataclasses import dataclass, field

from flask import Flask
from keyfold.actors import Projection
from keyfold.actors.broadcaster import Committed
from keyfold.store import Position
from keyfold.web import Keyfold
from orders import serve_orders
from werkzeug.serving import WSGIRequestHandler, make_server


@dataclass
class Counted:
    key: str


@dataclass
class Count:
    totals: dict[str, int] = field(default_factory=dict)


class Counter(Projection[Counted, Count]):
    name = "bench.counter"
    public = True

    def key(self, event: Counted) -> str:
        return event.key

    def apply(self, state: Count, event: Counted) -> dict[str, int]:
        return {}


class Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return


keyfold = Keyfold()
keyfold.register(Counter())
app = Flask("bench")
app.config.update(
    KEYFOLD_TUNING={
        "ping_seconds": 3600,  # no pings: every byte is counted
        "silence_seconds": 3600,  # the crowd answers nothing
        "heartbeat_seconds": 3600,
    },
    KEYFOLD_REAUTHORIZE_SECONDS=0,
    KEYFOLD_DATABASE="sqlite://",
    KEYFOLD_MAX_SOCKETS=100_000,
    KEYFOLD_MAX_SOCKETS_PER_ADDRESS=100_000,
)
keyfold.init_app(app)
hub = app.extensions["keyfold"].hub
EPOCH = "abcdefghijkl"
version = 123_456
with app.app_context():
    keyfold.system.store.write("bench.counter", "a", {})
server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=Quiet)
server.socket.listen(4096)
threading.Thread(target=server.serve_forever, daemon=True).start()
done = threading.Event()


def wait_until_sent() -> None:
    done.clear()
    hub.reactor.call(done.set)
    done.wait()


def fan_out(rounds: int, burst: int) -> None:
    global version
    if version == 123_456:  # the position of the real row does not matter here
        hub.publish_snapshot("bench.counter", "a", Position(EPOCH, version), b"{}", "rebuild")
        wait_until_sent()
    for _ in range(rounds):
        for _ in range(burst):
            delta = b'{"sku":"apple","total":4711}'
            hub.publish(Committed("bench.counter", "a", EPOCH, version, [delta]))
            version += 1
        wait_until_sent()


serve_orders(server.port, fan_out)
