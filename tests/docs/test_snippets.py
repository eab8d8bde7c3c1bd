"""Every Python block of the docs runs as it stands, a page's blocks one after the other."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType
from typing import Any

import peewee
import pytest
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem
from keyfold.store import pending
from keyfold.web import Keyfold
from support.counting import Added, Totals
from support.gunicorns import gunicorn
from support.parking import DEADLINE
from support.serving import serve
from werkzeug.test import Client

DOCS = Path(__file__).parents[2] / "docs"
Run = Callable[..., ModuleType]
ELSEWHERE = {"testing.md"}
"""Pages whose blocks another test runs."""


def blocks(page: str) -> list[tuple[str, str]]:
    """Return (title, source) of each Python block."""
    text = (DOCS / page).read_text()
    return re.findall(r'^```python(?: title="([^"]+)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


@pytest.fixture
def run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Run]:
    """Run a page's blocks in a module, in an empty directory; the page takes ``names`` for granted."""
    monkeypatch.chdir(tmp_path)
    made: list[ModuleType] = []

    def run_page(page: str, **names: Any) -> ModuleType:
        module = ModuleType("docs_" + re.sub(r"\W", "_", page))
        monkeypatch.setitem(sys.modules, module.__name__, module)
        vars(module).update(names)
        made.append(module)
        found = blocks(page)
        assert found
        for _, source in found:
            exec(compile(source, page, "exec", dont_inherit=True), vars(module))
        return module

    yield run_page
    for module in made:
        for owner in (vars(module).get("system"), vars(module).get("keyfold")):
            system = owner.system if isinstance(owner, Keyfold) else owner
            if isinstance(system, ProjectionSystem):
                system.close()


@dataclass
class Money:
    cents: int = 0


def test_every_page_with_python_is_run_here_or_elsewhere() -> None:
    """A new page can't be forgotten."""
    here = Path(__file__).read_text()
    for file in DOCS.rglob("*.md"):
        page = str(file.relative_to(DOCS))
        if blocks(page) and page not in ELSEWHERE:
            assert f'"{page}"' in here, page


@pytest.mark.parametrize(
    "page",
    [
        "index.md",
        "configuration.md",
        "guides/projections.md",
        "guides/errors.md",
        "guides/security.md",
        "howto/serving.md",
    ],
)
def test_it_runs(run: Run, page: str) -> None:
    """These pages assert their claims themselves."""
    run(page)


def test_operating(run: Run) -> None:
    """The two classes can be registered."""
    page = run("operating.md", Projection=Projection, Paid=Added, Balance=Money, Euros=Money)
    assert page.Accounts.schema_version == 2
    assert page.Accounts.upgrade(None, {"left": 3}, 1) == {"cents": 300}


def test_many_processes(run: Run) -> None:
    """The setting's name."""
    app = Flask("test")
    run("many_processes.md", app=app)
    app.config["KEYFOLD_DATABASE"] = "sqlite://"
    Keyfold().init_app(app)


def test_live(run: Run, sqlite_url: str) -> None:
    """The client, against a served app."""
    keyfold = Keyfold()

    class Stock(Totals):
        name = "inventory.warehouse"

    keyfold.register(Stock())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)
    printed: list[tuple[Any, ...]] = []

    class Enough(Exception):
        """Both messages were seen."""

    def note(*change: Any) -> None:
        printed.append(change)
        if len(printed) == 2:
            raise Enough
        with app.app_context():
            keyfold.bus.dispatch(Added("north"))

    [(_, source)] = blocks("live.md")
    with serve(app) as site:
        there = source.replace("http://127.0.0.1:8000", f"http://127.0.0.1:{site.port}")
        with pytest.raises(Enough):
            exec(compile(there, "live.md", "exec"), {"print": note})
        with app.app_context():
            keyfold.system.close()
    assert [(is_snapshot, position.version) for is_snapshot, position, _ in printed] == [
        (True, 0),
        (False, 1),
    ]


