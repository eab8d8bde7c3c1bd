"""The operator's page in Chromium: live numbers, sorting, filters, each action, closed to all others."""

from __future__ import annotations

import itertools
import json
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem, StoreError
from keyfold.store.processes import Processes
from keyfold.web import Keyfold
from selenium.webdriver.common.action_chains import ActionChains
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
    """Some pieces of an article were sold."""

    article: str
    count: int


@dataclass
class Sales:
    """The pieces sold."""

    counts: list[int] = field(default_factory=list)


class Shop(Projection[Sold, Sales]):
    """Refuses the counts in ``refused``; ``closed`` is not public."""

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

    def __init__(self, browser: Browser, site: Site, app: Flask, shop: Shop) -> None:
        self.browser, self.site, self.shop = browser, site, shop
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
        script = (
            "return [...document.querySelectorAll(arguments[0])]"
            ".map((tr) => [...tr.cells].map((td) => td.innerText))"
        )
        rows: list[list[str]] = self.browser.execute_script(script, f"#{table} tbody tr")
        return rows

    def names(self) -> list[str]:
        return [row[0] for row in self.cells("projections")]

    def click(self, table: str, label: str) -> None:
        """Press a button in a table, and confirm the question, or cancel it."""
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
        """Press a button that opens the editor, change its text, confirm or cancel. Return the old text."""

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
        """Wait until the page shows this outcome of an action."""
        wait(self.browser, lambda: text in text_of(self.browser, "outcome"))


@contextmanager
def opened(browser: Browser, url: str, *others: Shop) -> Iterator[Desk]:
    """Serve an app with a shop and other projections. The browser is not signed in."""
    keyfold, shop = Keyfold(), Shop()
    for projection in (shop, *others):
        keyfold.register(projection)
    app = Flask("test")
    app.config.update(KEYFOLD_DATABASE=url, KEYFOLD_ADMIN_TOKEN=TOKEN, KEYFOLD_TUNING={"report_seconds": 0.1})
    keyfold.init_app(app)
    with serve(app) as site:
        made = Desk(browser, site, app, shop)
        browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
        yield made
        browser.get("about:blank")
        made.system.close()


@pytest.fixture
def desk(browser: Browser, sqlite_url: str) -> Iterator[Desk]:
    """A desk, not signed in."""
    with opened(browser, sqlite_url, Ledger()) as made:
        yield made


@pytest.fixture
def signed_in(desk: Desk) -> Desk:
    """A desk, signed in."""
    desk.open()
    desk.sign_in()
    wait(desk.browser, lambda: text_of(desk.browser, "connection").endswith("live"))
    return desk


def test_nobody_gets_in_without_the_token(desk: Desk) -> None:
    """A wrong token is refused; the page shows nothing of the app before the login."""
    desk.open()
    assert "shop.sales" not in desk.browser.page_source
    desk.sign_in("wrong")
    wait(desk.browser, lambda: "not the token" in desk.browser.page_source)
    desk.sign_in()
    wait(desk.browser, lambda: "shop.sales" in desk.names())
    desk.browser.find_element(By.CSS_SELECTOR, "header .session button").click()
    wait(desk.browser, lambda: desk.browser.find_element(By.NAME, "token").is_displayed())


def test_numbers_move_by_themselves(signed_in: Desk) -> None:
    """Over the library's own channel: the page sends no requests."""
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
    asked = (
        "return performance.getEntriesByType('resource')"
        ".filter((one) => one.name.endsWith('/overview')).length"
    )
    assert desk.browser.execute_script(asked) == 0
    [[process, *rest]] = desk.cells("processes")
    assert "serves this page" in process
    assert "–" in rest  # there is no other process


