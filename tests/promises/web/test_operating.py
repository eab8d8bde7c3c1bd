"""Operating: the admin URLs, probes, metrics, signals, logs and spans."""

from __future__ import annotations

import http.cookiejar
import json
import logging
import re
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from time import time
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import KeyHalted, ProjectionKey, ProjectionSystem, StoreError
from keyfold.actors.tracing import TracingObserver
from keyfold.web import Keyfold
from keyfold.web.access.admin import AdminCookies
from keyfold.web.operator import metrics as metrics_module
from keyfold.web.signals import projection_applied, projection_failed, subscriber_connected
from opentelemetry.sdk.trace import TracerProvider
from opentelemetry.sdk.trace.export import SimpleSpanProcessor
from opentelemetry.sdk.trace.export.in_memory_span_exporter import InMemorySpanExporter
from prometheus_client.parser import text_string_to_metric_families
from support.counting import Added, Totals, park_in, poison
from support.damage import BROKEN, damage
from support.parking import DEADLINE, Parking
from support.postgres import PostgresServer
from support.serving import Site, serve
from support.tcp_proxy import TcpProxy

TOKEN = "let-me-see"  # not a secret
BEARER = {"Authorization": f"Bearer {TOKEN}"}


class Audited(Totals):
    """Halts."""

    name = "test.audited"
    on_error = "halt"


class Operated:
    """An app with everything that an operator sees, served."""

    def __init__(self, site: Site, app: Flask, system: ProjectionSystem) -> None:
        self.site, self.app, self.system = site, app, system

    def get(self, path: str, **headers: str) -> tuple[int, Any]:
        status, _, text = self.site.request(path, **headers)
        return status, json.loads(text) if text.startswith("{") else text

    def act(self, name: str, action: Any, **headers: str) -> tuple[int, str]:
        """POST an action, and return status and message."""
        request = urllib.request.Request(
            f"http://127.0.0.1:{self.site.port}/admin/projections/of/{name}/actions",
            data=json.dumps(action).encode(),
            headers={"Content-Type": "application/json", **headers},
        )
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
                return answer.status, json.load(answer)["message"]
        except urllib.error.HTTPError as error:
            with error:
                return error.code, json.load(error)["error"]["message"]


@pytest.fixture
def operate(database_url: str) -> Iterator[Callable[..., Operated]]:
    """Make and serve one such app."""
    running: list[Any] = []

    def make(*, keyfold: Keyfold | None = None, **config: Any) -> Operated:
        keyfold = keyfold or Keyfold()
        keyfold.register(Totals())
        keyfold.register(Audited())
        app = Flask("test")
        app.config.update({"KEYFOLD_DATABASE": database_url, "KEYFOLD_ADMIN_TOKEN": TOKEN, **config})
        keyfold.init_app(app)
        system: ProjectionSystem = app.extensions["keyfold"].system
        server = serve(app)
        running.append((system, server))
        return Operated(server.__enter__(), app, system)

    yield make
    for system, server in running:
        system.close()
        server.__exit__(None, None, None)


@pytest.fixture
def operated(operate: Callable[..., Operated]) -> Operated:
    """One with default settings."""
    return operate()


def halt(operated: Operated, key: str = "a") -> int:
    """Halt a key of test.audited behind one good event, and return the id of the head."""
    runtime = operated.system.runtime("test.audited")
    runtime.accept(Added(key)).result(DEADLINE)
    # The event is not JSON, because of its function. This distinguishes its letter.
    runtime.accept(Added(key, 2, poison)).exception(DEADLINE)
    assert isinstance(runtime.accept(Added(key, 3)).exception(DEADLINE), KeyHalted)
    return runtime.dead_letters.find(key)[0].id


# -- rights


PATHS = [
    "/admin/projections", "/admin/projections/overview", "/admin/projections/stats",
    "/admin/projections/of/test.totals", "/admin/projections/of/test.totals/facts", "/keyfold/metrics",
    "/projection/keyfold.overview/all", "/sse/projection/keyfold.overview/all",
]  # fmt: skip


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("token", [TOKEN, None], ids=["a token is set", "no token is set"])
def test_the_operator_s_urls_are_closed(
    operate: Callable[..., Operated], path: str, token: str | None
) -> None:
    """By default, with a wrong token, and with an empty one."""
    operated = operate(KEYFOLD_ADMIN_TOKEN=token)
    for headers in (
        {},
        {"Authorization": "Bearer wrong"},
        {"Authorization": "Bearer "},
        {"Cookie": "keyfold_admin=x"},
    ):
        assert operated.get(path, **headers)[0] == 403


def test_an_admin_cookie_is_worth_nothing_with_another_token(operate: Callable[..., Operated]) -> None:
    """It is signed with the token that was shown."""
    first, second = operate(), operate(KEYFOLD_ADMIN_TOKEN="another")
    cookie = {"Cookie": f"keyfold_admin={first.app.extensions['keyfold'].access.admin.issue_cookie()}"}
    assert first.get("/admin/projections/overview", **cookie)[0] == 200
    assert second.get("/admin/projections/overview", **cookie)[0] == 403


