"""Chromium with real pages: live numbers, a server that restarts, and pages that end equal to the row."""

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
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web import Keyfold
from support.browsing import Browser, text_of, wait
from support.counting import Added, Totals
from support.parking import DEADLINE
from support.serving import Site, serve
from support.tcp_proxy import TcpProxy

BOARD = Path(__file__).parents[2] / "examples" / "airport_board"


class Demo:
    """The airport board in a process, always on the same port."""

    def __init__(self, directory: Path, port: int = 0, speed: int = 1800) -> None:
        environment = {
            **os.environ,
            "PORT": str(port),
            "SPEED": str(speed),
            "KEYFOLD_DATABASE": f"sqlite:///{directory}/board.db",
        }
        command = [sys.executable, str(BOARD / "app.py")]
        self.process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
        assert self.process.stdout is not None
        match = re.search(r"http://127\.0\.0\.1:(\d+)", self.process.stdout.readline())
        assert match
        self.port = int(match[1])

    def end(self, number: int) -> None:
        """Send a signal and wait for the end."""
        self.process.send_signal(number)
        self.process.communicate(timeout=DEADLINE)

    def get(self, path: str, body: Any = None) -> Any:
        """Return the JSON of a URL."""
        request = urllib.request.Request(f"http://127.0.0.1:{self.port}{path}")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
            return json.load(answer)


def sockets_opened(browser: Browser) -> int:
    """Count the WebSockets that the page has opened since the log was read last."""
    return sum("Network.webSocketCreated" in entry["message"] for entry in browser.get_log("performance"))


def test_forty_boards_live_through_a_restart_on_one_socket(browser: Browser, tmp_path: Path) -> None:
    """Killed with -9 and restarted: the page reconnects by itself, and every tile equals its row."""
    demo = Demo(tmp_path)
    try:
        sockets_opened(browser)
        browser.get(f"http://127.0.0.1:{demo.port}/wall")
        wait(browser, lambda: text_of(browser, "status").endswith("live"))
        assert text_of(browser, "live") == "40"
        assert sockets_opened(browser) == 1
        changes = int(text_of(browser, "changes").replace(",", ""))
        wait(browser, lambda: int(text_of(browser, "changes").replace(",", "")) > changes + 5)
        demo.end(signal.SIGKILL)
        wait(browser, lambda: text_of(browser, "status").endswith("reconnecting"))
        demo = Demo(tmp_path, demo.port)
        wait(
            browser, lambda: text_of(browser, "live") == "40" and text_of(browser, "status").endswith("live")
        )
        changes = int(text_of(browser, "changes").replace(",", ""))
        wait(browser, lambda: int(text_of(browser, "changes").replace(",", "")) > changes + 5)
        demo.get("/replay", {"paused": True})
        wait(browser, lambda: tiles(browser) == rows(demo, list(tiles(browser))))
    finally:
        demo.end(signal.SIGKILL)


def tiles(browser: Browser) -> dict[str, int]:
    """Return the number on each tile."""
    script = (
        "return [...document.querySelectorAll('#wall li')]"
        ".map((tile) => [tile.dataset.code, tile.querySelector('b').textContent])"
    )
    return {code: int(number.replace(",", "")) for code, number in browser.execute_script(script)}


def rows(demo: Demo, codes: list[str]) -> dict[str, int]:
    """Return the number in each row; no row is none."""
    numbers = {}
    for code in codes:
        try:
            numbers[code] = demo.get(f"/projection/airports.board/{code}")["state"]["tally"]["flights"]
        except urllib.error.HTTPError:
            numbers[code] = 0
    return numbers


PAGE = """<!doctype html><meta charset="utf-8"><title>test</title><script type="module">
import { watch } from "/keyfold/keyfold.js";
window.log = [];
window.watch = watch;
window.open_watch = (key, label) => watch("test.totals", key, {
  onState: (state, position) => log.push([label, "state", state, position.version]),
  onDelta: (delta, position) => log.push([label, "delta", delta.total, position.version]),
  onStatus: (status, message) => log.push([label, "status", status, message]),
  reduce: (state, delta) => ({ ...state, total: delta.total }),
});
window.first = open_watch("a", "first");
</script>"""