def test_it_shows_how_each_process_hears_of_the_others(signed_in: Desk) -> None:
    """No Redis, a Redis that answers, and one that is away."""
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
    """It polls, where neither sockets nor streams get through."""
    blocked = """
        window.WebSocket = class { constructor() { throw new Error("blocked"); } };
        const plain = window.fetch;
        window.fetch = (url, ...more) =>
            String(url).includes("/sse/") ? Promise.reject(new TypeError("blocked")) : plain(url, ...more);
    """
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = desk.browser.execute_cdp_cmd(command, {"source": blocked})["identifier"]
    try:
        desk.open()
        desk.sign_in()
        desk.sell(1)
        wait(desk.browser, lambda: "shop.sales" in desk.names())
        wait(desk.browser, lambda: "asking every 2 s" in text_of(desk.browser, "connection"))
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
    """It shows its event and its traceback; an opened letter stays open while the page is updated."""
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
    """Also of a projection that is not public: its state, and each delta."""
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
    """For instance locked by another program: other rows are written, so the process is not in trouble."""
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


def test_without_the_csrf_token_the_page_can_do_nothing(signed_in: Desk) -> None:
    """Another site could make this browser send its cookies, but nothing more."""
    desk = signed_in
    desk.sell(1)
    script = """
    const [url, done] = arguments;
    const headers = {"Content-Type": "application/json"};
    fetch(url, {method: "POST", headers, body: '{"action": "wipe", "key": "pen"}'})
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


# -- only changed parts are replaced

OBSERVE = """
const seen = window.seen = {nodes: 0, texts: 0, attributes: 0, same: 0, clicks: []};
const note = (records) => {
  for (const {type, target, attributeName, oldValue, addedNodes, removedNodes} of records) {
    if (type === "childList") seen.nodes += addedNodes.length + removedNodes.length;
    else if (type === "characterData") seen[oldValue === target.data ? "same" : "texts"] += 1;
    else seen[oldValue === target.getAttribute(attributeName) ? "same" : "attributes"] += 1;
  }
};
seen.observer = new MutationObserver(note);
seen.look = () => { note(seen.observer.takeRecords()); return {...seen, observer: null, look: null}; };
window.all = {subtree: true, childList: true, attributes: true, characterData: true,
  attributeOldValue: true, characterDataOldValue: true};
seen.observer.observe(document.body, window.all);
addEventListener("click", (event) => {
  const row = event.target.closest("tbody tr");
  if (!row) return;
  event.preventDefault();
  seen.clicks.push(row.cells[0].innerText);
}, true);
"""
"""Counts the changes of the page by their kind, and the clicks on a link in a row, which it cancels."""

COUNT_MESSAGES = """
window.heard = 0;
window.WebSocket = class extends WebSocket {
  constructor(...given) {
    super(...given);
    this.addEventListener("message", () => { window.heard += 1; });
  }
};
"""


HALF_A_MINUTE_LATER = "const now = performance.now(); performance.now = () => now + 31_000;"


@pytest.fixture
def counting_messages(browser: Browser) -> Iterator[None]:
    """Pages count the messages of their WebSocket in ``heard``."""
    command = "Page.addScriptToEvaluateOnNewDocument"
    script = browser.execute_cdp_cmd(command, {"source": COUNT_MESSAGES})["identifier"]
    yield
    browser.execute_cdp_cmd("Page.removeScriptToEvaluateOnNewDocument", {"identifier": script})


def seen(desk: Desk) -> dict[str, Any]:
    """Return the changes of the page since it is observed."""
    counts: dict[str, Any] = desk.browser.execute_script("return seen.look()")
    return counts


def hear(desk: Desk, messages: int) -> None:
    """Wait until the page has received this number of further states."""
    goal = desk.browser.execute_script("return heard") + messages
    wait(desk.browser, lambda: desk.browser.execute_script("return heard") >= goal)


def polls(desk: Desk, times: int) -> None:
    """Wait for this number of further requests of a projection's page, with their responses."""
    asked = (
        "return performance.getEntriesByType('resource').filter((one) => one.name.includes('/facts')).length"
    )
    goal = desk.browser.execute_script(asked) + times
    wait(desk.browser, lambda: desk.browser.execute_script(asked) >= goal)


def point_at(desk: Desk, selector: str) -> None:
    """Move the pointer there in steps, as a hand does."""
    element = desk.browser.find_element(By.CSS_SELECTOR, selector)
    ActionChains(desk.browser, duration=0).move_to_element(element).perform()