def test_migrations(run: Run) -> None:
    """The tables are there after it; autogenerate leaves them alone."""
    page = run("howto/migrations.md")
    database = peewee.SqliteDatabase("shop.db")
    assert pending(database)
    page.upgrade()
    assert not pending(database)
    database.close()
    assert not page.include_name("projection_snapshots", "table", {})
    assert page.include_name("orders", "table", {})
    assert page.include_name("projection_x", "column", {})


def test_mounting(run: Run) -> None:
    """Each host serves its page, and Keyfold's routes below /live."""
    page = run("howto/mounting.md")
    for count, host in enumerate((page.django_app, page.bottle_app, page.falcon_app), 1):
        client = Client(host)
        assert client.get("/").text == "hello"
        page.system.settle(DEADLINE)
        assert json.loads(client.get("/live/projection/site.visits/home").text)["state"] == {"count": count}
        assert "watch" in client.get("/live/keyfold/keyfold.js").text


def test_flask_sock(run: Run) -> None:
    """Both handlers give their sockets to the hub."""
    page = run("howto/flask_sock.md")
    with serve(page.app) as site:
        live = site._open("/matches/final/live", {})
        assert live.socket.recv() == "welcome to final"
        assert live.next()["version"] == 0
        beside = site._open("/matches/final/beside/other", {})
        assert (
            sorted(beside.next_of_many()["type"] for _ in range(4)) == ["snapshot"] * 2 + ["subscribed"] * 2
        )
        page.keyfold.bus.dispatch(page.Scored("final"))
        assert live.next()["data"] == beside.next_of_many()["data"] == 1
        live.close()
        beside.close()
        page.keyfold.system.close()


def test_sqlalchemy(run: Run) -> None:
    """After a commit, and never after a rollback."""
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = "sqlite://"
    keyfold.init_app(app)
    page = run("howto/sqlalchemy.md", keyfold=keyfold)
    with page.Sessions() as session:
        page.record(session, Added("a"))
        session.connection()
        session.rollback()
        page.record(session, Added("b"))
        session.connection()
        session.commit()
    keyfold.system.settle(DEADLINE)
    totals = keyfold.system.runtime("test.totals")
    assert totals.read("a") is None
    assert totals.read_required("b").total == 1


def test_the_tutorial(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its files in an empty directory: the test passes, the app serves, both boards move, and rights hold."""
    for title, source in blocks("tutorial.md"):
        (tmp_path / title).write_text(source)
    tested = subprocess.run(
        [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider", "test_board.py"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert "1 passed" in tested.stdout, tested.stdout
    source = "from app import create_app\napp = create_app()\n"
    with gunicorn(tmp_path, "-c", "python:keyfold.web.gunicorn", "--threads", "8", source=source) as server:
        assert "watch(" in server.site.request("/board/kitchen")[2]
        watchers = [server.site.watch("restaurant.board", key) for key in ("kitchen", "table 4")]
        assert [watcher.next()["version"] for watcher in watchers] == [0, 0]
        status, text = server.site.send("/order", {"table": "4", "dish": "soup"})
        assert (status, json.loads(text)) == (200, {"order": 1})
        assert server.site.send("/served", {"table": "4", "order": 1})[0] == 202
        for watcher in watchers:
            assert watcher.next()["data"] == {"order": 1, "dish": "soup"}
            assert watcher.next()["data"] == {"order": 1, "served": 1}
            watcher.close()
    flask = [sys.executable, "-m", "flask", "--app", "app:create_app"]
    shown = subprocess.run(
        [*flask, "keyfold", "show", "restaurant.board", "kitchen", "--json"],
        cwd=tmp_path, capture_output=True, text=True, check=True,
    )  # fmt: skip
    assert json.loads(shown.stdout)["state"] == {"waiting": {}, "served": 1}
    monkeypatch.syspath_prepend(tmp_path)
    access: dict[str, Any] = {}
    exec((tmp_path / "access.py").read_text(), access)
    for cookies, key, may in (
        ({"staff": "yes"}, "kitchen", True),
        ({}, "kitchen", False),
        ({"table": "4"}, "table 4", True),
        ({"table": "4"}, "table 5", False),
    ):
        request = type("Asked", (), {"cookies": cookies})()
        assert access["authorize"](request, "restaurant.board", key) is may