def test_the_metrics_token_opens_the_metrics_alone(operate: Callable[..., Operated]) -> None:
    """A scraper can't act."""
    operated = operate(KEYFOLD_METRICS_TOKEN="scrape")
    scraper = {"Authorization": "Bearer scrape"}
    assert operated.get("/keyfold/metrics", **scraper)[0] == 200
    assert operated.get("/admin/projections/overview", **scraper)[0] == 403
    assert operated.act("test.totals", {"action": "wipe", "key": "a"}, **scraper)[0] == 403


def test_the_page_s_own_channel_is_for_operators(operated: Operated) -> None:
    """Live over the library's own socket; the numbers come anew while somebody watches."""
    watcher = operated.site.watch("keyfold.overview", "all", header=[f"Authorization: Bearer {TOKEN}"])
    first = watcher.next()["state"]
    assert set(first["processes"][0]["projections"]) == {"test.totals", "test.audited"}
    operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    while watcher.next().get("state", first)["processes"][0]["projections"]["test.totals"]["events"] != 1:
        pass
    watcher.close()
    with pytest.raises(Exception, match="403"):
        operated.site.watch("keyfold.overview", "all")


def test_authorize_opens_keys_and_not_the_operator_s_channel(operate: Callable[..., Operated]) -> None:
    """An app that lets everybody read everything has not made everybody an operator."""
    operated = operate(keyfold=Keyfold(authorize=lambda _request, _name, _key: True))
    assert operated.get("/projection/keyfold.overview/all")[0] == 403
    with pytest.raises(Exception, match="403"):
        operated.site.watch("keyfold.overview", "all")
    many = operated.site.watch_many()
    many.send(type="subscribe", projection="keyfold.overview", key="all")
    assert many.next_of_many()["type"] == "error"
    many.close()


def test_an_operator_may_look_at_keys_that_are_closed_to_others(operated: Operated) -> None:
    """To look a key up by name; nobody else may."""
    halt(operated)
    operated.system.runtime("test.audited").projection.__class__.public = False
    try:
        assert operated.get("/projection/test.audited/a")[0] == 403
        assert operated.get("/projection/test.audited/a", **BEARER)[0] == 200
    finally:
        operated.system.runtime("test.audited").projection.__class__.public = True


def test_no_projection_takes_a_name_of_keyfold_s_own(operated: Operated) -> None:
    """keyfold.overview would be readable by everybody, if it were somebody's public projection."""

    class Taken(Totals):
        name = "keyfold.overview"

    with pytest.raises(Exception, match="begin with keyfold"):
        operated.system.register(Taken())


# -- signing in, and CSRF


def browser_of(operated: Operated) -> tuple[urllib.request.OpenerDirector, http.cookiejar.CookieJar, str]:
    """Return an opener with the cookies of a browser on the login page, and its CSRF token."""
    jar = http.cookiejar.CookieJar()
    opener = urllib.request.build_opener(urllib.request.HTTPCookieProcessor(jar))
    with pytest.raises(urllib.error.HTTPError) as refused:
        opener.open(f"http://127.0.0.1:{operated.site.port}/admin/projections", timeout=DEADLINE)
    with refused.value:
        found = re.search('name="csrf" content="([^"]+)"', refused.value.read().decode())
    assert found
    return opener, jar, found[1]


def post(opener: urllib.request.OpenerDirector, url: str, data: bytes, **headers: str) -> int:
    try:
        with opener.open(urllib.request.Request(url, data, headers), timeout=DEADLINE) as answer:
            status: int = answer.status
            return status
    except urllib.error.HTTPError as error:
        with error:
            return error.code


def test_a_page_that_asks_keeps_its_operator_signed_in(operated: Operated) -> None:
    """With a new cookie before the old one ends. An operator who has left, or has signed out, gets none."""
    admin = operated.app.extensions["keyfold"].access.admin
    client = operated.app.test_client()

    def ask(path: str, seconds_old: float) -> tuple[int, bool]:
        admin._cookies = AdminCookies(TOKEN, lambda: time() - seconds_old)
        client.set_cookie("keyfold_admin", admin.issue_cookie())
        admin._cookies = AdminCookies(TOKEN)
        answer = client.open(path, method="HEAD")
        return answer.status_code, any(
            "keyfold_admin=" in line for line in answer.headers.getlist("Set-Cookie")
        )

    page, overview = "/admin/projections", "/admin/projections/overview"
    assert ask(page, 1) == (200, False)
    assert ask(page, 3000) == (200, True)
    assert ask(overview, 3000) == (200, True)
    assert ask("/projection/keyfold.overview/all", 3000)[1] is False
    assert ask(page, 3700) == (403, False)
    assert ask(overview, 13 * 3600) == (403, False)


class Clock:
    """Shows the time that a test sets, and counts how often it is read."""

    now = 1_000_000.0
    looks = 0

    def __call__(self) -> float:
        self.looks += 1
        return self.now


