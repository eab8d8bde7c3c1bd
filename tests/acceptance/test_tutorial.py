"""The tutorial, followed word for word: its files, its commands, its kill -9, and the printed outputs."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import NamedTuple

import pytest
from selenium.webdriver.common.by import By
from selenium.webdriver.common.keys import Keys
from selenium.webdriver.remote.webelement import WebElement
from support.browsing import Browser, found, wait
from support.parking import DEADLINE
from support.postgres import free_port

TUTORIAL = Path(__file__).parents[2] / "docs" / "tutorial.md"
INSTALL, *STEPS = re.split(r"^## ", TUTORIAL.read_text(), flags=re.MULTILINE)
BLOCK = re.compile(r'^```(python|diff|console)(?: title="([^"]+)")?\n(.*?)^```', re.DOTALL | re.MULTILINE)
SERVES = re.compile(r"gunicorn |flask .* run\b")


class Command(NamedTuple):
    """A line that a reader types, and the output that the page shows below it."""

    line: str
    output: str


def typed_in(console: str) -> list[Command]:
    """Return the commands of a console block."""
    return [
        Command(*typed.split("\n", 1)) for typed in re.split(r"^\$ ", console, flags=re.MULTILINE) if typed
    ]


def commands(text: str) -> list[Command]:
    """Return the commands of all console blocks, in order."""
    return [one for kind, _, body in BLOCK.findall(text) if kind == "console" for one in typed_in(body)]


def named_in(text: str, pattern: str) -> str:
    """Return the part of the page's text that a reader is told to type."""
    found_there = re.search(pattern, text, re.DOTALL)
    assert found_there, pattern
    return found_there[1]


def is_as_shown(printed: str, output: str) -> bool:
    """Dots in the page stand for text that differs from run to run, within a line."""
    pattern = ".*".join(re.escape(part) for part in output.strip().split("…"))
    return re.fullmatch(pattern, printed.strip()) is not None