@pytest.fixture
def app(sqlite_url: str) -> Iterator[Flask]:
    """An app with a page that logs the callbacks of the client."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)
    app.add_url_rule("/", "page", lambda: PAGE)
    yield app
    with app.app_context():
        keyfold.system.close()


def system_of(app: Flask) -> ProjectionSystem:
    """Return the system of an app."""
    system: ProjectionSystem = app.extensions["keyfold"].system
    return system


def logged(browser: Browser, label: str | int = "first") -> list[list[Any]]:
    """Return the arguments of a watch's callbacks."""
    log: list[list[Any]] = browser.execute_script("return window.log ?? []")
    return [entry[1:] for entry in log if entry[0] == label]


def deltas(browser: Browser, label: str = "first") -> list[int]:
    """Return the versions of the deltas that a watch was given."""
    return [entry[2] for entry in logged(browser, label) if entry[0] == "delta"]


def add(app: Flask, key: str, count: int = 1) -> None:
    """Commit this number of events."""
    for _ in range(count):
        system_of(app).bus.dispatch(Added(key)).result(DEADLINE)


def open_page(browser: Browser, site: Site | TcpProxy) -> None:
    """Load the page and wait until its watch is live."""
    browser.get(f"http://127.0.0.1:{site.port}/")
    wait(browser, lambda: ["status", "live", None] in logged(browser))


def test_after_a_cut_it_resumes_where_it_was(browser: Browser, app: Flask) -> None:
    """Each delta once, in order, no second snapshot; commits during the outage are not missing."""
    with serve(app) as site:
        proxy = TcpProxy(site.port)
        open_page(browser, proxy)
        add(app, "a", 3)
        wait(browser, lambda: deltas(browser) == [1, 2, 3])
        proxy.refuse()
        wait(browser, lambda: ["status", "reconnecting", None] in logged(browser))
        add(app, "a", 4)
        proxy.accept()
        wait(browser, lambda: deltas(browser) == [1, 2, 3, 4, 5, 6, 7])
        states = [entry for entry in logged(browser) if entry[0] == "state"]
        assert [entry[2] for entry in states] == list(range(8))  # one snapshot, then reduce
        assert states[-1][1] == {"total": 7}
        browser.get("about:blank")
        proxy.close()


def test_two_watches_of_a_key_share_a_channel_and_close_apart(browser: Browser, app: Flask) -> None:
    """The second gets its own snapshot, and continues after the first has closed."""
    with serve(app) as site:
        sockets_opened(browser)
        open_page(browser, site)
        add(app, "a", 2)
        wait(browser, lambda: deltas(browser) == [1, 2])
        browser.execute_script("window.second = open_watch('a', 'second')")
        wait(browser, lambda: ["status", "live", None] in logged(browser, "second"))
        add(app, "a")
        wait(browser, lambda: [deltas(browser), deltas(browser, "second")] == [[1, 2, 3], [3]])
        browser.execute_script("window.first.close()")
        add(app, "a")
        wait(browser, lambda: deltas(browser, "second") == [3, 4])
        assert deltas(browser) == [1, 2, 3]
        state = browser.execute_script("return [second.state.total, second.position.version, second.status]")
        assert state == [4, 4, "live"]
        assert sockets_opened(browser) == 1
        browser.get("about:blank")


def test_a_gap_asks_for_a_snapshot(browser: Browser, app: Flask) -> None:
    """A delta that does not follow is not applied; a snapshot corrects the state at once."""
    with serve(app) as site:
        open_page(browser, site)
        add(app, "a")
        wait(browser, lambda: deltas(browser) == [1])
        hub = app.extensions["keyfold"].hub
        [connection] = hub.connections
        epoch = connection.subscriptions["test.totals", "a"].channel.recent_deltas.epoch
        frame = {
            "type": "delta",
            "channel": "projection.test.totals.a",
            "epoch": epoch,
            "prev": 7,
            "version": 8,
        }
        hub.reactor.call(
            connection.send_message, json.dumps(frame | {"event": "delta", "data": {"total": 99}}).encode()
        )
        wait(browser, lambda: len([e for e in logged(browser) if e[0] == "state"]) == 3)
        assert deltas(browser) == [1]
        assert logged(browser)[-1] == ["state", {"total": 1, "amounts": [1]}, 1]
        browser.get("about:blank")