def test_a_page_that_only_listens_stays_until_its_login_ends(operate: Callable[..., Operated]) -> None:
    """Its socket can only show its first cookie: for connections, that is valid until the login ends."""
    operated, clock = operate(KEYFOLD_REAUTHORIZE_SECONDS=0.02), Clock()
    admin = operated.app.extensions["keyfold"].access.admin
    admin._cookies = AdminCookies(TOKEN, clock)
    cookie = f"Cookie: keyfold_admin={admin.issue_cookie()}"
    watcher = operated.site.watch("keyfold.overview", "all", header=[cookie])
    assert watcher.next()["type"] == "snapshot"
    clock.now += 2 * 3600
    looks = clock.looks
    wait_until(lambda: clock.looks > looks + 9)
    watcher.send(type="ping")
    while watcher.next()["type"] != "pong":
        pass
    clock.now += 11 * 3600
    assert watcher.close_code() == 4403
    watcher.close()


@pytest.mark.parametrize("number", [2**63 - 1, 2**63, 10**30, -(2**63) - 1])
@pytest.mark.parametrize("action", ["retry", "skip"])
def test_a_letter_of_whatever_number_is_found_or_not(operated: Operated, action: str, number: int) -> None:
    """One that no database could count to is one that isn't there."""
    status, text = operated.act("test.totals", {"action": action, "letter": number}, **BEARER)
    assert status == 409
    assert text.endswith(f"there is no dead letter {number}")


def test_numbers_beyond_those_of_the_database_are_as_far_off(operated: Operated) -> None:
    """After a huge id nothing comes, after a tiny one everything; a huge limit is none."""
    letters = operated.system.runtime("test.audited").dead_letters
    halt(operated)
    assert letters.find(after=10**30) == []
    assert len(letters.find(after=-(10**30), limit=10**30)) == 2


def test_signing_in_needs_the_token_and_acting_needs_the_csrf_word(operated: Operated) -> None:
    """A cookie alone does nothing: another site could make the browser send it."""
    opener, jar, csrf = browser_of(operated)
    base = f"http://127.0.0.1:{operated.site.port}/admin/projections"

    def sign_in(token: str, word: str) -> int:
        form = urllib.parse.urlencode({"token": token, "csrf": word}).encode()
        return post(opener, f"{base}/login", form)

    assert sign_in("wrong", csrf) == 403
    assert sign_in(TOKEN, "wrong") == 403
    assert sign_in("x" * 70_000, csrf) == 413
    assert "keyfold_admin" not in {cookie.name for cookie in jar}
    assert sign_in(TOKEN, csrf) == 200
    for cookie in jar:
        assert cookie.has_nonstandard_attr("HttpOnly")
        assert cookie.get_nonstandard_attr("SameSite") == "Strict"
    operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    wipe = json.dumps({"action": "wipe", "key": "a"}).encode()
    kind = {"Content-Type": "application/json"}
    acting = f"{base}/of/test.totals/actions"
    assert post(opener, acting, wipe, **kind) == 403
    assert post(opener, acting, wipe, **kind, **{"X-Keyfold-CSRF": "wrong"}) == 403
    assert (
        post(opener, acting, wipe, **kind, **{"X-Keyfold-CSRF": csrf, "Origin": "https://evil.example"})
        == 403
    )
    assert operated.system.runtime("test.totals").read("a") is not None
    assert post(opener, acting, wipe, **kind, **{"X-Keyfold-CSRF": csrf}) == 200
    assert operated.system.runtime("test.totals").read("a") is None
    assert post(opener, f"{base}/logout", f"csrf={csrf}".encode()) == 403  # it redirects to the login page
    assert post(opener, acting, wipe, **kind, **{"X-Keyfold-CSRF": csrf}) == 403


# -- actions


def test_every_action_is_done_and_logged(operated: Operated, caplog: pytest.LogCaptureFixture) -> None:
    """Retry, skip, resume, wipe; each is logged with the operator and the action."""
    caplog.set_level(logging.WARNING, "keyfold.admin")
    head = halt(operated)
    runtime = operated.system.runtime("test.audited")
    assert operated.act("test.audited", {"action": "resume", "key": "a"}, **BEARER)[0] == 409
    status, message = operated.act("test.audited", {"action": "retry", "letter": head}, **BEARER)
    assert (status, f"dead letter {head}" in message) == (409, True)
    snapshot = runtime.snapshot("a")
    assert snapshot is not None
    stale = {"action": "skip", "letter": head, "position": f"{snapshot.epoch}:7"}
    assert operated.act("test.audited", stale, **BEARER)[0] == 409
    fresh = {**stale, "position": f"{snapshot.epoch}:1"}
    assert operated.act("test.audited", fresh, **BEARER) == (200, "removed; its event will not be folded")
    status, message = operated.act("test.audited", {"action": "resume", "key": "a"}, **BEARER)
    assert (status, message) == (200, "1 parked events folded; the key goes on")
    assert runtime.read_required("a").amounts == [1, 3]
    assert operated.act("test.audited", {"action": "wipe", "key": "a"}, **BEARER)[0] == 200
    assert runtime.read("a") is None
    wishes = [
        record.__dict__["wish"]["action"] for record in caplog.records if "operator asks" in record.message
    ]
    assert wishes == ["resume", "retry", "skip", "skip", "resume", "wipe"]
    assert all(
        record.__dict__["address"] == "127.0.0.1"
        for record in caplog.records
        if record.name == "keyfold.admin"
    )


