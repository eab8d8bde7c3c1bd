"""The examples besides the board: each started as its docstring says, and driven over real sockets."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
from contextlib import AbstractContextManager
from pathlib import Path

import pytest
from selenium.webdriver.common.by import By
from support.browsing import Browser, wait
from support.gunicorns import Gunicorn, gunicorn
from support.parking import DEADLINE
from support.serving import Site

EXAMPLES = Path(__file__).parents[2] / "examples"


def serving(directory: Path, module: str, database: str = "") -> AbstractContextManager[Gunicorn]:
    """Run an example by gunicorn, with its databases in directory."""
    return gunicorn(
        directory, "--threads", "8", "-c", "python:keyfold.web.gunicorn", "--pythonpath", str(EXAMPLES),
        source=f"from {module} import app\n__all__ = ['app']\n",
        KEYFOLD_DATABASE=f"sqlite:///{directory}/live.db", DATABASE=database,
    )  # fmt: skip


def test_one_file_counts_on_every_page(tmp_path: Path, browser: Browser) -> None:
    """Pressing the button in a real browser changes the page."""
    with serving(tmp_path, "one_file") as server:
        site = server.site
        browser.get(f"http://127.0.0.1:{site.port}/")
        wait(browser, lambda: browser.find_element(By.ID, "count").text == "0")
        browser.find_element(By.TAG_NAME, "button").click()
        wait(browser, lambda: browser.find_element(By.ID, "count").text == "1")
        assert site.post("/press") == '{"version":2}\n'
        wait(browser, lambda: browser.find_element(By.ID, "count").text == "2")
        browser.get("about:blank")


def test_a_plain_wsgi_function_beside_the_routes(tmp_path: Path) -> None:
    """Its own paths are its own, the others Keyfold's; bad input has a clear answer."""
    with serving(tmp_path, "plain_wsgi") as server:
        site = server.site
        watcher = site.watch("shop.sales", "pen")
        assert watcher.next()["state"] is None
        assert site.send("/sold/pen") == (200, "1\n")
        assert watcher.next()["data"] == {"pieces": 1}
        watcher.close()
        assert site.request("/sold/pen")[0] == 405
        status, text = site.send("/sold/a%07b")
        assert status == 400
        assert "key" in text
        assert site.request("/nowhere")[0] == 404


def test_flask_sock_handlers_give_their_sockets_to_the_hub(tmp_path: Path) -> None:
    """One key after a greeting, two keys, and a handler that keeps its socket; the subprotocol is agreed."""
    with serving(tmp_path, "flask_sock_app") as server:
        site = server.site
        live = site._open("/live/north", {"subprotocols": ["stock.v1"]})
        assert (live.socket.subprotocol, live.socket.recv()) == ("stock.v1", "welcome to north")
        assert live.next()["state"] is None
        compare = site._open("/compare/north/south", {})
        assert (
            sorted(compare.next_of_many()["type"] for _ in range(4)) == ["snapshot"] * 2 + ["subscribed"] * 2
        )
        assert json.loads(site.post("/adjust/north/apple/3")) == {"version": 1}
        assert live.next()["data"] == {"sku": "apple", "total": 3}
        assert compare.next_of_many()["channel"] == "projection.inventory.warehouse.north"
        assert json.loads(site.post("/adjust/south/apple/-1")) == {"version": 1}
        assert compare.next_of_many()["data"] == {"sku": "apple", "total": -1}
        calculator = site._open("/calculator", {})
        calculator.socket.send("1+2+39")
        assert calculator.socket.recv() == "42"
        for watcher in (live, compare, calculator):
            watcher.close()


def test_events_wait_for_the_app_s_own_commit(tmp_path: Path) -> None:
    """A change that is rolled back is never shown; a committed one is shown at once."""
    with serving(tmp_path, "sqlalchemy_orders", f"sqlite:///{tmp_path}/orders.db") as server:
        site = server.site
        number = json.loads(site.send("/orders")[1])["order"]
        watcher = site.watch("orders.board", str(number))
        assert watcher.next()["version"] == 0
        assert site.send(f"/orders/{number}/lines", {"article": "pen", "pieces": 0})[0] == 400
        assert site.send(f"/orders/{number}/lines", {"article": "pen", "pieces": 3})[0] == 200
        frame = watcher.next()
        assert (frame["version"], frame["data"]["total"]) == (1, 3)
        assert site.send("/orders/99/lines", {"article": "pen", "pieces": 1})[0] == 404
        watcher.close()


@pytest.mark.parametrize("module", ["one_file"])
def test_it_runs_by_itself(tmp_path: Path, module: str) -> None:
    """``python examples/one_file.py``, and Ctrl-C."""
    environment = {**os.environ, "PORT": "0", "KEYFOLD_DATABASE": f"sqlite:///{tmp_path}/live.db"}
    program = (
        "import signal, runpy; signal.signal(signal.SIGINT, signal.default_int_handler); "
        f"runpy.run_path({str(EXAMPLES / module)!r} + '.py', run_name='__main__')"
    )
    process = subprocess.Popen(
        [sys.executable, "-c", program],
        env=environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert process.stderr is not None
    try:
        port = None
        while port is None:
            found = re.search(r"http://127\.0\.0\.1:(\d+)", process.stderr.readline())
            port = found and int(found[1])
        assert "Press" in Site(port).request("/")[2]
        process.send_signal(signal.SIGINT)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()
