"""The operator's page in Chromium: numbers move, sort, filter, each action, closed to all others."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem, StoreError
from keyfold.store.processes import Processes
from keyfold.web import Keyfold
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from support.browsing import Browser, text_of, wait
from support.damage import damage
from support.parking import DEADLINE
from support.serving import Site, serve

TOKEN = "let-me-see"


@dataclass
class Sold:
    """Some of an article."""

    article: str
    count: int


@dataclass
class Sales:
    """What was sold."""

    counts: list[int] = field(default_factory=list)


class Shop(Projection[Sold, Sales]):
    """Refuses what is in ``refused``; ``closed`` is not public."""

    name = "shop.sales"
    public = True
    refused: set[int]

    def __init__(self) -> None:
        self.refused = {13}

    def key(self, event: Sold) -> str:
        return event.article

    def apply(self, state: Sales, event: Sold) -> int:
        if event.count in self.refused:
            msg = f"{event.count} is refused"
            raise ValueError(msg)
        state.counts.append(event.count)
        return event.count

    def history(self, key: str) -> list[Sold]:
        return [Sold(key, 100)]


class Ledger(Shop):
    """Halts, and is not public."""

    name = "shop.ledger"
    on_error = "halt"
    public = False


class Desk:
    """An operator's browser in front of an app."""

    def __init__(self, browser: Browser, site: Site, app: Flask, shop: Shop, ledger: Ledger) -> None:
        self.browser, self.site, self.shop, self.ledger = browser, site, shop, ledger
        self.system: ProjectionSystem = app.extensions["keyfold"].system

    def sell(self, *counts: int, article: str = "pen", name: str = "shop.sales") -> None:
        runtime = self.system.runtime(name)
        for receipt in [runtime.accept(Sold(article, count)) for count in counts]:
            receipt.exception(DEADLINE)

    def counts(self, name: str, article: str = "pen") -> list[int]:
        sales = self.system.runtime(name).read(article)
        return [] if sales is None else sales.counts

    def open(self, path: str = "") -> None:
        self.browser.get(f"http://127.0.0.1:{self.site.port}/admin/projections{path}")

    def sign_in(self, token: str = TOKEN) -> None:
        self.browser.find_element(By.NAME, "token").send_keys(token, Keys.ENTER)

    def cells(self, table: str) -> list[list[str]]:
        """Return the texts of a table's body."""
        script = "return [...document.querySelectorAll(arguments[0])].map((tr) => [...tr.cells].map((td) => td.innerText))"
        rows: list[list[str]] = self.browser.execute_script(script, f"#{table} tbody tr")
        return rows

    def names(self) -> list[str]:
        return [row[0] for row in self.cells("projections")]

    def click(self, table: str, label: str) -> None:
        """Press a button in a table, and say yes."""
        self.press(f"//table[@id='{table}']//button[text()='{label}']")

    def press(self, path: str, *, agree: bool = True) -> None:
        def go() -> WebElement:
            button = self.browser.find_element(By.XPATH, path)
            self.browser.execute_script("arguments[0].scrollIntoView({block: 'center'})", button)
            button.click()
            return button

        wait(self.browser, go)
        dialog = self.browser.find_element(By.ID, "confirm")
        wait(self.browser, lambda: dialog.get_attribute("open") is not None)
        dialog.find_element(By.CSS_SELECTOR, f"button[value={'yes' if agree else 'no'}]").click()
        wait(self.browser, lambda: dialog.get_attribute("open") is None)

    def edit(self, path: str, change: Callable[[str], str] = lambda text: text, *, agree: bool = True) -> str:
        """Press a button that opens the editor, change its text, agree or not. Return the text of before."""

        def click() -> bool:
            self.browser.find_element(By.XPATH, path).click()
            return True

        wait(self.browser, click)
        editor = self.browser.find_element(By.ID, "editor")
        wait(self.browser, lambda: editor.get_attribute("open") is not None)
        field = self.browser.find_element(By.ID, "editor-text")
        text = field.get_property("value")
        assert isinstance(text, str)
        field.clear()
        field.send_keys(change(text))
        editor.find_element(By.CSS_SELECTOR, f"button[value={'yes' if agree else 'no'}]").click()
        wait(self.browser, lambda: editor.get_attribute("open") is None)
        return text

    def outcome(self, text: str) -> None:
        """Wait until the page says so."""
        wait(self.browser, lambda: text in text_of(self.browser, "outcome"))