@pytest.mark.parametrize(
    ("action", "status", "message"),
    [
        (7, 400, "an action is a JSON object"),
        ({"action": "explode"}, 400, "must be one of retry, skip, resume, rebuild, wipe, drop"),
        ({"action": "retry", "letter": "7"}, 400, "letter must be a number"),
        ({"action": "retry", "letter": 7}, 409, "no dead letter 7"),
        ({"action": "skip", "letter": 7, "position": "x"}, 400, "a position is"),
        ({"action": "resume", "key": ""}, 400, "not a valid key"),
        ({"action": "wipe"}, 400, "key must be a string"),
        ({"action": "rebuild", "key": "a"}, 409, "has no history"),
        ({"action": "drop", "client": 1, "process": "elsewhere"}, 409, "another process"),
    ],
)
def test_a_bad_action_is_named(operated: Operated, action: Any, status: int, message: str) -> None:
    """The answer names the mistake, and nothing is done."""
    code, said = operated.act("test.totals", action, **BEARER)
    assert (code, message in said) == (status, True), said
    assert operated.act("no.such", {"action": "wipe", "key": "a"}, **BEARER)[0] == 404


def test_a_key_is_rebuilt_from_its_history(operate: Callable[..., Operated]) -> None:
    """Where the projection knows its history."""

    class Remembering(Totals):
        name = "test.remembering"

        def history(self, key: str) -> list[Added]:
            return [Added(key, 5), Added(key, 6)]

    keyfold = Keyfold()
    keyfold.register(Remembering())
    operated = operate(keyfold=keyfold)
    assert operated.act("test.remembering", {"action": "rebuild", "key": "a"}, **BEARER)[0] == 200
    assert operated.system.runtime("test.remembering").read_required("a").amounts == [5, 6]


def test_a_client_is_shown_and_dropped(operated: Operated) -> None:
    """The operator closes one connection; a second click is told that it has gone."""
    watcher = operated.site.watch("test.totals", "a")
    watcher.next()
    many = operated.site.watch_many()
    many.send(type="subscribe", channel="projection.test.audited.b")
    many.next_of_many()
    operated.system.runtime("test.audited").apply_event(Added(ProjectionKey("b")), DEADLINE)
    _, facts = operated.get("/admin/projections/of/test.audited/facts?key=b", **BEARER)
    assert (facts["clients"][0]["keys"], facts["busiest"][0]["key"]) == (["b"], "b")
    many.close()
    _, facts = operated.get("/admin/projections/of/test.totals/facts?key=a", **BEARER)
    [client] = facts["clients"]
    assert (client["address"], client["kind"], client["keys"]) == ("127.0.0.1", "WebSocket", ["a"])
    drop = {"action": "drop", "client": client["id"], "process": facts["process"]}
    assert operated.act("test.totals", drop, **BEARER)[0] == 200
    assert watcher.close_code() == 1001
    watcher.close()
    while operated.act("test.totals", drop, **BEARER)[0] == 200:
        pass  # until the server has seen the end of it as well
    assert "gone" in operated.act("test.totals", drop, **BEARER)[1]


def test_the_facts_of_a_projection(operated: Operated) -> None:
    """Busiest and largest keys, halted keys with their heads, letters with tracebacks, one key in full."""
    head = halt(operated)
    for _ in range(3):
        operated.system.runtime("test.audited").apply_event(Added("busy"), DEADLINE)
    _, facts = operated.get("/admin/projections/of/test.audited/facts?key=a", **BEARER)
    assert facts["busiest"][0] == {"key": "busy", "events": 3}
    assert [fact["key"] for fact in facts["largest"]] == ["busy", "a"]
    [halted] = facts["halted"]
    assert (halted["key"], halted["version"], halted["head"], halted["parked"]) == ("a", 1, head, 2)
    [letter] = facts["letters"]  # the events that are parked behind it are not errors
    assert (letter["id"], "ValueError: poison" in letter["traceback"]) == (head, True)
    assert facts["key"]["halted"] is True
    assert facts["key"]["state"] == {"total": 1, "amounts": [1]}
    assert operated.get("/admin/projections/of/test.audited/facts?key=none", **BEARER)[1]["key"] is None