class Server:
    """A server that the page starts, in a group of processes of its own as under an interactive shell."""

    def __init__(self, line: str, directory: Path, environment: dict[str, str]) -> None:
        self.log: list[str] = []
        self._listening = threading.Event()
        self.process = subprocess.Popen(
            ["bash", "-c", f"exec {line}"], cwd=directory, env=environment, start_new_session=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        self._reader = threading.Thread(target=self._follow, daemon=True)
        self._reader.start()

    def wait_until_it_listens(self) -> None:
        assert self._listening.wait(DEADLINE), self.log

    def _follow(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.log.append(line)
            if re.search(r"Listening at|Running on", line):
                self._listening.set()

    def end(self) -> None:
        """End it by Ctrl-C, unless it has ended."""
        if self.process.poll() is None:
            self.process.send_signal(signal.SIGINT)
        try:
            self.process.wait(DEADLINE)
        finally:
            if self.process.poll() is None:
                os.killpg(self.process.pid, signal.SIGKILL)
            self._reader.join(DEADLINE)
            assert self.process.stdout is not None
            self.process.stdout.close()


class Reader:
    """Follows the page in an empty directory; port 8000 is another one, and nothing is installed."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self.port = free_port()
        self.server: Server | None = None
        self._environment = {
            **os.environ,
            "PATH": f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}",
            "GUNICORN_CMD_ARGS": f"--bind 127.0.0.1:{self.port}",
            "COLUMNS": "80",
            "BASH_FUNC_pip%%": "() { :; }",
        }

    def follow(self, text: str) -> list[tuple[Command, str]]:
        """Write the files and run the commands of a part of the page; return each command with its output."""
        seen: list[tuple[Command, str]] = []
        for kind, title, body in BLOCK.findall(text):
            if kind == "python":
                (self.directory / title).write_text(body)
            elif kind == "diff":
                self._change(self.directory / title, body)
            else:
                seen += [(command, self.run(command.line)) for command in typed_in(body)]
        return seen

    def _change(self, file: Path, diff: str) -> None:
        old, new = (
            "".join(f"{line[1:]}\n" for line in diff.splitlines() if line[0] in signs)
            for signs in ("- ", "+ ")
        )
        text = file.read_text()
        assert text.count(old) == 1, (file, old)
        file.write_text(text.replace(old, new))

    def run(self, line: str) -> str:
        """Return the output of a command. A server goes on; the one before it is ended."""
        line = line.replace("8000", str(self.port))
        if SERVES.match(line):
            self.close()
            self.server = Server(line, self.directory, self._environment)
            self.server.wait_until_it_listens()
            return ""
        done = subprocess.run(
            ["bash", "-c", line], cwd=self.directory, env=self._environment,
            capture_output=True, text=True, timeout=DEADLINE, check=False,
        )  # fmt: skip
        if line.startswith("kill -9"):
            assert self.server is not None
            assert self.server.process.wait(DEADLINE) == -signal.SIGKILL
        return done.stdout if done.returncode == 0 else done.stdout + done.stderr

    def close(self) -> None:
        """End the server that runs."""
        server, self.server = self.server, None
        if server is not None:
            server.end()


@contextmanager
def reader_in(directory: Path) -> Iterator[Reader]:
    """Make a reader; no server of it is left, also where a step fails."""
    assert found("curl")
    made = Reader(directory)
    try:
        yield made
    finally:
        made.close()


@pytest.fixture
def reader(tmp_path: Path) -> Iterator[Reader]:
    """A reader at the beginning of the tutorial."""
    with reader_in(tmp_path) as made:
        yield made


@pytest.fixture(scope="module")
def printed(tmp_path_factory: pytest.TempPathFactory) -> Iterator[list[tuple[Command, str]]]:
    """The commands of all steps with the outputs that one reader saw."""
    with reader_in(tmp_path_factory.mktemp("kitchen")) as one:
        yield one.follow("".join(STEPS))


SHOWN = [(number, command) for number, command in enumerate(commands("".join(STEPS))) if command.output]


def test_the_reader_installs_and_kills() -> None:
    """Nothing but the installation is left out, and the plug is pulled for good."""
    assert [command.line.split()[0] for command in commands(INSTALL)] == ["mkdir", "python3", "pip"]
    assert any(command.line.startswith("kill -9") for command in commands("".join(STEPS)))


@pytest.mark.parametrize(("number", "command"), SHOWN, ids=[f"{number}-{one.line}" for number, one in SHOWN])
def test_a_command_prints_what_the_page_shows(
    printed: list[tuple[Command, str]], number: int, command: Command
) -> None:
    """Followed from top to bottom, nothing is lost, and each output is the one of the page."""
    assert printed[number][0] == command
    assert is_as_shown(printed[number][1], command.output), printed[number][1]


def test_the_pages_show_what_the_text_says(reader: Reader, browser: Browser) -> None:
    """The boards survive the kill without a reload; the operator sees two dead letters and retries them."""

    def board() -> tuple[list[str], str]:
        items = [item.text for item in browser.find_elements(By.CSS_SELECTOR, "#waiting li")]
        return items, browser.find_element(By.ID, "served").text

    def letters() -> str:
        return browser.find_element(By.ID, "letters").text

    def retries() -> list[WebElement]:
        return browser.find_elements(By.XPATH, "//table[@id='letters']//button[text()='Retry']")

    site = f"http://127.0.0.1:{reader.port}"
    browser.execute_cdp_cmd("Network.clearBrowserCookies", {})
    reader.follow("".join(STEPS[:3]))
    browser.get(f"{site}/board/kitchen")
    wait(browser, lambda: board() == ([], "1"))
    reader.follow(STEPS[3])
    wait(browser, lambda: board() == (["2: soup", "3: stew"], "1"))

    reader.follow(STEPS[4])
    browser.execute_script(named_in(STEPS[4], r"`(document\.cookie = .*?)`"))
    browser.refresh()
    wait(browser, lambda: board() == (["2: soup", "3: stew"], "1"))

    served, ordered, *_ = commands(STEPS[5])
    reader.run(served.line)
    browser.get(f"{site}/admin/projections")
    browser.find_element(By.NAME, "token").send_keys(named_in(STEPS[5], "token `(.*?)`"), Keys.ENTER)
    wait(browser, lambda: browser.find_elements(By.LINK_TEXT, "restaurant.board"))
    browser.get(f"{site}/admin/projections/of/restaurant.board")
    wait(browser, lambda: letters().count("order 4 is not waiting") == 2)
    reader.run(ordered.line)
    dialog = browser.find_element(By.ID, "confirm")

    def press() -> bool:
        retries()[0].click()
        return True

    while left := len(retries()):
        wait(browser, press)
        wait(browser, lambda: dialog.get_attribute("open") is not None)
        dialog.find_element(By.CSS_SELECTOR, "button[value=yes]").click()
        wait(browser, lambda left=left: len(retries()) < left)  # type: ignore[misc]
    browser.get(f"{site}/board/kitchen")
    wait(browser, lambda: board() == (["2: soup", "3: stew"], "2"))
    browser.get("about:blank")
