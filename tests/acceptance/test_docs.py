"""The examples of the docs that are not Python: pages in a real browser, and nginx in front."""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path

import pytest
from flask import Flask
from keyfold.web import Keyfold
from selenium.webdriver.common.by import By
from support.browsing import Browser, wait
from support.counting import Added, Totals
from support.gunicorns import gunicorn
from support.nginx import answer, nginx
from support.parking import DEADLINE
from support.postgres import free_port
from support.serving import Site, serve

ROOT = Path(__file__).parents[2]
DOCS = ROOT / "docs"


def blocks(page: Path, language: str) -> list[tuple[str, str]]:
    """Return (title, text) of the blocks of a language."""
    text = page.read_text()
    return re.findall(rf'^```{language}(?: title="([^"]+)")?\n(.*?)^```', text, re.DOTALL | re.MULTILINE)


class Warehouse(Totals):
    """The projection that README and docs/live.md watch."""

    name = "inventory.warehouse"

    def apply(self, state: object, event: Added) -> dict[str, object]:
        delta = super().apply(state, event)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
        return {"sku": "apple", "total": delta["total"]}


@pytest.fixture
def warehouse(sqlite_url: str) -> Iterator[tuple[Keyfold, Flask, Site]]:
    """A served app. Each test sets its page."""
    keyfold = Keyfold()
    keyfold.register(Warehouse())
    app = Flask("test")
    app.config["KEYFOLD_DATABASE"] = sqlite_url
    keyfold.init_app(app)

    @app.get("/page")
    def page() -> str:
        return app.config["PAGE"]  # type: ignore[no-any-return]

    with serve(app) as site:
        yield keyfold, app, site
        with app.app_context():
            keyfold.system.close()


@pytest.mark.parametrize("file", ["README.md", "docs/live.md"])
def test_the_script_of_the_docs_watches(
    warehouse: tuple[Keyfold, Flask, Site], browser: Browser, file: str
) -> None:
    """As it stands, in a page that has its drawing functions."""
    keyfold, app, site = warehouse
    [(_, script)] = blocks(ROOT / file, "js")
    app.config["PAGE"] = (
        "<!doctype html><p id=seen></p><script>"
        "const seen = []; const note = (...call) => { seen.push(call); "
        "document.getElementById('seen').textContent = JSON.stringify(seen); };"
        "const draw = (stock) => note('draw', stock?.total ?? stock?.totals ?? null);"
        "const update = (sku, total) => note('update', sku, total);"
        f"</script><script type=module>{script}</script>"
    )
    browser.get(f"http://127.0.0.1:{site.port}/page")

    def seen() -> str:
        return browser.find_element(By.ID, "seen").text

    wait(browser, lambda: '["draw",null]' in seen())
    with app.app_context():
        keyfold.bus.dispatch(Added("north", 3)).result(DEADLINE)
    expected = '["update","apple",3]' if file == "README.md" else '["draw",{"apple":3}]'
    wait(browser, lambda: expected in seen())
    browser.get("about:blank")


def test_the_boards_of_the_tutorial_move(tmp_path: Path, browser: Browser) -> None:
    """A reader of the page sees a dish, until it is served."""
    for title, source in blocks(DOCS / "tutorial.md", "python"):
        (tmp_path / title).write_text(source)
    source = "from app import create_app\napp = create_app()\n"
    with gunicorn(tmp_path, "-c", "python:keyfold.web.gunicorn", "--threads", "8", source=source) as server:
        browser.get(f"http://127.0.0.1:{server.site.port}/board/table%204")

        def shown() -> tuple[list[str], str]:
            items = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#waiting li")]
            return items, browser.find_element(By.ID, "served").text

        for dish in ("soup", "fish"):
            assert server.site.send("/order", {"table": "4", "dish": dish})[0] == 200
        wait(browser, lambda: shown() == (["1: soup", "2: fish"], "0"))
        server.site.send("/served", {"table": "4", "order": 1})
        wait(browser, lambda: shown() == (["2: fish"], "1"))
        browser.get("about:blank")


def test_the_nginx_of_docs_serving(sqlite_url: str, tmp_path: Path) -> None:
    """A socket with the page's Origin, a stream, and a post, through it."""
    [(_, inner)] = blocks(DOCS / "howto" / "serving.md", "nginx")
    (tmp_path / "app").mkdir()
    with gunicorn(tmp_path / "app", "--threads", "4", DATABASE=sqlite_url) as server:
        site = Site(free_port())
        inner = inner.replace("127.0.0.1:8000", f"127.0.0.1:{server.site.port}")
        with nginx(tmp_path, inner.replace("listen 80", f"listen {site.port}")):
            answer(site)
            origin = f"http://127.0.0.1:{site.port}"
            watcher = site.watch("test.totals", "a", suppress_origin=False, origin=origin)
            assert watcher.next()["version"] == 0
            site.post("/add/a")
            assert watcher.next()["version"] == 1
            watcher.close()
