"""Promise 11 with a real gunicorn and its hooks: SIGTERM under load, with many sockets, or no database."""

from __future__ import annotations

import json
import os
import re
import signal
import socket
import subprocess
import sys
import threading
import urllib.error
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace

import pytest
from keyfold.actors import ProjectionSystem
from keyfold.web import gunicorn as hooks
from support.counting import Totals
from support.gunicorns import ENVIRONMENT, SHOP, Gunicorn
from support.parking import DEADLINE
from support.postgres import PostgresServer
from support.raw_client import head_of
from support.serving import Watcher

SOCKETS = 1_000
HOOKS = ("-c", "python:keyfold.web.gunicorn")
SOURCE = (
    SHOP
    + """
import flask
@app.post("/burst/<int:events>")
def burst(events):
    for _ in range(events):
        keyfold.bus.dispatch(Added("a"))
    return {}
@app.post("/slow")
def slow():
    return {"read": len(flask.request.get_data())}
"""
)
"""With a request that waits for no commit, and one that lasts until its client has sent all of it."""


@contextmanager
def serving(directory: Path, *options: str, **env: str) -> Iterator[Gunicorn]:
    server = Gunicorn(directory, *HOOKS, *options, workers=1, source=SOURCE, **env)
    try:
        yield server
    finally:
        server.remove()


def open_sockets(server: Gunicorn, count: int) -> list[Watcher]:
    with ThreadPoolExecutor(8) as pool:
        watchers = list(pool.map(lambda _: server.site.watch("test.totals", "quiet"), range(count)))
        list(pool.map(Watcher.next, watchers))
    return watchers


def codes_of(watchers: list[Watcher]) -> set[int]:
    with ThreadPoolExecutor(8) as pool:
        codes = set(pool.map(Watcher.close_code, watchers))
        list(pool.map(Watcher.close, watchers))
    return codes


def total_of(url: str, key: str = "a") -> int:
    with ProjectionSystem(url) as system:
        return system.register(Totals()).read_required(key).total


@pytest.mark.parametrize("options", [(), ("--preload",)], ids=["plain", "preload"])
def test_a_thousand_sockets_are_told_and_every_accepted_event_is_committed(
    options: tuple[str, ...], database_url: str, tmp_path: Path
) -> None:
    """SIGTERM under load: 1001 for everyone, nothing accepted is lost, and it takes under three seconds."""
    with serving(
        tmp_path, "--threads", "4", *options, DATABASE=database_url, PYTHONWARNINGS="ignore"
    ) as server:
        watchers = open_sockets(server, SOCKETS)
        accepted = [0] * 2
        going, stopped = threading.Semaphore(0), threading.Event()

        def load(number: int) -> None:
            while not stopped.is_set():
                try:
                    server.site.post("/burst/200")
                except (OSError, urllib.error.URLError):
                    return
                accepted[number] += 200
                going.release()

        with ThreadPoolExecutor(2) as pool:
            loads = [pool.submit(load, number) for number in range(2)]
            for _ in range(4):
                assert going.acquire(timeout=DEADLINE)
            server.process.send_signal(signal.SIGTERM)
            assert server.process.wait(3) == 0
            stopped.set()
            for one in loads:
                one.result(DEADLINE)
        assert codes_of(watchers) == {1001}
        total = total_of(database_url)
        # A burst that lost its response by the stop may be in it as well, but then completely.
        assert total >= sum(accepted)
        assert total % 200 == 0
        assert "Traceback" not in "".join(server.log)


def test_without_its_database_it_ends_in_time_and_says_what_is_lost(
    postgres_server: PostgresServer, tmp_path: Path
) -> None:
    """PostgreSQL is gone: the sockets hear 1001, the log tells how many events, the timeout holds."""
    config = '{"KEYFOLD_CLOSE_TIMEOUT": 2}'
    with serving(tmp_path, "--threads", "4", DATABASE=postgres_server.url, CONFIG=config) as server:
        server.site.post("/burst/10")
        watchers = open_sockets(server, 20)
        postgres_server.kill()
        server.site.post("/burst/123")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(8) == 0
        assert codes_of(watchers) == {1001}
        log = "".join(server.log)
        assert "123 accepted events not committed" in log
        assert "the database is in trouble" in log


@pytest.mark.parametrize(
    "options", [("--worker-class", "gevent"), ("--threads", "4")], ids=["gevent", "gthread"]
)
def test_sockets_that_request_threads_carry_hold_nothing_up(options: tuple[str, ...], tmp_path: Path) -> None:
    """Under gevent each has a greenlet; the hooks end it at once, not at the graceful timeout."""
    url = f"sqlite:///{tmp_path}/shop.db"
    with serving(tmp_path, *options, "--graceful-timeout", "30", DATABASE=url) as server:
        watchers = open_sockets(server, 5)
        server.site.post("/burst/10")
        server.process.send_signal(signal.SIGTERM)
        assert server.process.wait(10) == 0
        assert codes_of(watchers) == {1001}
    assert total_of(url) == 10