def test_all_processes_are_seen(operate: Callable[..., Operated]) -> None:
    """Each reports itself in the database; one that has closed is gone from the list."""
    tuning = {"report_seconds": 0.01}
    first, second = operate(KEYFOLD_TUNING=tuning), operate(KEYFOLD_TUNING=tuning)
    second.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    second.system.reporter.report()

    def others() -> list[Any]:
        facts = first.get("/admin/projections/overview", **BEARER)[1]["processes"]
        assert facts[0]["process"] == first.system.reporter.process
        return [(one["process"], one["projections"]["test.totals"]["events"]) for one in facts[1:]]

    def reported() -> bool:
        second.system.reporter.report()
        return others() == [(second.system.reporter.process, 1)]

    wait_until(reported)
    second.system.close()
    assert others() == []


def wait_until(done: Callable[[], object]) -> None:
    """Ask again and again, each a request to a real server, until it is so."""
    deadline = threading.Event()
    timer = threading.Timer(DEADLINE, deadline.set)
    timer.start()
    while not done():
        assert not deadline.is_set(), "it did not come to that in time"
    timer.cancel()


# -- probes


def test_a_healthy_process_says_so(operated: Operated) -> None:
    """Before the first event and after."""
    for _ in range(2):
        assert operated.get("/keyfold/healthz") == (200, {"status": "ok", "failing": {}})
        assert operated.get("/keyfold/readyz") == (200, {"status": "ok", "failing": {}})
        operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)


HUNG = 0.2


def failing(operated: Operated, probe: str = "healthz") -> dict[str, str]:
    status, answer = operated.get(f"/keyfold/{probe}")
    parts: dict[str, str] = answer["failing"]
    assert status == (503 if parts else 200)
    return parts


def test_a_dispatcher_that_hangs_turns_health_red_and_green_again(operate: Callable[..., Operated]) -> None:
    """An apply that does not return is a thread that does nothing else."""
    operated, parking = operate(KEYFOLD_TUNING={"health_seconds": HUNG}), Parking()
    receipt = operated.system.bus.dispatch(Added("a", then=park_in(parking)))
    parking.wait_for_arrival()
    wait_until(lambda: failing(operated))
    for name, trouble in failing(operated).items():  # both projections fold it
        assert name.startswith("keyfold-dispatcher-")
        assert "in one step for" in trouble
    parking.release()
    receipt.result(DEADLINE)
    wait_until(lambda: not failing(operated))


def test_a_writer_that_hangs_turns_health_red_and_green_again(operate: Callable[..., Operated]) -> None:
    """It waits in the middle of a commit, for as long as the database does not answer."""
    operated, parking = operate(KEYFOLD_TUNING={"health_seconds": HUNG}), Parking()
    store = operated.system.store
    commit = store.commit

    def hang(*args: Any, **kwargs: Any) -> Any:
        parking.park()
        return commit(*args, **kwargs)

    store.commit = hang  # type: ignore[method-assign]
    receipt = operated.system.bus.dispatch(Added("a"))
    parking.wait_for_arrival()
    wait_until(lambda: "keyfold-writer" in failing(operated))
    parking.release()
    receipt.result(DEADLINE)
    wait_until(lambda: not failing(operated))


def test_a_hub_s_loop_that_hangs_or_dies_turns_health_red(operate: Callable[..., Operated]) -> None:
    """And green again after a hang, but never after a death. Then close() does not wait for clients."""
    operated, parking = operate(KEYFOLD_TUNING={"health_seconds": HUNG}), Parking()
    hub = operated.app.extensions["keyfold"].hub
    reactor = hub.reactor
    watcher = operated.site.watch("test.totals", "a")
    assert watcher.next()["type"] == "snapshot"
    reactor.call(parking.park)
    parking.wait_for_arrival()
    wait_until(lambda: "keyfold-hub" in failing(operated))
    parking.release()
    wait_until(lambda: not failing(operated))
    assert reactor.stop(DEADLINE)
    assert failing(operated) == {"keyfold-hub": "has ended"}
    hub.close(timeout=1000)
    assert len(hub.connections) == 0
    assert watcher.raw.recv(1) == b""
    watcher.socket.shutdown()


def test_a_process_whose_events_wait_is_not_ready(operate: Callable[..., Operated]) -> None:
    """The lag has a limit; the process lives, but others should be asked first."""
    operated, parking = operate(KEYFOLD_TUNING={"health_seconds": HUNG}), Parking()
    operated.system.bus.dispatch(Added("a", then=park_in(parking)))
    parking.wait_for_arrival()
    receipt = operated.system.bus.dispatch(Added("a"))
    wait_until(lambda: "lag" in failing(operated, "readyz"))
    parking.release()
    receipt.result(DEADLINE)
    wait_until(lambda: not failing(operated, "readyz"))


def test_pending_migrations_are_not_ready(operate: Callable[..., Operated]) -> None:
    """Where the app migrates by itself."""
    operated = operate(KEYFOLD_AUTO_MIGRATE=False)
    assert "flask keyfold migrate" in failing(operated, "readyz")["migrations"]
    assert failing(operated) == {}
    runner = operated.app.test_cli_runner()
    assert runner.invoke(args=["keyfold", "migrate"]).exit_code == 0
    wait_until(lambda: not failing(operated, "readyz"))