def has_focus(desk: Desk) -> str:
    """Return the row and the text of the control that has the focus."""
    script = """
    const control = document.activeElement;
    return `${control.closest("tr")?.dataset.key} ${control.innerText}`;
    """
    text: str = desk.browser.execute_script(script)
    return text


@pytest.fixture
def crowded(browser: Browser, sqlite_url: str, counting_messages: None) -> Iterator[Desk]:
    """A desk with 50 projections that receive events all the time."""
    del counting_messages
    many = [type("Shop", (Shop,), {"name": f"shop.n{n:02}"})() for n in range(1, 50)]
    over = threading.Event()
    with opened(browser, sqlite_url, *many) as made:

        def load() -> None:
            for count in itertools.count():
                for projection in (made.shop, *many):
                    made.system.runtime(projection.name).accept(Sold(f"a{count % 7}", 1))
                    if over.wait(0.002):
                        return

        thread = threading.Thread(target=load)
        thread.start()
        try:
            made.open()
            made.sign_in()
            wait(browser, lambda: len(made.names()) == 50)
            browser.execute_script(OBSERVE)
            yield made
        finally:
            over.set()
            thread.join(DEADLINE)


def hold_and_let_go(desk: Desk, name: str) -> None:
    """Click on the link of a projection, so slowly that a state arrives between press and release."""
    link = desk.browser.find_element(By.LINK_TEXT, name)
    ActionChains(desk.browser, duration=0).move_to_element(link).click_and_hold().perform()
    pressed = seen(desk)
    hear(desk, 1)
    now = seen(desk)
    assert now == pressed, "the page changed in the middle of a click"
    ActionChains(desk.browser, duration=0).release().perform()


def focus_stays(desk: Desk, seconds: float) -> None:
    """Watch for this time whether a link keeps the focus, and return the other changes."""
    desk.browser.find_element(By.LINK_TEXT, "shop.n25").send_keys(Keys.SHIFT)
    ends = monotonic() + seconds
    while monotonic() < ends:
        hear(desk, 1)
        assert has_focus(desk) == "shop.n25 shop.n25"
    counts = seen(desk)
    assert (counts["nodes"], counts["same"]) == (0, 0)
    assert counts["texts"] > 0
    assert counts["attributes"] > 0  # the bars of the last minute


def clicks_hit(desk: Desk, clicks: int) -> None:
    """Click on this number of links, from the top to the bottom and again."""
    names = desk.names()
    aims = [names[(7 * n) % 50] for n in range(clicks)]
    for name in aims:
        hold_and_let_go(desk, name)
    counts = seen(desk)
    assert counts["clicks"] == aims
    assert counts["nodes"] == 0


def test_under_load_no_node_is_replaced(crowded: Desk) -> None:
    """50 projections with numbers that change each second: only texts and attributes that differ change."""
    focus_stays(crowded, 4)


def test_under_load_each_click_hits(crowded: Desk) -> None:
    """The next state arrives during the click."""
    clicks_hit(crowded, 4)


def test_the_second_half_of_a_double_click_is_safe_as_well(crowded: Desk) -> None:
    """The release of the first press is not handled yet when the second press begins."""
    script = (
        "for (const kind of arguments[0]) "
        "document.body.dispatchEvent(new PointerEvent(kind, {button: 0, bubbles: true}))"
    )
    crowded.browser.execute_script(script, ["pointerdown", "pointerup", "pointerdown"])
    pressed = seen(crowded)
    hear(crowded, 1)
    assert seen(crowded) == pressed
    crowded.browser.execute_script(script, ["pointerup"])
    wait(crowded.browser, lambda: seen(crowded) != pressed)


@pytest.mark.slow
def test_for_a_minute_under_load_no_node_is_replaced_and_each_click_hits(crowded: Desk) -> None:
    """The same for longer."""
    focus_stays(crowded, 30)
    clicks_hit(crowded, 40)


