"""HTTP: the snapshot with its ETag, the operator's numbers, the extension and its configuration."""

from __future__ import annotations

import json
from collections.abc import Callable
from datetime import datetime
from pathlib import Path
from typing import Any

import pytest
from flask import Flask
from itsdangerous import URLSafeTimedSerializer
from keyfold.actors import AlreadyRegistered, NotStarted, ProjectionError, ProjectionSystem
from keyfold.web import ConfigError, Keyfold, create_app
from support.counting import Added, Totals
from support.parking import DEADLINE


def test_a_snapshot_has_an_etag_that_revalidates(app: Flask, system: ProjectionSystem) -> None:
    """Promise 3: the ETag is "epoch:version"; unchanged it is a 304, after an event a 200 again."""
    client = app.test_client()
    assert client.get("/projection/test.totals/a").status_code == 404
    applied, _ = system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    answer = client.get("/projection/test.totals/a")
    body = json.loads(answer.data)
    assert answer.headers["ETag"] == f'"{applied.epoch}:1"'
    assert answer.headers["Cache-Control"] == "private, no-cache"
    assert answer.mimetype == "application/json"
    assert datetime.fromisoformat(body.pop("updated_at")).tzinfo is not None
    assert body == {
        "channel": "projection.test.totals.a",
        "epoch": applied.epoch,
        "version": 1,
        "state": {"total": 5, "amounts": [5]},
    }
    same = client.get("/projection/test.totals/a", headers={"If-None-Match": answer.headers["ETag"]})
    assert (same.status_code, same.data) == (304, b"")
    system.bus.dispatch(Added("a", 5)).result(DEADLINE)
    changed = client.get("/projection/test.totals/a", headers={"If-None-Match": answer.headers["ETag"]})
    assert (changed.status_code, changed.get_json()["version"]) == (200, 2)
    system.runtime("test.totals").wipe("a")
    assert client.get("/projection/test.totals/a").status_code == 404
    assert client.head("/projection/test.totals/a").data == b""


@pytest.mark.parametrize(
    ("path", "status", "code"),
    [
        ("/projection/test.absent/a", 404, "not_found"),
        ("/projection/test.private/a", 403, "forbidden"),
        ("/projection/test.totals/" + "k" * 513, 400, "bad_request"),
        ("/admin/projections/stats", 403, "forbidden"),
    ],
)
def test_refusals_are_json_with_a_reason(app: Flask, path: str, status: int, code: str) -> None:
    """Closed by default, over HTTP too; the message names the remedy."""
    answer = app.test_client().get(path)
    assert answer.status_code == status
    assert answer.get_json()["error"]["code"] == code
    assert answer.get_json()["error"]["message"]


OPERATOR = {"Authorization": "Bearer secret"}


@pytest.mark.parametrize("path", ["/projection/test.totals/a", "/projection/test.totals/b?x=1"])
def test_a_database_that_is_away_is_503(
    tmp_path: Path, make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture, path: str
) -> None:
    """With Retry-After; a visitor reads no path and no word of the driver, the log and operators do."""
    app = make_app(KEYFOLD_DATABASE=f"sqlite:///{tmp_path}/absent/shop.db", KEYFOLD_ADMIN_TOKEN="secret")
    answer = app.test_client().get(path)
    assert answer.status_code == 503
    assert answer.headers["Retry-After"]
    assert answer.get_json()["error"] == {
        "code": "service_unavailable",
        "message": "the database can't be reached at the moment; try again",
    }
    assert "unable to open database file" in caplog.text
    told = app.test_client().get(path, headers=OPERATOR).get_json()["error"]["message"]
    assert "unable to open database file" in told
    assert str(tmp_path) in told


def test_a_postgresql_that_is_away_is_not_named_to_visitors(make_app: Callable[..., Flask]) -> None:
    """Neither host nor port, database, user or password."""
    app = make_app(KEYFOLD_DATABASE="postgresql://kim:pssst@127.0.0.1:1/shop", KEYFOLD_ADMIN_TOKEN="secret")
    text = app.test_client().get("/projection/test.totals/a").text
    for word in ("127.0.0.1", "shop", "kim", "pssst", "connection", "PostgreSQL"):
        assert word not in text
    operator = app.test_client().get("/projection/test.totals/a", headers=OPERATOR).text
    assert "127.0.0.1" in operator
    assert "pssst" not in operator


@pytest.mark.parametrize(
    "path",
    [
        "/projection/test.totals/a", "/projection/test.absent/a", "/sse/projection/test.private/a",
        "/admin/projections", "/admin/projections/stats", "/keyfold/keyfold.js",
        "/keyfold/admin.css", "/keyfold/healthz", "/keyfold/metrics",
    ],
)  # fmt: skip
def test_no_browser_guesses_a_type(app: Flask, system: ProjectionSystem, path: str) -> None:
    """A state that a page shows as JSON is never taken for a page."""
    system.bus.dispatch(Added("a")).result(DEADLINE)
    assert app.test_client().get(path).headers["X-Content-Type-Options"] == "nosniff"


