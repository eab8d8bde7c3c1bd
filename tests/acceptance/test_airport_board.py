"""The airport board: real flights, a real server process, a real socket."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import boards
import flights
import psutil
import pytest
import websocket
from keyfold.actors import ProjectionSystem
from lease import Lease
from support.gunicorns import gunicorn
from support.parking import DEADLINE
from support.redis_server import RedisServer
from support.serving import Watcher

ROOT = Path(__file__).parents[2]
BOARD = ROOT / "examples" / "airport_board"
MONTH = ROOT / "tests" / "data" / "flights-2013-01.csv.gz"


def plain_loop(events: list[Any]) -> dict[str, boards.Board]:
    """Fold the events without any library: one dict, one loop."""
    projection, states = boards.AirportBoard(), dict[str, boards.Board]()
    for event in events:
        for key in projection.keys(event):
            projection.apply(states.setdefault(key, boards.Board()), event)
    return states


def test_all_january_flights_through_the_system_equal_a_plain_loop(database_url: str) -> None:
    """27,004 real events, 97 boards, two projections, three keys an event: board by board the same."""
    events = flights.read_flights(MONTH)
    assert len(events) == 27_004
    expected = plain_loop(events)
    with ProjectionSystem(database_url, dispatch_timeout=DEADLINE) as system:
        board = system.register(boards.AirportBoard())
        overview = system.register(boards.AirportsOverview())
        receipts = [system.bus.dispatch(event) for event in events]
        assert sum(len(receipt.result(DEADLINE)) for receipt in receipts) == 3 * 27_004
        assert {key: board.read(key) for key in expected} == expected
        whole = overview.read_required("all")
        assert whole.airports == {code: state.tally for code, state in expected.items()}
        assert (whole.total.flights, whole.total.cancelled) == (27_004 - 521, 521)


class Running:
    """The demo as a process of its own."""

    def __init__(self, directory: Path, speed: int) -> None:
        environment = {
            **os.environ,
            "PORT": "0",
            "SPEED": str(speed),
            "KEYFOLD_DATABASE": f"sqlite:///{directory}/board.db",
        }
        self.process = subprocess.Popen(
            [sys.executable, str(BOARD / "app.py")],
            env=environment, cwd=directory, text=True, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
        )  # fmt: skip
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        found = re.search(r"http://127\.0\.0\.1:(\d+)", line)
        assert found, line
        self.port = int(found[1])

    def get(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a URL."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            text = answer.read()
        return json.loads(text) if answer.headers["Content-Type"] == "application/json" else text.decode()

    def watch(self, name: str, key: str) -> websocket.WebSocket:
        """Open the socket of a key."""
        url = f"ws://127.0.0.1:{self.port}/ws/projection/{name}/{key}"
        return websocket.create_connection(url, timeout=DEADLINE)


@contextmanager
def running(directory: Path, speed: int = 300) -> Iterator[Running]:
    """Start the demo; end it as Ctrl-C would, and see that it ends well and says nothing."""
    demo = Running(directory, speed)
    try:
        yield demo
        demo.process.send_signal(signal.SIGINT)
        _, errors = demo.process.communicate(timeout=DEADLINE)
        assert demo.process.returncode == 0
        assert errors == ""
    finally:
        if demo.process.poll() is None:
            demo.process.kill()
            demo.process.communicate()


def snapshot_then(socket: websocket.WebSocket, deltas: int) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return the first frame and the deltas after it, having checked that they are contiguous."""
    snapshot = json.loads(socket.recv())
    assert snapshot["type"] == "snapshot"
    at, seen = snapshot["version"], []
    for _ in range(deltas):
        frame = json.loads(socket.recv())
        assert (frame["type"], frame["prev"], frame["version"]) == ("delta", at, at + 1)
        at += 1
        seen.append(frame)
    return snapshot, seen


def test_the_demo_runs_stops_and_goes_on_from_the_rows(tmp_path: Path) -> None:
    """Pages answer, a socket moves; after Ctrl-C the second start begins where the first ended."""
    with running(tmp_path, 1800) as demo:
        assert "New York" in demo.get("/")
        assert 'data-code="JFK"' in demo.get("/airport/JFK")
        socket = demo.watch("airports.overview", "all")
        _, deltas = snapshot_then(socket, 5)
        socket.close()
        assert deltas[-1]["data"]["upto"] >= 5
        paused = demo.get("/replay", {"paused": True})
        assert paused["paused"] is True
        before = demo.get("/replay")["number"]
    with running(tmp_path, 60) as demo:
        socket = demo.watch("airports.overview", "all")
        snapshot, _ = snapshot_then(socket, 0)
        socket.close()
        assert snapshot["state"]["upto"] >= before > 0
        assert demo.get("/replay")["number"] >= before