def test_refused_is_said_and_not_tried_again(browser: Browser, app: Flask) -> None:
    """Its status has the server's message; other watches are not affected."""
    Totals.public, before = False, Totals.public
    try:
        with serve(app) as site:
            browser.get(f"http://127.0.0.1:{site.port}/")
            wait(browser, lambda: ["status", "refused", "you may not read 'test.totals'"] in logged(browser))
            assert app.extensions["keyfold"].hub.stats()["refused_channels"] == 1
            browser.get("about:blank")
    finally:
        Totals.public = before


def test_where_websockets_are_blocked_it_streams(browser: Browser, app: Flask) -> None:
    """A server without sockets: two attempts, then Server-Sent Events; cut, it comes back and resumes."""
    inner = app.wsgi_app

    def without_sockets(environ: Any, start_response: Any) -> Any:
        environ = {name: value for name, value in environ.items() if name != "werkzeug.socket"}
        return inner(environ, start_response)

    app.wsgi_app = without_sockets  # type: ignore[method-assign]
    with serve(app) as site:
        proxy = TcpProxy(site.port)
        open_page(browser, proxy)
        add(app, "a", 3)
        wait(browser, lambda: deltas(browser) == [1, 2, 3])
        proxy.cut()
        add(app, "a", 2)
        wait(browser, lambda: deltas(browser) == [1, 2, 3, 4, 5])
        assert len([entry for entry in logged(browser) if entry[0] == "state"]) == 6
        browser.get("about:blank")
        proxy.close()
        system_of(app).close()


def statuses(browser: Browser) -> list[str]:
    """Return the status of each watch in ``window.all``."""
    found: list[str] = browser.execute_script("return window.all.map((one) => one.status)")
    return found


def test_more_watches_than_a_socket_may_have(browser: Browser, app: Flask) -> None:
    """A hundred are live on one socket, the others are refused; when some close, as many others go live."""
    with serve(app) as site:
        sockets_opened(browser)
        open_page(browser, site)
        browser.execute_script(
            "window.all = [first, ...Array.from({ length: 129 }, (_, n) => open_watch(`k${n}`, n))]"
        )
        wait(
            browser,
            lambda: (statuses(browser).count("live"), statuses(browser).count("refused")) == (100, 30),
        )
        assert ["status", "refused", "a socket may watch 100 channels"] in logged(browser, label=128)
        browser.execute_script("for (const one of all.splice(0, 10)) one.close()")
        wait(
            browser,
            lambda: (statuses(browser).count("live"), statuses(browser).count("refused")) == (100, 20),
        )
        assert sockets_opened(browser) == 1
        assert app.extensions["keyfold"].hub.stats()["flooding"] == 0
        browser.get("about:blank")


def test_a_callback_that_throws_harms_no_other_watch(browser: Browser, app: Flask) -> None:
    """It is reported as uncaught; both watches end at the row, the one with a broken reduce by a snapshot."""
    with serve(app) as site:
        open_page(browser, site)
        browser.execute_script(
            """
            window.errors = [];
            addEventListener("error", () => errors.push("uncaught"));
            let broken = 2;
            const fail = () => { if (broken-- > 0) throw new Error("broken"); };
            const reduce = (state, delta) => { fail(); return { ...state, total: delta.total }; };
            window.all = [watch("test.totals", "b", { onState: fail, reduce }), open_watch("b", "second")];
            """
        )
        wait(browser, lambda: statuses(browser) == ["live", "live"])
        add(app, "b")
        totals = "return all.map((one) => [one.state?.total, one.position.version])"
        wait(browser, lambda: browser.execute_script(totals) == [[1, 1], [1, 1]])
        assert deltas(browser, "second") == [1]
        assert browser.execute_script("return errors") == ["uncaught"] * 2
        browser.get("about:blank")


def test_closed_at_once_and_watched_again_later(browser: Browser, app: Flask) -> None:
    """The server forgets a closed subscription, so the second watch goes live."""
    with serve(app) as site:
        open_page(browser, site)
        browser.execute_script("open_watch('b', 'closed').close(); open_watch('c', 'other')")
        wait(browser, lambda: ["status", "live", None] in logged(browser, "other"))
        browser.execute_script("open_watch('b', 'again')")
        wait(browser, lambda: logged(browser, "again")[-1:] == [["status", "live", None]])
        add(app, "b")
        wait(browser, lambda: deltas(browser, "again") == [1])
        assert logged(browser, "closed") == [["status", "connecting", None]]
        browser.get("about:blank")