def test_a_closed_system_is_not_ready(operated: Operated) -> None:
    """A load balancer takes it out while it drains."""
    operated.system.close()
    assert failing(operated, "readyz") == {"system": "is closed"}


# -- keys that do not load


def degrade(operated: Operated, key: str = "a", state: str = BROKEN) -> None:
    """Put a state in a row that does not load, and let this process meet it."""
    totals = operated.system.runtime("test.totals")
    totals.apply_event(Added(key), DEADLINE)
    damage(operated.system, key, state)
    with pytest.raises(StoreError):
        totals.read(key)


def test_a_degraded_projection_is_ready_and_says_so(operated: Operated) -> None:
    """One row takes no process out of the balancer; a probe that looks sees it."""
    degrade(operated)
    degraded = {"status": "degraded", "failing": {}, "degraded": {"test.totals": 1}}
    assert operated.get("/keyfold/readyz") == (200, degraded)
    assert operated.get("/keyfold/healthz") == (200, {"status": "ok", "failing": {}})
    operated.system.runtime("test.totals").repair("a", "{}")
    assert operated.get("/keyfold/readyz") == (200, {"status": "ok", "failing": {}})


def test_a_process_that_fails_and_is_degraded_is_not_ready(operated: Operated) -> None:
    """The failing part decides."""
    degrade(operated)
    operated.system.close()
    status, answer = operated.get("/keyfold/readyz")
    assert (status, answer["status"], answer["degraded"]) == (503, "failing", {"test.totals": 1})


def test_degraded_keys_and_waiting_rows_are_metrics(operated: Operated) -> None:
    """Of every projection, also where there are none."""
    degrade(operated)
    degrade(operated, "b")
    text = operated.site.request("/keyfold/metrics", **BEARER)[2]
    assert 'keyfold_degraded_keys{projection="test.totals"} 2.0' in text
    assert 'keyfold_degraded_keys{projection="test.audited"} 0.0' in text
    assert "keyfold_waiting_rows 0.0" in text
    metrics = metrics_module.Metrics()
    stats = operated.system.stats()
    metrics.mirror({**stats, "writer": {**stats["writer"], "waiting": 3, "waiting_reason": "locked"}})
    assert "keyfold_waiting_rows 3.0" in metrics.text().decode()


def test_an_operator_sees_and_repairs_a_key_that_does_not_load(
    operated: Operated, caplog: pytest.LogCaptureFixture
) -> None:
    """The error by key; the row as it stands; a repair names the bad field, or is logged."""
    caplog.set_level(logging.WARNING, "keyfold.admin")
    degrade(operated)
    facts = operated.get("/admin/projections/of/test.totals/facts?key=a", **BEARER)[1]
    [degraded] = facts["degraded_keys"]
    assert (degraded["key"], facts["degraded"], facts["verified"]) == ("a", 1, True)
    assert "Expected `int`, got `str`" in degraded["error"]
    assert facts["key"]["error"] == degraded["error"]
    assert facts["key"]["state"] == json.loads(BROKEN)
    raw = operated.get("/admin/projections/of/test.totals/raw?key=a", **BEARER)[1]
    assert json.loads(raw["raw"]) == json.loads(BROKEN)
    assert raw["position"].endswith(":1")
    for action, status, message in (
        ({"action": "repair", "key": "a", "state": BROKEN}, 409, "$.total"),
        ({"action": "repair", "key": "a", "state": {"total": 7}}, 400, "state must be a string"),
        ({"action": "repair", "key": "", "state": "{}"}, 400, "not a valid key"),
    ):
        code, said = operated.act("test.totals", action, **BEARER)
        assert (code, message in said) == (status, True), said
    good = {"action": "repair", "key": "a", "state": '{"total": 7}'}
    assert operated.act("test.totals", good, **BEARER) == (200, "a is repaired")
    facts = operated.get("/admin/projections/of/test.totals/facts?key=a", **BEARER)[1]
    assert (facts["degraded"], facts["degraded_keys"], facts["key"]["error"]) == (0, [], None)
    assert facts["key"]["state"] == {"total": 7, "amounts": []}
    assert caplog.records[-1].__dict__["wish"] == {"action": "repair", "key": "a"}


def test_a_look_at_a_key_finds_out_that_it_does_not_load(operated: Operated) -> None:
    """Also where no event and no read has met it yet."""
    operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    damage(operated.system, "a")
    assert operated.get("/admin/projections/of/test.totals/facts?key=a", **BEARER)[1]["key"]["error"]
    facts = operated.get("/admin/projections/of/test.totals/facts", **BEARER)[1]
    assert [one["key"] for one in facts["degraded_keys"]] == ["a"]