def test_an_idle_page_changes_nothing(desk: Desk, counting_messages: None) -> None:
    """States arrive each second and answers every two: nothing is written, and a screen reader is silent."""
    del counting_messages
    desk.open()
    desk.sign_in()
    wait(desk.browser, lambda: desk.names() == ["shop.ledger", "shop.sales"])
    desk.browser.execute_script(OBSERVE)
    hear(desk, 3)
    nothing = dict.fromkeys(("nodes", "texts", "attributes", "same"), 0)
    assert seen(desk) | nothing == seen(desk)
    desk.sell(1, 2, 13)
    desk.open("/of/shop.sales?key=pen")
    wait(desk.browser, lambda: "snapshot" in text_of(desk.browser, "deltas"))
    polls(desk, 1)
    desk.browser.execute_script(OBSERVE)
    polls(desk, 2)
    assert seen(desk) | nothing == seen(desk)


def test_trouble_is_told_once_and_moves_no_row(desk: Desk, counting_messages: None) -> None:
    """A screen reader would read an alert aloud each time that it is written."""
    del counting_messages
    desk.open()
    desk.sign_in()
    wait(desk.browser, lambda: len(desk.names()) == 2)
    top = "return document.querySelector('#projections').getBoundingClientRect().top"
    before = desk.browser.execute_script(top)
    desk.system.store.database.execute_sql("ALTER TABLE projection_processes RENAME TO away")
    wait(desk.browser, lambda: "can't be asked" in text_of(desk.browser, "trouble"))
    assert desk.browser.execute_script(top) == before
    desk.browser.execute_script(OBSERVE)
    hear(desk, 3)
    assert seen(desk)["nodes"] == 0


def test_rows_keep_their_order_under_the_pointer_and_around_the_focus(signed_in: Desk) -> None:
    """Sorted by a changing number: numbers change at once, the order after the operator has left the rows."""
    desk = signed_in
    column = [th.text for th in desk.browser.find_elements(By.CSS_SELECTOR, "#projections th")].index(
        "Spawned"
    )

    def overtake(*, articles: int, name: str, still: bool) -> None:
        """Make a projection the busiest, and wait until the page shows it."""
        before = desk.names()
        for article in range(articles):
            desk.sell(1, article=f"{name}{articles}{article}", name=name)
        spawned = str(desk.system.stats()["projections"][name]["spawned"])
        wait(desk.browser, lambda: spawned in [row[column] for row in desk.cells("projections")])
        if still:
            assert desk.names() == before
            assert desk.browser.find_element(By.ID, "still").is_displayed()

    desk.browser.find_element(By.XPATH, "//th/button[text()='Spawned']").click()
    overtake(articles=2, name="shop.sales", still=False)
    wait(desk.browser, lambda: desk.names() == ["shop.ledger", "shop.sales"])
    point_at(desk, "#projections tbody tr:first-child td:nth-child(3)")
    overtake(articles=4, name="shop.ledger", still=True)
    point_at(desk, "#connection")
    wait(desk.browser, lambda: desk.names() == ["shop.sales", "shop.ledger"])
    assert not desk.browser.find_element(By.ID, "still").is_displayed()
    desk.browser.find_element(By.LINK_TEXT, "shop.sales").send_keys(Keys.SHIFT)
    overtake(articles=6, name="shop.sales", still=True)
    # An operator who has done nothing for half a minute is not about to act. The focus stays in its row.
    desk.browser.execute_script(HALF_A_MINUTE_LATER)
    wait(desk.browser, lambda: desk.names() == ["shop.ledger", "shop.sales"])
    assert has_focus(desk) == "shop.sales shop.sales"


def test_of_rows_that_change_their_order_the_fewest_are_moved(
    signed_in: Desk, counting_messages: None
) -> None:
    """A row moves from the last place to the first: only this row is moved in the page."""
    del counting_messages
    desk = signed_in
    for place in range(6):
        desk.sell(*range(20, 40 - place), article=f"a{place}")
    desk.open("/of/shop.sales")
    order = [f"a{place}" for place in range(6)]
    wait(desk.browser, lambda: [row[0] for row in desk.cells("busiest")] == order)
    desk.browser.execute_script(OBSERVE)
    desk.browser.execute_script(
        "seen.observer.disconnect(); seen.observer.observe(document.querySelector('#busiest'), all)"
    )
    desk.sell(*range(20, 30), article="a5")
    wait(desk.browser, lambda: [row[0] for row in desk.cells("busiest")] == ["a5", *order[:5]])
    assert seen(desk)["nodes"] == 2