@pytest.mark.parametrize("kind", ["sync", "gthread", "gevent"])
def test_a_request_under_way_is_answered(kind: str, tmp_path: Path) -> None:
    """The sockets are told at once; the worker waits for the request, as it does without the hooks."""
    options = ("--worker-class", kind, "--threads", "4")
    with serving(tmp_path, *options, DATABASE=f"sqlite:///{tmp_path}/shop.db") as server:
        watchers = open_sockets(server, 2)
        with socket.create_connection(("127.0.0.1", server.site.port), DEADLINE) as sock:
            lines = ["POST /slow HTTP/1.1", "Host: 127.0.0.1", "Content-Length: 4", "Expect: 100-continue"]
            sock.sendall("\r\n".join([*lines, "", ""]).encode())
            assert head_of(sock).split()[1] == "100"
            server.process.send_signal(signal.SIGTERM)
            assert codes_of(watchers) == {1001}
            sock.sendall(b"abcd")
            assert head_of(sock).split()[1] == "200"
            assert json.loads(sock.recv(100)) == {"read": 4}
        assert server.process.wait(DEADLINE) == 0
        assert "Traceback" not in "".join(server.log)


def test_a_worker_ends_though_no_thread_can_say_goodbye(monkeypatch: pytest.MonkeyPatch) -> None:
    """The server's own handling of the signal happens in any case."""
    heard = list[int]()
    before = signal.signal(signal.SIGTERM, lambda number, _frame: heard.append(number))
    others = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGQUIT)}

    def none_left(*_: object) -> None:
        msg = "can't start new thread"
        raise RuntimeError(msg)

    try:
        hooks.post_worker_init(SimpleNamespace(cfg=SimpleNamespace(is_ssl=False, worker_class_str="sync")))
        for name in ("_thread.start_new_thread", "threading._start_new_thread"):
            monkeypatch.setattr(name, none_left)
        signal.raise_signal(signal.SIGTERM)
    finally:
        for number, handler in {**others, signal.SIGTERM: before}.items():
            signal.signal(number, handler)
    assert heard == [signal.SIGTERM]


def test_a_worker_that_has_served_its_requests_makes_way_and_loses_nothing(tmp_path: Path) -> None:
    """max_requests: each worker commits what it accepted before the next takes over."""
    url = f"sqlite:///{tmp_path}/shop.db"
    with serving(tmp_path, "--threads", "2", "--max-requests", "5", DATABASE=url) as server:
        for _ in range(25):
            server.site.post("/burst/3")
        booted = sum("Booting worker" in line for line in server.log)
        assert server.stop() == 0
        assert booted > 1, server.log
    assert total_of(url) == 75


def test_reload_starts_over_with_the_new_code(tmp_path: Path) -> None:
    """SIGHUP to the master: the old worker says goodbye and commits, the new one goes on from the row."""
    url = f"sqlite:///{tmp_path}/shop.db"
    with serving(tmp_path, "--threads", "2", DATABASE=url) as server:
        [watcher] = open_sockets(server, 1)
        server.site.post("/burst/7")
        server.process.send_signal(signal.SIGHUP)
        assert watcher.close_code() == 1001
        watcher.close()
        found = re.search(r'"version": ?(\d+)', server.site.post("/add/a"))
        assert found
        assert found[1] == "8"


FORKING = """
import os, sys
from keyfold.actors import ProjectionSystem
from support.counting import Added, Totals
system = ProjectionSystem(sys.argv[1])
totals = system.register(Totals())
system.bus.dispatch(Added("a")).result(20)
child = os.fork()
system.bus.dispatch(Added("a")).result(20)
if child == 0:
    system.close()
    os._exit(0)
assert os.waitpid(child, 0)[1] == 0
assert system.bus.dispatch(Added("a")).result(20)[0].version == 4
{end}
"""


@pytest.mark.parametrize("end", ["system.close(); system.close()", "pass", "sys.exit(0)"])
def test_a_fork_in_the_app_s_own_code_and_every_way_to_end(end: str, database_url: str) -> None:
    """The child starts afresh; closing twice, falling off the end and sys.exit all end in good order."""
    process = subprocess.run(
        [sys.executable, "-c", FORKING.replace("{end}", end), database_url],
        env=ENVIRONMENT, cwd="/", text=True, capture_output=True, timeout=60, check=False,
    )  # fmt: skip
    assert (process.returncode, process.stderr) == (0, "")


def test_ctrl_c_commits_what_was_accepted(tmp_path: Path) -> None:
    """SIGINT ends a script by KeyboardInterrupt; the end of the process closes the system."""
    url = f"sqlite:///{tmp_path}/shop.db"
    program = """
import signal, sys, threading
from keyfold.actors import ProjectionSystem
from support.counting import Added, Totals
signal.signal(signal.SIGINT, signal.default_int_handler)  # said, as a shell's background job ignores it
system = ProjectionSystem(sys.argv[1])
system.register(Totals())
for _ in range(1000): system.bus.dispatch(Added("a"))
print("ready", flush=True)
threading.Event().wait(60)
"""
    process = subprocess.Popen(
        [sys.executable, "-c", program, url],
        env=ENVIRONMENT | {"PYTHONUNBUFFERED": "1"},
        cwd="/",
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == "ready\n"
    os.kill(process.pid, signal.SIGINT)
    _, errors = process.communicate(timeout=DEADLINE)
    assert "KeyboardInterrupt" in errors
    assert total_of(url) == 1000