def test_a_row_that_is_no_json_does_not_break_the_page(
    operate: Callable[..., Operated], sqlite_url: str
) -> None:
    """SQLite keeps any text that a person has written; the answer is JSON all the same."""
    operated = operate(KEYFOLD_DATABASE=sqlite_url)
    degrade(operated, state="{'total'")
    facts = operated.get("/admin/projections/of/test.totals/facts?key=a", **BEARER)[1]
    assert (facts["key"]["state"], "malformed" in facts["key"]["error"]) == (None, True)
    raw = operated.get("/admin/projections/of/test.totals/raw?key=a", **BEARER)[1]
    assert raw["raw"] == "{'total'"


@pytest.mark.parametrize("path", ["raw?key=a", "raw"])
def test_the_raw_row_is_for_operators_and_of_keys_alone(operated: Operated, path: str) -> None:
    """Closed to others; nothing for a key without a row."""
    assert operated.get(f"/admin/projections/of/test.totals/{path}")[0] == 403
    answer = operated.get(f"/admin/projections/of/test.totals/{path}", **BEARER)
    assert answer == (200, {"position": None, "raw": None}) if "=" in path else answer[0] == 400


def test_a_state_of_a_megabyte_is_repaired_and_one_above_the_bound_refused(operated: Operated) -> None:
    """Other forms, which anybody can send, stay small."""
    state = json.dumps({"total": 1, "amounts": [1] * 400_000})
    action = {"action": "repair", "key": "a", "state": state}
    assert operated.act("test.totals", action, **BEARER) == (200, "a is repaired")
    assert len(operated.system.runtime("test.totals").read_required("a").amounts) == 400_000
    answer = operated.app.test_client().post(
        "/admin/projections/of/test.totals/actions",
        headers=BEARER,
        environ_overrides={"CONTENT_LENGTH": str(2**24 + 1)},
    )
    assert answer.status_code == 413


# -- a database that does not answer