@pytest.fixture
def desk(browser: Browser, sqlite_url: str) -> Iterator[Desk]:
    """A desk whose operator has not signed in."""
    keyfold, shop, ledger = Keyfold(), Shop(), Ledger()
    for projection in (shop, ledger):
        keyfold.register(projection)
    app = Flask("test")
    app.config.update(KEYFOLD_DATABASE=sqlite_url, KEYFOLD_ADMIN_TOKEN=TOKEN, KEYFOLD_REPORT_SECONDS=0.1)
    keyfold.init_app(app)
    with serve(app) as site:
        made = Desk(browser, site, app, shop, ledger)
        browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
        yield made
        browser.get("about:blank")
        made.system.close()


@pytest.fixture
def signed_in(desk: Desk) -> Desk:
    """A desk whose operator has signed in."""
    desk.open()
    desk.sign_in()
    wait(desk.browser, lambda: text_of(desk.browser, "connection").endswith("live"))
    return desk


def test_nobody_gets_in_without_the_token(desk: Desk) -> None:
    """A wrong one is told so; nothing of the app is on the page before."""
    desk.open()
    assert "shop.sales" not in desk.browser.page_source
    desk.sign_in("wrong")
    wait(desk.browser, lambda: "not the token" in desk.browser.page_source)
    desk.sign_in()
    wait(desk.browser, lambda: "shop.sales" in desk.names())
    desk.browser.find_element(By.CSS_SELECTOR, "header .session button").click()
    wait(desk.browser, lambda: desk.browser.find_element(By.NAME, "token").is_displayed())


def test_numbers_move_by_themselves(signed_in: Desk) -> None:
    """Over the library's own channel: the page asks for nothing."""
    desk = signed_in
    desk.sell(1, 2, 3)
    column = [th.text for th in desk.browser.find_elements(By.CSS_SELECTOR, "#projections th")].index(
        "Live actors"
    )
    wait(
        desk.browser, lambda: {row[0]: row[column] for row in desk.cells("projections")}["shop.sales"] == "1"
    )
    desk.sell(1, article="ink")
    wait(
        desk.browser, lambda: {row[0]: row[column] for row in desk.cells("projections")}["shop.sales"] == "2"
    )
    wait(desk.browser, lambda: "events in each" in desk.browser.page_source)
    asked = "return performance.getEntriesByType('resource').filter((one) => one.name.endsWith('/overview')).length"
    assert desk.browser.execute_script(asked) == 0
    [[process, *rest]] = desk.cells("processes")
    assert "serves this page" in process
    assert "–" in rest  # alone, it has nobody to hear of


def test_it_shows_how_each_process_hears_of_the_others(signed_in: Desk) -> None:
    """No Redis, one that is there, and one that is away."""
    desk = signed_in
    wait(desk.browser, lambda: len(desk.cells("processes")) == 1)
    numbers = {"published": 7, "received": 9, "dropped": 1, "reconnects": 2, "waiting": 0, "watched": 3}
    kept = Processes(desk.system.store)
    for name, backplane in (
        ("none", None),
        ("there", {"trouble": None, **numbers}),
        ("away", {"trouble": "Connection refused", **numbers}),
    ):
        stats = desk.system.stats()
        kept.report(name, {**stats, "process": name, "sockets": {**stats["sockets"], "backplane": backplane}})
    wait(desk.browser, lambda: len(desk.cells("processes")) == 4)
    column = [th.text for th in desk.browser.find_elements(By.CSS_SELECTOR, "#processes th")].index("Redis")
    shown = [row[column] for row in desk.cells("processes")]
    assert sorted(shown) == [
        "▲ away: sockets lag", "▲ none: sockets lag", "▲ none: sockets lag", "● 7 out, 9 in",
    ]  # fmt: skip


def test_without_a_channel_it_asks(desk: Desk) -> None:
    """Polling, where neither sockets nor streams get through."""
    blocked = (
        "delete window.WebSocket; window.WebSocket = class { constructor() { throw new Error('blocked') } };"
    )
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = desk.browser.execute_cdp_cmd(command, {"source": blocked})["identifier"]
    try:
        desk.open()
        desk.sign_in()
        desk.sell(1)
        wait(desk.browser, lambda: "shop.sales" in desk.names())
        assert "asking every 2 s" in text_of(desk.browser, "connection")
    finally:
        desk.browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