def test_streams_leave_the_page_connections_of_its_own(browser: Browser, app: Flask) -> None:
    """Of six over HTTP/1.1 four are streams; the other keys are told, and a refused one affects no other."""
    inner = app.wsgi_app

    def without_sockets(environ: Any, start_response: Any) -> Any:
        environ = {name: value for name, value in environ.items() if name != "werkzeug.socket"}
        return inner(environ, start_response)

    app.wsgi_app = without_sockets  # type: ignore[method-assign]
    with serve(app) as site:
        open_page(browser, site)
        browser.execute_script(
            """
            const onStatus = (status, message) => log.push(["unknown", status, message]);
            window.all = [first, watch("no.such", "a", { onStatus })];
            """
        )
        wait(browser, lambda: statuses(browser) == ["live", "refused"])
        assert logged(browser, "unknown")[-1] == ["refused", "there is no projection 'no.such'"]
        browser.execute_script("for (const key of 'bcdefgh') all.push(open_watch(key, key))")
        wait(
            browser, lambda: statuses(browser).count("live") == 4 and statuses(browser).count("refused") == 5
        )
        ask = "const done = arguments[0]; fetch('/').then((answer) => done(answer.status))"
        assert browser.execute_async_script(ask) == 200
        browser.get("about:blank")
        system_of(app).close()


TICKETS = """<!doctype html><meta charset="utf-8"><title>test</title><script type="module">
import { watch } from "/keyfold/keyfold.js";
window.log = [];
window.fetched = 0;
watch("test.totals", "a", {
  ticket: async () => { fetched += 1; return (await fetch("/ticket")).text(); },
  onDelta: (delta, position) => log.push(["first", "delta", delta.total, position.version]),
  onStatus: (status, message) => log.push(["first", "status", status, message]),
});
</script>"""


def test_a_page_without_a_session_fetches_tickets(browser: Browser, sqlite_url: str) -> None:
    """One ticket per request; when the time of one is over, the next one continues."""

    class Guarded(Totals):
        public = False

    keyfold = Keyfold()
    keyfold.register(Guarded())
    app = Flask("test")
    app.secret_key = "test"
    app.config.update(KEYFOLD_DATABASE=sqlite_url, KEYFOLD_REAUTHORIZE_SECONDS=0.3)
    keyfold.init_app(app)
    app.add_url_rule("/", "page", lambda: TICKETS)
    app.add_url_rule("/ticket", "ticket", lambda: keyfold.ticket("test.totals", "a", "kim"))
    with system_of(app), serve(app) as site:
        open_page(browser, site)
        wait(browser, lambda: browser.execute_script("return fetched") >= 3)
        add(app, "a", 2)
        wait(browser, lambda: deltas(browser) == [1, 2])
        assert ["status", "reconnecting", "you may no longer read this"] in logged(browser)
        browser.get("about:blank")


def test_the_pause_is_full_jitter() -> None:
    """Uniformly distributed below a bound that doubles up to half a minute."""
    module = Path(__file__).parents[2] / "web" / "js" / "keyfold.js"
    program = (
        f"import {{ backoff }} from {json.dumps(module.as_uri())};"
        "console.log(JSON.stringify([0, 1, 2, 9, 99].map((n) => [backoff(n, () => 0), backoff(n, () => 1)])))"
    )
    command = ["node", "--input-type=module", "--no-warnings", "-e", program]
    answer = subprocess.run(command, check=True, capture_output=True, text=True, timeout=DEADLINE)
    assert json.loads(answer.stdout) == [[0, 2000], [0, 4000], [0, 8000], [0, 30_000], [0, 30_000]]


def test_the_module_is_small_and_typed() -> None:
    """One file without a build step, short enough to read at once."""
    js = Path(__file__).parents[2] / "web" / "js"
    assert len((js / "keyfold.js").read_text().splitlines()) < 600
    assert "export function watch" in (js / "keyfold.d.ts").read_text()