@pytest.mark.parametrize("path", ["/sse/projection/test.totals/a", "/sse/projection/test.private/a"])
def test_a_ticket_of_an_app_without_a_secret_key_is_none(app: Flask, path: str) -> None:
    """401, as for any other word: the app has never issued one."""
    assert app.secret_key is None
    answer = app.test_client().get(f"{path}?ticket=anything")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    "payload",
    [
        ["test.private", "a", None, ["a", "list"]],
        ["test.private", "a", {"user": 1}, "nonce"],
        ["test.private", "a", None],
        ["test.private", "a", None, "nonce", "more"],
        {"test.private": 1, "a": 2, "user": 3, "nonce": 4},
        "test",
        7,
        None,
    ],
)
def test_a_signed_word_that_is_no_ticket_is_refused(make_app: Callable[..., Flask], payload: Any) -> None:
    """The app may have signed anything with the same salt."""
    app = make_app()
    app.secret_key = "secret"
    word = URLSafeTimedSerializer("secret", salt="keyfold.ticket").dumps(payload)
    answer = app.test_client().get(f"/sse/projection/test.private/a?ticket={word}")
    assert (answer.status_code, answer.get_json()["error"]["code"]) == (401, "unauthorized")


@pytest.mark.parametrize(
    ("header", "status"),
    [({}, 403), ({"Authorization": "Bearer wrong"}, 403), ({"Authorization": "Basic c2VjcmV0"}, 403),
     ({"Authorization": "Bearer secret"}, 200)],
)  # fmt: skip
def test_the_stats_need_the_token(
    make_app: Callable[..., Flask], header: dict[str, str], status: int
) -> None:
    """Actor counts for the operator alone."""
    app = make_app(KEYFOLD_ADMIN_TOKEN="secret")
    system = app.extensions["keyfold"].system
    system.bus.dispatch(Added("a")).result(DEADLINE)
    answer = app.test_client().get("/admin/projections/stats", headers=header)
    assert answer.status_code == status
    if status == 200:
        totals = answer.get_json()["projections"]["test.totals"]
        assert (totals["live"], totals["spawned"], totals["retired"], totals["events"]) == (1, 1, 0, 1)
        assert {"mailbox_depth", "conflicts", "dead_letters"} <= totals.keys()
        assert {"sockets", "writer"} <= answer.get_json().keys()


@pytest.mark.parametrize(("answer", "status"), [(True, 200), (False, 403), ("yes", 403)])
def test_authorize_admin_opens_the_stats(make_app: Callable[..., Flask], answer: Any, status: int) -> None:
    """Only True is yes."""
    client = make_app(authorize_admin=lambda _request: answer).test_client()
    assert client.get("/admin/projections/stats").status_code == status


# -- the extension


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({}, "KEYFOLD_DATABASE is missing"),
        ({"KEYFOLD_DATABASE": "shop.db"}, "must be a URL"),
        ({"KEYFOLD_IDLE_SECOND": 5}, "KEYFOLD_IDLE_SECOND is unknown; did you mean KEYFOLD_IDLE_SECONDS"),
        ({"KEYFOLD_IDLE_SECONDS": "5"}, "KEYFOLD_IDLE_SECONDS must be a number, not '5'"),
        ({"KEYFOLD_IDLE_SECONDS": float("nan")}, "KEYFOLD_IDLE_SECONDS must be"),
        ({"KEYFOLD_MAILBOX_LIMIT": 0}, "KEYFOLD_MAILBOX_LIMIT must be a whole number of at least 1"),
        ({"KEYFOLD_MAILBOX_LIMIT": True}, "KEYFOLD_MAILBOX_LIMIT must be a number"),
        ({"KEYFOLD_AUTO_MIGRATE": 1}, "KEYFOLD_AUTO_MIGRATE must be True or False"),
        ({"KEYFOLD_URL_PREFIX": "live/"}, "KEYFOLD_URL_PREFIX must be a path"),
        ({"KEYFOLD_ALLOWED_ORIGINS": "https://a.example"}, "KEYFOLD_ALLOWED_ORIGINS must be a list"),
        ({"KEYFOLD_ALLOWED_ORIGINS": ["https://a.example/page"]}, "KEYFOLD_ALLOWED_ORIGINS must be a list"),
        ({"KEYFOLD_ADMIN_TOKEN": ""}, "KEYFOLD_ADMIN_TOKEN must be a string that is not empty"),
    ],
)
def test_a_wrong_config_is_an_error_at_start_that_names_the_key(config: dict[str, Any], message: str) -> None:
    """Not a default, and not a surprise at the first request."""
    app = Flask("test")
    if config:
        app.config["KEYFOLD_DATABASE"] = "sqlite://"
    app.config.update(config)
    with pytest.raises(ProjectionError, match=message):
        Keyfold().init_app(app)