def test_an_own_sort_is_done_at_once(signed_in: Desk) -> None:
    """No matter which row is under the pointer."""
    desk = signed_in
    wait(desk.browser, lambda: desk.names() == ["shop.ledger", "shop.sales"])
    point_at(desk, "#projections tbody tr:first-child td:nth-child(3)")
    desk.browser.find_element(By.XPATH, "//th/button[text()='Projection']").send_keys(Keys.ENTER, Keys.ENTER)
    assert desk.names() == ["shop.sales", "shop.ledger"]


def test_a_row_that_is_gone_stays_under_the_pointer_and_says_so(signed_in: Desk) -> None:
    """Another operator skips a letter: the one below it does not move under the pointer."""
    desk = signed_in
    desk.sell(13, 13)
    [first, second] = [str(letter.id) for letter in desk.system.runtime("shop.sales").dead_letters.find()]
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: [row[0] for row in desk.cells("letters")] == [second, first])
    point_at(desk, "#letters tbody tr:first-child td:nth-child(2)")
    desk.system.runtime("shop.sales").dead_letters.skip(int(second))
    wait(desk.browser, lambda: desk.browser.find_elements(By.CSS_SELECTOR, "#letters tr.gone"))
    assert [row[0] for row in desk.cells("letters")] == [second, first]
    point_at(desk, "#connection")
    wait(desk.browser, lambda: [row[0] for row in desk.cells("letters")] == [first])


def test_what_comes_above_rows_waits_for_the_pointer(signed_in: Desk) -> None:
    """The degraded keys are above the letters, and would push them down under the pointer."""
    desk = signed_in
    desk.sell(1, 13)
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: "13 is refused" in str(desk.cells("letters")))
    point_at(desk, "#letters tbody tr td:nth-child(2)")
    damage(desk.system, "pen", UNLOADABLE, name="shop.sales")
    with pytest.raises(StoreError):
        desk.counts("shop.sales")
    wait(desk.browser, lambda: desk.browser.find_element(By.ID, "still").is_displayed())
    assert not desk.browser.find_element(By.ID, "degraded").is_displayed()
    point_at(desk, "#connection")
    wait(desk.browser, lambda: desk.browser.find_element(By.ID, "degraded").is_displayed())


def test_a_question_stands_while_its_row_goes(signed_in: Desk) -> None:
    """Another operator skips the letter meanwhile: the question stays open, and returns the focus."""
    desk = signed_in
    desk.sell(13)
    [letter] = desk.system.runtime("shop.sales").dead_letters.find()
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: "13 is refused" in str(desk.cells("letters")))
    desk.browser.find_element(By.XPATH, "//table[@id='letters']//button[text()='Retry']").send_keys(
        Keys.ENTER
    )
    wait(desk.browser, lambda: desk.browser.find_element(By.ID, "question").is_displayed())
    desk.system.runtime("shop.sales").dead_letters.skip(letter.id)
    wait(desk.browser, lambda: desk.browser.find_elements(By.CSS_SELECTOR, "#letters tr.gone"))
    assert text_of(desk.browser, "question") == "Fold this event into pen now?"
    ActionChains(desk.browser).send_keys(Keys.ESCAPE).perform()
    wait(desk.browser, lambda: not desk.browser.find_element(By.ID, "question").is_displayed())
    desk.browser.execute_script(HALF_A_MINUTE_LATER)
    polls(desk, 2)
    assert has_focus(desk) == f"{letter.id} Retry"
    desk.browser.find_element(By.NAME, "key").send_keys("p")
    wait(desk.browser, lambda: desk.cells("letters") == [["none"]])


