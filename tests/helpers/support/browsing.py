"""A headless Chromium, and functions that wait for the content of its page."""

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
    """Return the path of a program that tests/install_tools.sh installs."""
    path = shutil.which(program)
    assert path, f"{program} is missing: run make test"
    return path


def wait(browser: Browser, what: Callable[[], Any]) -> Any:
    """Return the condition's value as soon as it is true. An element that was replaced is looked up again."""

    def ask(_browser: object) -> Any:
        try:
            return what()
        except WebDriverException as error:
            # ChromeDriver's error if the page is replaced between finding an element and reading it.
            if "does not belong to the document" in str(error):
                return None
            raise

    patience = WebDriverWait(browser, DEADLINE, 0.05, ignored_exceptions=[StaleElementReferenceException])
    return patience.until(ask)


def text_of(browser: Browser, element: str) -> str:
    """Return the visible text of an element."""
    text: str = browser.find_element("id", element).text
    return text