def test_sort_and_filter_are_kept_in_the_url(signed_in: Desk) -> None:
    """By mouse and by keyboard; a reload shows the same."""
    desk = signed_in
    desk.sell(*range(1, 5))
    wait(desk.browser, lambda: desk.names() == ["shop.ledger", "shop.sales"])
    head = desk.browser.find_element(By.XPATH, "//th/button[text()='Spawned']")
    head.click()
    head.send_keys(Keys.ENTER)
    wait(desk.browser, lambda: desk.names() == ["shop.sales", "shop.ledger"])
    assert desk.browser.find_element(By.CSS_SELECTOR, "th[aria-sort=descending]").text.startswith("Spawned")
    desk.browser.find_element(By.NAME, "filter").send_keys("LEDGER")
    wait(desk.browser, lambda: desk.names() == ["shop.ledger"])
    assert "sort=spawned&dir=down&filter=LEDGER" in desk.browser.current_url
    desk.browser.refresh()
    wait(desk.browser, lambda: desk.names() == ["shop.ledger"])
    field = desk.browser.find_element(By.NAME, "filter")
    assert field.get_attribute("value") == "LEDGER"
    field.clear()
    field.send_keys("nothing at all")
    wait(desk.browser, lambda: desk.browser.find_element(By.ID, "empty").is_displayed())


def test_a_halted_key_is_seen_skipped_and_resumed(signed_in: Desk) -> None:
    """From the overview to the letter, and back to a live key; each step asks first."""
    desk = signed_in
    desk.sell(1, 13, 2, 3, name="shop.ledger")
    wait(
        desk.browser,
        lambda: [row[1] for row in desk.cells("projections") if row[0] == "shop.ledger"] == ["■ halted"],
    )
    desk.browser.find_element(By.LINK_TEXT, "shop.ledger").click()
    wait(desk.browser, lambda: desk.cells("halted") and desk.cells("halted")[0][0] == "pen")
    desk.click("halted", "Resume")
    desk.outcome("Refused: projection: shop.ledger: Sold could not be folded")
    desk.press("//table[@id='letters']//button[text()='Skip']", agree=False)
    assert len(desk.system.runtime("shop.ledger").dead_letters.find()) == 3
    desk.click("letters", "Skip")
    desk.outcome("removed")
    desk.click("halted", "Resume")
    desk.outcome("2 parked events folded")
    assert desk.counts("shop.ledger") == [1, 2, 3]
    wait(desk.browser, lambda: desk.cells("halted") == [["none"]])


def test_a_dead_letter_is_read_and_retried(signed_in: Desk) -> None:
    """Its event and its traceback are there; an opened one stays open while the page goes on."""
    desk = signed_in
    desk.sell(1, 13)
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: "13 is refused" in str(desk.cells("letters")))
    desk.browser.find_element(By.CSS_SELECTOR, "#letters summary").click()
    desk.sell(2)
    wait(desk.browser, lambda: ["pen", "2"] in desk.cells("busiest"))
    assert (
        "raise ValueError"
        in desk.browser.find_element(By.CSS_SELECTOR, "#letters details[open] pre + pre").text
    )
    desk.shop.refused.clear()
    desk.click("letters", "Retry")
    desk.outcome("folded into pen as version 3")
    assert desk.counts("shop.sales") == [1, 2, 13]


def test_a_key_is_looked_up_live_rebuilt_and_wiped(signed_in: Desk) -> None:
    """Also one that is not public: its state, and its deltas as they come."""
    desk = signed_in
    desk.sell(1, 2, name="shop.ledger")
    desk.open("/of/shop.ledger")
    desk.browser.find_element(By.NAME, "key").send_keys("pen", Keys.ENTER)
    wait(desk.browser, lambda: "snapshot" in text_of(desk.browser, "deltas"))
    assert "version 2" in text_of(desk.browser, "key-facts").replace("\n", " ")
    desk.sell(7, name="shop.ledger")
    wait(desk.browser, lambda: text_of(desk.browser, "deltas").startswith("3  delta  7"))
    wait(desk.browser, lambda: "7" in text_of(desk.browser, "state"))
    assert "key=pen" in desk.browser.current_url
    desk.press("//*[@id='key-actions']/button[text()='Rebuild']")
    desk.outcome("rebuilt from its history")
    assert desk.counts("shop.ledger") == [100]
    desk.press("//*[@id='key-actions']/button[text()='Wipe']")
    desk.outcome("pen is wiped")
    assert desk.counts("shop.ledger") == []


UNLOADABLE = '{"counts": ["<b id=xss>many</b>", 9007199254740993]}'