def test_the_focus_goes_to_the_next_row_when_its_own_is_done(signed_in: Desk) -> None:
    """By keyboard from letter to letter; the button of a row that changes meanwhile keeps the focus too."""
    desk = signed_in
    desk.sell(1, 13, 13)
    [first, second] = [str(letter.id) for letter in desk.system.runtime("shop.sales").dead_letters.find()]
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: [row[0] for row in desk.cells("letters")] == [second, first])
    desk.browser.find_element(
        By.CSS_SELECTOR, "#letters tbody tr td:last-child button:last-of-type"
    ).send_keys(Keys.ENTER)
    dialog = desk.browser.find_element(By.ID, "confirm")
    wait(desk.browser, lambda: dialog.get_attribute("open") is not None)
    desk.browser.find_element(By.ID, "yes").send_keys(Keys.ENTER)
    desk.outcome("removed")
    wait(desk.browser, lambda: [row[0] for row in desk.cells("letters")] == [first])
    assert has_focus(desk) == f"{first} Skip"


def test_the_button_of_a_halted_key_keeps_the_focus_while_events_are_parked(signed_in: Desk) -> None:
    """The number beside it changes; the button stays the same node."""
    desk = signed_in
    desk.sell(13, 1, name="shop.ledger")
    desk.open("/of/shop.ledger")
    wait(desk.browser, lambda: desk.cells("halted") and desk.cells("halted")[0][3] == "2")
    desk.browser.find_element(By.XPATH, "//table[@id='halted']//button[text()='Resume']").send_keys(
        Keys.SHIFT
    )
    desk.sell(2, name="shop.ledger")
    wait(desk.browser, lambda: desk.cells("halted")[0][3] == "3")
    assert has_focus(desk) == "pen Resume"


def test_what_is_selected_scrolled_and_half_typed_stays(signed_in: Desk) -> None:
    """A part of a state is selected while the state changes; the text is updated once nothing is selected."""
    desk = signed_in
    desk.sell(*range(20, 60))
    desk.open("/of/shop.sales?key=pen")
    wait(desk.browser, lambda: "59" in text_of(desk.browser, "state"))
    desk.browser.find_element(By.NAME, "key").send_keys("cil")
    script = """
    const state = document.querySelector("#state");
    state.scrollTop = 100;
    getSelection().setBaseAndExtent(state.firstChild, 0, state.firstChild, 20);
    return `${getSelection()}`;
    """
    marked = desk.browser.execute_script(script)
    desk.sell(60)
    wait(desk.browser, lambda: ["pen", "41"] in desk.cells("busiest"))
    assert marked
    assert desk.browser.execute_script("return `${getSelection()}`") == marked
    assert desk.browser.find_element(By.NAME, "key").get_property("value") == "pencil"
    desk.browser.execute_script("getSelection().empty()")
    wait(desk.browser, lambda: "60" in desk.browser.find_element(By.ID, "state").text)
    assert desk.browser.execute_script("return document.querySelector('#state').scrollTop") == 100


def test_an_answer_that_comes_late_is_not_drawn_over_a_newer_one(signed_in: Desk) -> None:
    """A skipped letter does not reappear for two seconds."""
    desk = signed_in
    desk.sell(13)
    desk.open("/of/shop.sales")
    wait(desk.browser, lambda: "13 is refused" in str(desk.cells("letters")))
    delay = """
    const ask = window.fetch;
    const free = new Promise((resolve) => { window.answer = resolve; });
    window.fetch = async (...given) => {
      window.fetch = ask;
      const response = await ask(...given);
      const body = await response.json();
      window.delayed = true;
      await free;
      return {ok: true, json: () => body};
    };
    """
    desk.browser.execute_script(delay)
    wait(desk.browser, lambda: desk.browser.execute_script("return window.delayed"))
    desk.click("letters", "Skip")
    wait(desk.browser, lambda: desk.cells("letters") == [["none"]])
    drawn: Any = desk.browser.execute_async_script("answer(); setTimeout(arguments[0], 50);")
    assert drawn is None
    assert desk.cells("letters") == [["none"]]
