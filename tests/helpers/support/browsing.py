"""A headless Chromium, and waiting for what its page shows."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

from selenium import webdriver
from selenium.common.exceptions import StaleElementReferenceException, WebDriverException
from selenium.webdriver.chrome.service import Service
from selenium.webdriver.support.ui import WebDriverWait

from .parking import DEADLINE

Browser = webdriver.Chrome


@contextmanager
def chromium() -> Iterator[Browser]:
    """Run a browser."""
    options = webdriver.ChromeOptions()
    for argument in (
        "--headless=new",
        "--no-sandbox",
        "--disable-gpu",
        "--disable-dev-shm-usage",
        "--window-size=1500,1000",
    ):
        options.add_argument(argument)
    options.binary_location = found("chromium")
    options.set_capability("goog:loggingPrefs", {"browser": "ALL", "performance": "ALL"})
    driver = webdriver.Chrome(options=options, service=Service(found("chromedriver")))
    try:
        yield driver
    finally:
        driver.quit()


def found(program: str) -> str:
    """Return where it is; tests/install_tools.sh puts it there."""
    path = shutil.which(program)
    assert path, f"{program} is missing: run make test"
    return path


def wait(browser: Browser, what: Callable[[], Any]) -> Any:
    """Return what it says as soon as that is true; an element that was replaced meanwhile is looked for again."""

    def ask(_browser: object) -> Any:
        try:
            return what()
        except WebDriverException as error:
            # What ChromeDriver says of an element when the page is replaced between finding it and reading it.
            if "does not belong to the document" in str(error):
                return None
            raise

    patience = WebDriverWait(browser, DEADLINE, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return patience.until(ask)


def text_of(browser: Browser, element: str) -> str:
    """Return what the page shows there."""
    text: str = browser.find_element("id", element).text
    return text