def test_a_key_that_does_not_load_is_seen_and_repaired(signed_in: Desk) -> None:
    """Degraded on the overview, with key and error on its page; its own JSON is edited, to the last digit."""
    desk = signed_in
    desk.sell(1, 2)
    damage(desk.system, "pen", UNLOADABLE, name="shop.sales")
    with pytest.raises(StoreError):
        desk.counts("shop.sales")
    wait(
        desk.browser,
        lambda: [row[1] for row in desk.cells("projections") if row[0] == "shop.sales"] == ["▲ degraded"],
    )
    assert "Degraded keys\n1" in text_of(desk.browser, "tiles")
    desk.browser.find_element(By.LINK_TEXT, "shop.sales").click()
    wait(desk.browser, lambda: desk.cells("degraded-keys") and desk.cells("degraded-keys")[0][0] == "pen")
    assert "Expected `int`, got `str`" in desk.cells("degraded-keys")[0][1]
    desk.browser.find_element(By.XPATH, "//table[@id='degraded-keys']//button[text()='pen']").click()
    wait(desk.browser, lambda: "▲ does not load" in text_of(desk.browser, "key-facts"))
    assert "Expected `int`" in text_of(desk.browser, "key-error")
    button = "//table[@id='degraded-keys']//button[text()='Repair']"
    given = desk.edit(button, agree=False)
    assert json.loads(given) == json.loads(UNLOADABLE)
    assert desk.browser.find_elements(By.ID, "xss") == []
    desk.edit(button, lambda text: text.replace('"<b id=xss>many</b>"', '"still none"'))
    desk.outcome("Refused: projection: shop.sales: this is no state for key 'pen'")
    desk.edit(button, lambda text: text.replace('"<b id=xss>many</b>"', "3"))
    desk.outcome("pen is repaired")
    assert desk.counts("shop.sales") == [3, 9007199254740993]
    wait(desk.browser, lambda: not desk.browser.find_element(By.ID, "degraded").is_displayed())
    assert text_of(desk.browser, "key-error") == ""
    desk.sell(4)
    wait(desk.browser, lambda: text_of(desk.browser, "deltas").startswith("3  delta  4"))
    desk.edit("//*[@id='key-actions']/button[text()='Repair']", lambda _: '{"counts": [7]}')
    wait(desk.browser, lambda: desk.counts("shop.sales") == [7])
    desk.open()
    wait(
        desk.browser,
        lambda: [row[1] for row in desk.cells("projections") if row[0] == "shop.sales"] == ["● live"],
    )


def test_rows_that_wait_are_shown_with_their_process(signed_in: Desk) -> None:
    """Locked by somebody else, say: the others go on, so it is no trouble of the whole process."""
    desk = signed_in
    stats = desk.system.stats()
    writer = {**stats["writer"], "waiting": 2, "waiting_reason": "lock timeout"}
    Processes(desk.system.store).report("other", {**stats, "process": "other", "writer": writer})
    wait(desk.browser, lambda: any("▲ 2 rows wait: lock timeout" in row for row in desk.cells("processes")))


def test_a_client_is_dropped(signed_in: Desk) -> None:
    """One connection of all."""
    desk = signed_in
    watcher = desk.site.watch("shop.sales", "pen")
    watcher.next()
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: "WebSocket" in str(desk.cells("clients")))
    desk.click("clients", "Drop")
    desk.outcome("closed")
    assert watcher.close_code() == 1001
    watcher.close()


def test_without_the_csrf_word_the_page_can_do_nothing(signed_in: Desk) -> None:
    """What another site could make this browser send: the cookies, and no more."""
    desk = signed_in
    desk.sell(1)
    script = """
    const [url, done] = arguments;
    fetch(url, {method: "POST", headers: {"Content-Type": "application/json"}, body: '{"action": "wipe", "key": "pen"}'})
      .then((response) => done(response.status));
    """
    status: Any = desk.browser.execute_async_script(script, "/admin/projections/of/shop.sales/actions")
    assert status == 403
    assert desk.counts("shop.sales") == [1]


def test_the_page_holds_the_policy_it_sets(signed_in: Desk) -> None:
    """No script or style of its own breaks the content security policy, on either page."""
    desk = signed_in
    desk.sell(1, 13)
    desk.browser.get_log("browser")
    desk.open("/of/shop.sales?key=pen")
    wait(desk.browser, lambda: "snapshot" in text_of(desk.browser, "deltas"))
    severe = [entry["message"] for entry in desk.browser.get_log("browser") if entry["level"] == "SEVERE"]
    assert severe == []
