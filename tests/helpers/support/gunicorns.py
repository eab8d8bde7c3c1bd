"""A real gunicorn in a process of its own."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from .parking import DEADLINE
from .serving import Site

HELPERS = Path(__file__).parents[1]
PATHS = [str(HELPERS), *filter(None, [os.environ.get("PYTHONPATH")])]
ENVIRONMENT = {**os.environ, "PYTHONPATH": os.pathsep.join(PATHS), "PYTHONWARNINGS": "ignore"}

SHOP = """
import json, os, threading
from flask import Flask, request
from flask_sock import Sock
from keyfold.web import Keyfold
from support.counting import Added, Totals
sock = Sock()
keyfold = Keyfold(sock=sock)
keyfold.register(Totals())
app = Flask(__name__)
app.config["KEYFOLD_DATABASE"] = os.environ["DATABASE"]
app.config["KEYFOLD_MAX_SOCKETS_PER_ADDRESS"] = 10_000
app.config.update(json.loads(os.environ.get("CONFIG", "{}")))
keyfold.init_app(app)
if os.environ.get("EAGER"):
    with app.app_context():
        keyfold.bus.dispatch(Added("a", 0)).result(60)
@app.post("/add/<key>")
def add(key):
    [applied] = keyfold.bus.dispatch(Added(key)).result(timeout=18)
    return {"version": applied.version, "pid": os.getpid()}
@app.get("/facts")
def facts():
    return {"threads": threading.active_count(), "sockets": keyfold.system.stats()["sockets"]}
@sock.route("/own/<name>/<key>")
def own(ws, name, key):
    if "hello" in request.args:
        ws.send("hello " + ws.receive())
    keyfold.serve(ws, name, key)
@sock.route("/echo")
def echo(ws):
    while True:
        ws.send(ws.receive())
sock.init_app(app)
"""
"""A WSGI module: POST /add/KEY adds, GET /facts returns the numbers of threads and sockets.

/own and /echo are Flask-Sock handlers; the first gives its socket to the hub.
"""


class Gunicorn:
    """Serves a module until the end of the test; its log is kept."""

    def __init__(
        self,
        directory: Path,
        *options: str,
        source: str = SHOP,
        workers: int = 1,
        prefix: Sequence[str] = (),
        **env: str,
    ) -> None:
        (directory / "shop.py").write_text(source)
        command = [
            *prefix, sys.executable, "-m", "gunicorn", "--bind", "127.0.0.1:0", "--workers", str(workers),
            "--graceful-timeout", "5", *options, "shop:app",
        ]  # fmt: skip
        self.log: list[str] = []
        self._listening, self._booted = threading.Event(), threading.Semaphore(0)
        self.process = subprocess.Popen(
            command, env={**ENVIRONMENT, **env}, cwd=directory, stderr=subprocess.PIPE, text=True
        )
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()
        assert self._listening.wait(DEADLINE), self.log
        for _ in range(workers):
            assert self._booted.acquire(timeout=DEADLINE), self.log
        found = re.search(r"https?://127\.0\.0\.1:(\d+)", "".join(self.log))
        assert found
        self.site = Site(int(found[1]))

    def _follow(self) -> None:
        assert self.process.stderr is not None
        for line in self.process.stderr:
            self.log.append(line)
            if "Listening at" in line:
                self._listening.set()
            if "Booting worker" in line:
                self._booted.release()

    def stop(self) -> int:
        """End it by SIGTERM and return its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(DEADLINE)

    def remove(self) -> None:
        """Kill all its processes: a worker outlives its killed master for a while."""
        if self.process.poll() is None:
            self.process.terminate()
            try:
                self.process.wait(DEADLINE)
            except subprocess.TimeoutExpired:
                self.process.kill()
                self.process.wait(DEADLINE)
        self._reader.join(DEADLINE)
        assert self.process.stderr is not None
        self.process.stderr.close()


@contextmanager
def gunicorn(
    directory: Path,
    *options: str,
    source: str = SHOP,
    workers: int = 1,
    prefix: Sequence[str] = (),
    **env: str,
) -> Iterator[Gunicorn]:
    """Run gunicorn with these options, after the words of prefix; environment variables are keywords."""
    server = Gunicorn(directory, *options, source=source, workers=workers, prefix=prefix, **env)
    try:
        yield server
    finally:
        server.remove()