def test_init_app_twice_on_one_app_is_an_error(make_app: Callable[..., Flask]) -> None:
    """It would fold every event twice."""
    app = make_app()
    with pytest.raises(RuntimeError, match="has Keyfold already"):
        Keyfold().init_app(app)


def test_several_apps_in_one_process_are_apart(tmp_path: Path) -> None:
    """One extension, two apps, two databases: ``bus`` and ``system`` are those of the current app."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    with pytest.raises(NotStarted, match="init_app"):
        _ = keyfold.bus
    apps = [Flask("one"), Flask("two")]
    for number, app in enumerate(apps):
        app.config["KEYFOLD_DATABASE"] = f"sqlite:///{tmp_path}/{number}.db"
        keyfold.init_app(app)
    for number, app in enumerate(apps):
        with app.app_context():
            keyfold.bus.dispatch(Added("a", number + 1)).result(DEADLINE)
    with pytest.raises(NotStarted, match="2 apps"):
        _ = keyfold.bus
    for number, app in enumerate(apps):
        assert app.test_client().get("/projection/test.totals/a").get_json()["state"]["total"] == number + 1
        app.extensions["keyfold"].system.close()


def test_projections_may_be_registered_after_init_app(app: Flask, system: ProjectionSystem) -> None:
    """And a taken name is an error in either order."""
    keyfold = Keyfold()
    other = Flask("other")
    other.config["KEYFOLD_DATABASE"] = "sqlite://"
    keyfold.init_app(other)
    keyfold.register(Totals())
    assert keyfold.bus.dispatch(Added("a")).result(DEADLINE)
    with pytest.raises(AlreadyRegistered, match=r"test\.totals"):
        keyfold.register(Totals())
    keyfold.system.close()


@pytest.mark.parametrize("when", ["before", "after"])
def test_a_route_of_the_app_is_never_shadowed(when: str) -> None:
    """The same URL twice is an error that names both; a prefix makes room."""
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = "sqlite://"
    if when == "before":
        app.add_url_rule("/projection/<which>/<path:rest>", "mine", lambda **_: "mine")
        with pytest.raises(ConfigError, match=r"'/projection/<which>/<path:rest>' \(mine\) and Keyfold's"):
            Keyfold().init_app(app)
    else:
        Keyfold().init_app(app)
        app.add_url_rule("/admin/projections/stats", "mine", lambda: "mine")
        app.testing = True
        with pytest.raises(ConfigError, match="KEYFOLD_URL_PREFIX"):
            app.test_client().get("/")
    roomy = Flask("roomy")
    roomy.config.update(KEYFOLD_DATABASE="sqlite://", KEYFOLD_URL_PREFIX="/live")
    roomy.add_url_rule("/projection/<which>/<path:rest>", "mine", lambda **_: "mine")
    keyfold = Keyfold()
    keyfold.register(Totals())
    keyfold.init_app(roomy)
    assert roomy.test_client().get("/projection/x/y").text == "mine"
    assert roomy.test_client().get("/live/projection/test.totals/a").status_code == 404
    keyfold.system.close()


def test_init_app_starts_nothing(app: Flask, system: ProjectionSystem) -> None:
    """Threads start at the first dispatch in the process."""
    assert system.stats()["started"] is False


def test_without_flask_the_routes_are_a_wsgi_app(sqlite_url: str) -> None:
    """``create_app(system)`` is mounted under a path of any WSGI host, and becomes the broadcaster."""
    with ProjectionSystem(sqlite_url) as system:
        system.register(Totals())
        app = create_app(system, tuning={"heartbeat_seconds": 1.0})
        system.bus.dispatch(Added("a", 4)).result(DEADLINE)
        assert app.test_client().get("/projection/test.totals/a").get_json()["state"]["total"] == 4
        with pytest.raises(RuntimeError, match="before the first dispatch"):
            create_app(system)


def test_a_server_without_raw_sockets_says_so(app: Flask) -> None:
    """501, instead of a stack trace in the middle of a handshake."""
    headers = {"Connection": "Upgrade", "Upgrade": "websocket"}
    answer = app.test_client().get("/ws/projection/test.totals/a", headers=headers)
    assert answer.status_code == 501
    assert "/sse/projection/test.totals/a" in answer.get_json()["error"]["message"]