def test_reads_that_are_not_answered_are_503(
    make_app: Callable[..., Flask],
    postgres_server: PostgresServer,
    postgres_proxy: TcpProxy,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """In time, with a body that says so, and when to come back; the overview shows this process at least."""
    url = postgres_server.url_of("postgres", postgres_proxy.port)
    app = make_app(KEYFOLD_DATABASE=url, KEYFOLD_ADMIN_TOKEN=TOKEN, KEYFOLD_TUNING={"read_timeout": 0.3})
    system: ProjectionSystem = app.extensions["keyfold"].system
    system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    monkeypatch.setattr("keyfold.web.operator.page.SCAN_SECONDS", 0.3)
    client: Any = app.test_client()
    postgres_proxy.freeze()
    for path in (
        "/projection/test.totals/a",
        "/admin/projections/of/test.totals/facts?key=a",
        "/admin/projections/of/test.totals/raw?key=a",
    ):
        answer = client.get(path, headers=BEARER)
        assert (answer.status_code, answer.headers["Retry-After"]) == (503, "2"), path
        assert "has not answered within 0.3 s" in answer.json["error"]["message"]
    facts = client.get("/admin/projections/overview", headers=BEARER).json
    assert facts["trouble"] == "the database can't be asked"
    assert facts["processes"][0]["projections"]["test.totals"]["events"] == 1
    postgres_proxy.thaw()
    system.close()


def test_a_row_that_cannot_be_shown_is_500_and_not_503(
    operated: Operated, caplog: pytest.LogCaptureFixture
) -> None:
    """No request changes it by itself, so nobody is told to come back; it is logged."""
    totals = operated.system.runtime("test.totals")
    totals.apply_event(Added("a"), DEADLINE)
    damage(operated.system, "a", schema=0)
    answer: Any = operated.app.test_client().get("/projection/test.totals/a")
    assert (answer.status_code, "Retry-After" in answer.headers) == (500, False)
    assert answer.json["error"]["message"] == "this can't be read; the server's log says why"
    assert [record.name for record in caplog.records if record.levelname == "ERROR"] == ["keyfold.routes"]
    operator: Any = operated.app.test_client().get("/projection/test.totals/a", headers=BEARER)
    assert "does not decode" in operator.json["error"]["message"]


def test_a_row_of_a_newer_release_is_503(operated: Operated) -> None:
    """In a rolling release another process has an answer."""
    operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    damage(operated.system, "a", schema=2)
    answer: Any = operated.app.test_client().get("/projection/test.totals/a")
    assert (answer.status_code, "Retry-After" in answer.headers) == (503, True)


# -- metrics, signals, spans, logs


def test_the_metrics_are_those_of_the_stats(operated: Operated) -> None:
    """Labelled by projection alone, in the text format; a second scrape counts nothing twice."""
    halt(operated)
    watcher = operated.site.watch("test.totals", "a")
    watcher.next()
    operated.system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    for _ in range(2):
        status, _, text = operated.site.request("/keyfold/metrics", **BEARER)
        assert status == 200
        found = {
            (sample.name, sample.labels.get("projection")): sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if set(sample.labels) <= {"projection"}
        }
        assert found["keyfold_events_total", "test.audited"] == 1
        assert found["keyfold_parked_total", "test.audited"] == 2
        assert found["keyfold_halts_total", "test.audited"] == 1
        assert found["keyfold_actors_live", "test.audited"] == 1
        assert found["keyfold_subscribers", "test.totals"] == 1
        assert found["keyfold_sockets_open", None] == 1
        for name in ("checks_waiting", "checks_running", "rechecks_waiting", "rechecks_running"):
            assert found[f"keyfold_{name}", None] == 0
        assert found["keyfold_sockets_late_total", None] == found["keyfold_signals_dropped_total", None] == 0
        assert found["keyfold_writer_commits_total", None] >= 3
        assert all(name.startswith("keyfold_") for name, _ in found)
    watcher.close()


def test_stats_that_overtake_each_other_count_once(operated: Operated) -> None:
    """A report takes its stats, a scrape takes newer ones and is first, the report comes behind."""
    metrics = metrics_module.Metrics()
    totals = operated.system.runtime("test.totals")
    seen = []
    for _ in range(2):
        totals.apply_event(Added("a"), DEADLINE)
        seen.append(operated.system.stats())
    for stats in (seen[1], seen[0], seen[1]):
        metrics.mirror(stats)
    assert 'keyfold_events_total{projection="test.totals"} 2.0' in metrics.text().decode()


def test_there_is_one_set_of_metrics_however_many_ask_at_once(
    operated: Operated, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Two of them would each add the same increase, and count it twice where processes share files."""
    parking = Parking()

    class Slow:
        def __init__(self) -> None:
            parking.park()

    monkeypatch.setattr(metrics_module, "Metrics", Slow)
    metrics = operated.app.extensions["keyfold"].metrics
    with ThreadPoolExecutor(2) as pool:
        asked = [pool.submit(metrics) for _ in range(2)]
        parking.wait_for_arrival()
        parking.release()
        first, second = (future.result(DEADLINE) for future in asked)
    assert first is second


def test_signals_are_sent_by_the_app(operated: Operated) -> None:
    """Applied, failed, connected; a receiver that raises harms nothing."""
    heard: list[tuple[str, dict[str, Any]]] = []
    connected = threading.Event()

    def applied(app: Flask, **facts: Any) -> None:
        assert app is operated.app
        heard.append(("applied", facts))
        msg = "a receiver that raises"
        raise ValueError(msg)

    def failed(_app: Flask, **facts: Any) -> None:
        heard.append(("failed", facts))

    def connects(_app: Flask, **facts: Any) -> None:
        heard.append(("connected", facts))
        connected.set()

    with (
        projection_applied.connected_to(applied, operated.app),
        projection_failed.connected_to(failed, operated.app),
        subscriber_connected.connected_to(connects, operated.app),
    ):
        totals = operated.system.runtime("test.totals")
        totals.apply_event(Added("a"), DEADLINE)
        totals.accept(Added("a", 1, poison)).exception(DEADLINE)
        watcher = operated.site.watch("test.totals", "a")
        watcher.next()
        assert connected.wait(DEADLINE)
        watcher.close()
    (first, applied_facts), (second, failed_facts), (third, connected_facts) = heard
    assert (first, second, third) == ("applied", "failed", "connected")
    assert (applied_facts["projection"], applied_facts["key"]) == ("test.totals", "a")
    assert (applied_facts["version"], applied_facts["events"]) == (1, 1)
    assert "poison" in str(failed_facts["error"])
    assert connected_facts == {"projection": "test.totals", "key": "a", "user": None}


def test_spans_of_commits_and_failures(operate: Callable[..., Operated]) -> None:
    """By an observer, with OpenTelemetry's own SDK."""
    exporter = InMemorySpanExporter()
    provider = TracerProvider()
    provider.add_span_processor(SimpleSpanProcessor(exporter))
    operated = operate(keyfold=Keyfold(observers=[TracingObserver(provider.get_tracer("test"))]))
    totals = operated.system.runtime("test.totals")
    totals.apply_event(Added("a"), DEADLINE)
    totals.accept(Added("a", 1, poison)).exception(DEADLINE)
    commit, fold = exporter.get_finished_spans()
    assert (commit.name, fold.name) == ("keyfold.commit", "keyfold.fold")
    assert dict(commit.attributes or {})["keyfold.version"] == 1
    assert commit.start_time is not None
    assert commit.end_time is not None
    assert commit.end_time >= commit.start_time
    assert fold.events[0].name == "exception"
    provider.shutdown()


def test_log_records_carry_their_facts(operated: Operated, caplog: pytest.LogCaptureFixture) -> None:
    """For JSON logs: no one has to parse a message."""
    operated.system.runtime("test.totals").accept(Added("a", 1, poison)).exception(DEADLINE)
    [record] = [record for record in caplog.records if record.name == "keyfold.actor"]
    assert (record.__dict__["projection"], record.__dict__["key"], record.__dict__["version"]) == (
        "test.totals",
        "a",
        1,
    )
    assert record.exc_info is not None