def test_after_a_kill_in_the_middle_the_boards_end_equal_to_the_plain_loop(tmp_path: Path) -> None:
    """Killed with -9 while it replays, started again, run to the end of the week: every board is exact."""
    first = Running(tmp_path, 10_000)
    socket = first.watch("airports.overview", "all")
    snapshot_then(socket, 300)
    first.process.kill()
    first.process.communicate()
    socket.close()
    with running(tmp_path, 200_000) as demo:
        total = demo.get("/replay")["total"]
        socket = demo.watch("airports.overview", "all")
        upto = (json.loads(socket.recv())["state"] or {}).get("upto", 0)
        while upto < total:
            frame = json.loads(socket.recv())
            upto = (frame.get("data") or frame.get("state") or {}).get("upto", upto)
        socket.close()
    expected = plain_loop(list(flights.read_flights()))
    with ProjectionSystem(f"sqlite:///{tmp_path}/board.db") as system:
        board = system.register(boards.AirportBoard())
        for key, state in expected.items():
            found = board.read_required(key)
            for row in (*found.latest, *state.latest):
                row.pop("sent_at", None)
            assert found == state


def test_four_workers_and_the_one_that_replays_is_killed(
    database_url: str, redis_server: RedisServer, tmp_path: Path
) -> None:
    """Another goes on; every socket sees the end of the week, wherever it is, and every board is exact."""
    environment = {
        "KEYFOLD_DATABASE": database_url,
        "KEYFOLD_REDIS": redis_server.url,
        "KEYFOLD_ADMIN_TOKEN": "t",
        "SPEED": "60000",
        "PYTHONPATH": str(BOARD),
    }
    source = "import app\nfrom app import create_app\napp = create_app()\n"
    options = ["-c", "python:keyfold.web.gunicorn", "--threads", "8"]
    total = len(flights.read_flights())
    with (
        gunicorn(tmp_path, *options, workers=4, source=source, **environment) as server,
        ExitStack() as stack,
        ProjectionSystem(database_url) as system,
    ):
        first = stack.enter_context(closing(server.site.watch("airports.overview", "all")))
        upto = 0
        while upto < 100:
            upto = seen_by(first, upto)
        lease = Lease(system.store)
        owner = psutil.Process(int(lease.look().owner.partition(":")[0]))
        elsewhere: list[Watcher] = []
        while len(elsewhere) < 4:
            watcher = stack.enter_context(closing(server.site.watch("airports.overview", "all")))
            seen_by(watcher, 0)
            ports = {c.raddr.port for c in owner.net_connections("tcp") if c.raddr}
            if watcher.raw.getsockname()[1] not in ports:
                elsewhere.append(watcher)
        owner.kill()
        for watcher in elsewhere:
            upto = 0
            while upto < total:
                upto = seen_by(watcher, upto)
        assert lease.look().owner.partition(":")[0] != str(owner.pid)
        board = system.register(boards.AirportBoard())
        for key, state in plain_loop(list(flights.read_flights())).items():
            found = board.read_required(key)
            for row in (*found.latest, *state.latest):
                row.pop("sent_at", None)
            assert found == state


def seen_by(watcher: Watcher, upto: int) -> int:
    """Read a frame of the overview, and return the number of the last flight in it."""
    frame = watcher.next()
    number: int = (frame.get("data") or frame.get("state") or {}).get("upto", upto)
    return number


@pytest.mark.parametrize("body", [{"speed": 7}, {"paused": "yes"}])
def test_the_controls_refuse_what_they_do_not_know(tmp_path: Path, body: dict[str, Any]) -> None:
    """A clear 400, and the replay goes on as it was."""
    with running(tmp_path) as demo:
        with pytest.raises(urllib.error.HTTPError, match="400"):
            demo.get("/replay", body)
        assert demo.get("/replay")["speed"] == 300
        assert demo.get("/replay", {"start_over": True})["number"] <= 5
