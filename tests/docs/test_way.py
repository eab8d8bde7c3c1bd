"""docs/way.md names the modules that one event and one handshake pass, in order.

An event is dispatched several times, and a page is opened several times, with a profile function in every
thread. The page has to name each module that ran every time, and none that never ran. Where a thread always
enters one module before another, the page has to name them in this order. Threads work side by side, so two
modules that different threads enter first may be named in either order, unless they always stand far apart.
"""

from __future__ import annotations

import re
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import FrameType

import pytest
from flask import Flask
from keyfold import Keyfold
from support.counting import Added, Totals
from support.parking import DEADLINE
from support.serving import Site, serve

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "way.md").read_text()
ROUNDS = 5
FAR = 12
"""Places between two first calls, on different threads, from which on their order is no accident."""


class Recorder:
    """Notes the modules of Keyfold in the order of their first call, in all threads that start after it."""

    def __init__(self) -> None:
        self.rounds: list[dict[str, tuple[int, int]]] = []
        """Of each round and path: (place of its first call among those of all modules, thread)."""
        self._seen: dict[str, int] | None = None

    def __call__(self, frame: FrameType, event: str, _: object) -> None:
        """Note a call. Called by the interpreter, on every thread that the recorder is installed in."""
        seen = self._seen
        if seen is not None and event == "call":
            name = frame.f_globals.get("__name__", "")
            if name.startswith("keyfold.") and frame.f_code.co_name != "<module>":
                seen.setdefault(name, threading.get_ident())

    @contextmanager
    def record(self) -> Iterator[None]:
        """Record one round."""
        self._seen = {}
        try:
            yield
        finally:
            seen, self._seen = self._seen, None
            self.rounds.append(
                {_path_of(name): (place, thread) for place, (name, thread) in enumerate(seen.items())}
            )

    def always(self) -> set[str]:
        """Return the modules that ran in each round."""
        return set.intersection(*map(set, self.rounds))

    def ever(self) -> set[str]:
        """Return the modules that ran in some round."""
        return set[str]().union(*self.rounds)

    def always_before(self, one: str, other: str) -> bool:
        """Whether ``one`` came first in each round: on the same thread, or else by far."""

        def before(seen: dict[str, tuple[int, int]]) -> bool:
            if one not in seen or other not in seen:
                return False
            (place, thread), (later, other_thread) = seen[one], seen[other]
            return place < later if thread == other_thread else place + FAR < later

        return all(map(before, self.rounds))

    def listed(self) -> list[str]:
        """Return the modules that ran in each round, by the median place of their first call."""

        def place(path: str) -> int:
            return sorted(seen[path][0] for seen in self.rounds)[len(self.rounds) // 2]

        return sorted(self.always(), key=place)


def _path_of(name: str) -> str:
    module = sys.modules[name]
    path = name.removeprefix("keyfold.").replace(".", "/")
    return f"{path}/__init__.py" if hasattr(module, "__path__") else f"{path}.py"


@pytest.fixture
def recorder() -> Iterator[Recorder]:
    """A recorder, installed before any thread of the system starts; an earlier profiler comes back."""
    recorder = Recorder()
    before, before_in_threads = sys.getprofile(), threading.getprofile()
    threading.setprofile(recorder)
    sys.setprofile(recorder)
    yield recorder
    sys.setprofile(before)
    threading.setprofile(before_in_threads)


@pytest.fixture
def served(recorder: Recorder, sqlite_url: str) -> Iterator[tuple[Keyfold, Flask, Site]]:
    """A served app whose periodic work does not run in the middle of a round."""
    assert not recorder.rounds
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("way")
    app.config.update(
        KEYFOLD_DATABASE=sqlite_url,
        KEYFOLD_IDLE_SECONDS=3600,
        KEYFOLD_TUNING={
            "report_seconds": 0,
            "heartbeat_seconds": 3600,
            "ping_seconds": 3600,
            "silence_seconds": 7200,
        },
    )
    keyfold.init_app(app)
    with serve(app) as site:
        yield keyfold, app, site
        with app.app_context():
            keyfold.system.close()


def _section(heading: str) -> list[tuple[str, str]]:
    """Return (path, sentence) of each step below a heading of the page."""
    _, found, text = PAGE.partition(f"## {heading}\n")
    assert found, heading
    steps = re.findall(r"^\d+\. `([^`]+)`: (.*(?:\n   .*)*)", text.partition("\n## ")[0], re.MULTILINE)
    assert steps, heading
    return steps


def _compare(heading: str, recorder: Recorder) -> None:
    steps = _section(heading)
    named = [path for path, _ in steps]
    wrong = [f"named twice: {path}" for path in set(named) if named.count(path) > 1]
    wrong += [f"runs and is not named: {path}" for path in recorder.listed() if path not in named]
    wrong += [f"is named and never runs: {path}" for path in named if path not in recorder.ever()]
    wrong += [
        f"runs before {earlier}: {later}"
        for place, later in enumerate(named)
        for earlier in named[:place]
        if recorder.always_before(later, earlier)
    ]
    if wrong:
        sentences = dict(steps)
        right = "\n".join(
            f"{number}. `{path}`: {sentences.get(path, 'TODO')}"
            for number, path in enumerate(recorder.listed(), 1)
        )
        pytest.fail("\n".join([*wrong, "", f"docs/way.md should read, below “{heading}”:", "", right]))


def test_each_module_exists() -> None:
    """Under the path that the page writes."""
    for path in re.findall(r"^\d+\. `([^`]+)`:", PAGE, re.MULTILINE):
        assert (ROOT / path).is_file(), path


def test_each_path_of_contributing_exists() -> None:
    """Four questions of a reader have an answer at most four steps away from the root of the tree."""
    page = (ROOT / "CONTRIBUTING.md").read_text()
    for path in re.findall(r"`((?:actors|store|web|front|tests|docs|benchmarks)/[\w/.]*)`", page):
        assert (ROOT / path).exists(), path
    ways = [line.split("|")[2].split("→") for line in page.splitlines() if "→" in line]
    assert len(ways) == 4
    assert all(len(way) <= 4 for way in ways)


def test_the_way_of_an_event(served: tuple[Keyfold, Flask, Site], recorder: Recorder) -> None:
    """From the first event that this process has for a key, to the message that its watcher reads."""
    keyfold, app, site = served
    watchers = []
    with app.app_context():
        for number in range(ROUNDS):
            key = f"key {number}"
            keyfold.system.runtime(Totals.name).rebuild(key, [Added(key)])
            watcher = site.watch(Totals.name, key)
            assert watcher.next()["type"] == "snapshot"
            keyfold.system.settle(DEADLINE)
            bus = keyfold.bus
            with recorder.record():
                receipt = bus.dispatch(Added(key))
                assert watcher.next()["type"] == "delta"
                receipt.result(DEADLINE)
            watchers.append(watcher)  # closed at the end: the end of a connection is not a part of the way
    for watcher in watchers:
        watcher.close()
    _compare("From dispatch to the socket", recorder)


def test_the_way_of_a_subscriber(served: tuple[Keyfold, Flask, Site], recorder: Recorder) -> None:
    """From the handshake to the first snapshot, of a key that nobody has watched yet."""
    keyfold, app, site = served
    with app.app_context():
        for number in range(ROUNDS + 1):
            keyfold.bus.dispatch(Added(f"key {number}")).result(DEADLINE)
        keyfold.system.settle(DEADLINE)
    watchers = [site.watch(Totals.name, f"key {ROUNDS}")]  # starts the threads that the process has once
    assert watchers[0].next()["type"] == "snapshot"
    for number in range(ROUNDS):
        with recorder.record():
            watcher = site.watch(Totals.name, f"key {number}")
            assert watcher.next()["type"] == "snapshot"
        watchers.append(watcher)
    for watcher in watchers:
        watcher.close()
    _compare("From the handshake to the first snapshot", recorder)
