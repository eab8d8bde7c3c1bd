"""``flask keyfold …`` as an operator and a script use it, on a real database."""

from __future__ import annotations

import json
import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from click.testing import Result
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem, StoreError
from keyfold.store.operator_queries import Queries
from keyfold.store.processes import Processes
from keyfold.web import Keyfold
from support.damage import damage
from support.parking import DEADLINE
from support.postgres import PostgresServer
from support.serving import serve
from support.tcp_proxy import TcpProxy


@dataclass
class Sold:
    """Some pieces of an article were sold."""

    article: str
    count: int


@dataclass
class Returned:
    """Some pieces were returned."""

    article: str
    count: int


@dataclass
class Sales:
    """The pieces sold, minus the returned ones."""

    count: int = 0
    steps: list[int] = field(default_factory=list)


class Shop(Projection[Sold | Returned, Sales]):
    """Refuses the counts in ``refused``."""

    name = "shop.sales"
    public = True
    refused: set[int]

    def __init__(self) -> None:
        self.refused = set()

    def key(self, event: Sold | Returned) -> str:
        return event.article

    def apply(self, state: Sales, event: Sold | Returned) -> dict[str, int]:
        if event.count in self.refused:
            msg = f"{event.count} is refused"
            raise ValueError(msg)
        change = event.count if isinstance(event, Sold) else -event.count
        state.count += change
        state.steps.append(change)
        return {"count": state.count}


class Ledger(Shop):
    """The same, but its keys halt."""

    name = "shop.ledger"
    on_error = "halt"


class Simple(Projection[Sold, Sales]):
    """A projection with one kind of event, and a history."""

    name = "shop.simple"

    def key(self, event: Sold) -> str:
        return event.article

    def apply(self, state: Sales, event: Sold) -> int:
        state.count += event.count
        return state.count

    def history(self, key: str) -> list[Sold] | None:
        return [Sold(key, 1), Sold(key, 2)] if key == "known" else None


class Terminal:
    """An app and its commands."""

    def __init__(self, url: str, **config: Any) -> None:
        self._config = {"KEYFOLD_DATABASE": url, **config}
        self.shop, self.ledger = Shop(), Ledger()
        self.start()

    def start(self) -> None:
        """Start as a new process, which has loaded no key."""
        keyfold = Keyfold()
        for projection in (self.shop, self.ledger, Simple()):
            keyfold.register(projection)
        self.app = Flask("test")
        self.app.config.update(self._config)
        keyfold.init_app(self.app)
        self.system: ProjectionSystem = self.app.extensions["keyfold"].system

    def run(self, *arguments: str, said: str | None = None) -> Result:
        return self.app.test_cli_runner().invoke(args=["keyfold", *arguments], input=said)

    def json(self, *arguments: str, code: int = 0) -> Any:
        result = self.run(*arguments, "--json")
        assert result.exit_code == code, result.output
        return json.loads(result.stdout)

    def sell(self, *counts: int, name: str = "shop.sales", article: str = "pen") -> None:
        runtime = self.system.runtime(name)
        for receipt in [runtime.accept(Sold(article, count)) for count in counts]:
            receipt.exception(DEADLINE)


def _terminal(url: str) -> Iterator[Terminal]:
    made = Terminal(url)
    yield made
    made.system.close()


@pytest.fixture
def terminal(database_url: str) -> Iterator[Terminal]:
    """An app with three projections."""
    yield from _terminal(database_url)


@pytest.fixture
def sqlite_terminal(sqlite_url: str) -> Iterator[Terminal]:
    """The same on SQLite."""
    yield from _terminal(sqlite_url)


def test_migrate_and_check(terminal: Terminal) -> None:
    """--check changes nothing, and its exit code is for scripts."""
    assert len(terminal.json("migrate", "--check", code=1)["pending"]) == 6
    assert len(terminal.json("migrate")["done"]) == 6
    assert terminal.json("migrate", "--check") == {"pending": []}
    assert terminal.run("migrate").output == "up to date\n"


def test_status(terminal: Terminal) -> None:
    """Exit code 1 while a migration is pending or a key is halted."""
    assert terminal.json("status", code=1)["pending_migrations"]
    terminal.run("migrate")
    assert terminal.run("status").exit_code == 0
    terminal.ledger.refused = {13}
    terminal.sell(1, 13, 2, name="shop.ledger")
    facts = terminal.json("status", code=1)
    assert facts["projections"]["shop.ledger"] == {
        "dead_letters": 2, "parked": 2, "halted": 1, "degraded": 0, "degraded_keys": {},
    }  # fmt: skip
    assert "halted" in terminal.run("status").output


UNLOADABLE = '{"count": "many", "steps": [1]}'


def degrade(terminal: Terminal, state: str = UNLOADABLE, schema: int = 1, key: str = "pen") -> None:
    """Fold two events into a key, and put a state in its row that does not load."""
    terminal.sell(1, 2, article=key)
    terminal.system.close()  # the rest is done by a new process, which has not loaded the key
    terminal.start()
    damage(terminal.system, key, state, name="shop.sales", schema=schema)


def test_status_says_what_another_process_knows_of_degraded_keys(terminal: Terminal) -> None:
    """By count and by key; a new process has loaded no key. Exit code 1 until it is repaired."""
    degrade(terminal)
    other = ProjectionSystem(terminal.app.config["KEYFOLD_DATABASE"], tuning={"report_seconds": 0.01})
    runtime = other.register(Shop())
    with other:
        with pytest.raises(StoreError):
            runtime.read("pen")
        while terminal.run("status").exit_code == 0:
            other.reporter.report()
        facts = terminal.json("status", code=1)["projections"]
        assert list(facts["shop.sales"]["degraded_keys"]) == ["pen"]
        assert "Expected `int`, got `str`" in facts["shop.sales"]["degraded_keys"]["pen"]
        assert facts["shop.ledger"]["degraded"] == 0
        [line] = [line for line in terminal.run("status").output.splitlines() if "shop.sales" in line]
        assert line.split() == ["shop.sales", "degraded", "0", "1", "0", "0"]
        assert (
            terminal.run("repair", "shop.sales", "pen", "--from-json", "-", "--yes", said="{}").exit_code == 0
        )
        while terminal.run("status").exit_code:
            other.reporter.report()  # which looks at the key again


def test_status_says_which_rows_wait(terminal: Terminal) -> None:
    """A locked row delays only itself, and is reported."""
    terminal.run("migrate")
    stats = terminal.system.stats()
    waiting = {"waiting": 3, "waiting_reason": "canceling statement due to lock timeout"}
    report = {**stats, "process": "other", "writer": {**waiting, "trouble": None}}
    Processes(terminal.system.store).report("other", report)
    [process] = terminal.json("status")["processes"]
    assert process["trouble"] == "3 rows wait: canceling statement due to lock timeout"


def test_show_of_a_row_that_does_not_load_names_the_way_back(terminal: Terminal) -> None:
    """In one line, without a traceback; the raw row is printed unchanged."""
    degrade(terminal)
    shown = terminal.run("show", "shop.sales", "pen")
    assert (shown.exit_code, shown.stdout) == (1, "")
    [line] = shown.stderr.splitlines()
    assert "does not decode" in line
    assert "flask keyfold show shop.sales pen --raw" in line
    assert "flask keyfold repair shop.sales pen --from-json FILE" in line
    raw = terminal.run("show", "shop.sales", "pen", "--raw")
    assert (raw.exit_code, json.loads(raw.stdout)) == (0, json.loads(UNLOADABLE))
    facts = terminal.json("show", "shop.sales", "pen", "--raw")
    assert facts["position"].endswith(":2")
    assert json.loads(facts["raw"]) == json.loads(UNLOADABLE)
    missing = terminal.run("show", "shop.sales", "chalk", "--raw")
    assert (missing.exit_code, "has no state" in missing.stderr) == (1, True)
    assert terminal.run("show", "shop.sales", "", "--raw").exit_code == 2


def test_a_row_that_is_no_json_is_shown_and_repaired(sqlite_terminal: Terminal) -> None:
    """SQLite keeps any text that a person has written."""
    terminal = sqlite_terminal
    degrade(terminal, "{'count': 3")
    assert terminal.run("show", "shop.sales", "pen", "--raw").stdout == "{'count': 3\n"
    assert terminal.run("show", "shop.sales", "pen").exit_code == 1
    assert (
        terminal.run(
            "repair", "shop.sales", "pen", "--from-json", "-", "--yes", said='{"count": 3}'
        ).exit_code
        == 0
    )
    assert terminal.json("show", "shop.sales", "pen")["state"] == {"count": 3, "steps": []}


@pytest.mark.parametrize("schema", [1, 2], ids=["of another type", "of a newer schema"])
def test_a_key_is_repaired_from_a_file(terminal: Terminal, tmp_path: Path, schema: int) -> None:
    """The output of --raw, edited. It asks first, keeps the version, and events go on from there."""
    degrade(terminal, schema=schema)
    assert terminal.run("show", "shop.sales", "pen").exit_code == 1
    raw = terminal.run("show", "shop.sales", "pen", "--raw").stdout
    (tmp_path / "state").write_text(raw.replace('"many"', "7"))
    command = ("repair", "shop.sales", "pen", "--from-json", str(tmp_path / "state"))
    assert terminal.run(*command, said="n\n").exit_code == 1
    assert terminal.run("show", "shop.sales", "pen").exit_code == 1
    assert terminal.json(*command, "--yes") == {"key": "pen", "version": 2}
    assert "repaired, at version 2" in terminal.run(*command, said="y\n").stdout
    terminal.sell(5)
    shown = terminal.json("show", "shop.sales", "pen")
    assert (shown["version"], shown["state"]) == (3, {"count": 12, "steps": [1, 5]})


def test_a_repair_that_is_none_changes_nothing(terminal: Terminal, tmp_path: Path) -> None:
    """JSON of another shape is refused; standard input cannot confirm as well."""
    degrade(terminal)
    before = terminal.json("show", "shop.sales", "pen", "--raw")
    (tmp_path / "state").write_text(UNLOADABLE)
    refused = terminal.run("repair", "shop.sales", "pen", "--yes", "--from-json", str(tmp_path / "state"))
    assert (refused.exit_code, "$.count" in refused.stderr) == (1, True)
    assert terminal.run("repair", "shop.sales", "pen", "--from-json", "-", said="{}").exit_code == 2
    assert terminal.run("repair", "shop.sales", "pen", "--from-json", "/no/such/file").exit_code == 2
    assert terminal.run("repair", "shop.sales", "pen", "--yes").exit_code == 2
    assert terminal.json("show", "shop.sales", "pen", "--raw") == before


def test_show_and_keys(terminal: Terminal) -> None:
    """A state in full; keys by prefix, page by page, by size, halted ones."""
    for article in ("pen", "pencil", "ink"):
        terminal.sell(1, 2, article=article)
    shown = terminal.json("show", "shop.sales", "pen")
    assert (shown["version"], shown["state"]) == (2, {"count": 3, "steps": [1, 2]})
    assert '"count": 3' in terminal.run("show", "shop.sales", "pen").output
    missing = terminal.run("show", "shop.sales", "chalk")
    assert (missing.exit_code, missing.stdout) == (1, "")
    assert "has no state" in missing.stderr

    def keys(*options: str) -> list[str]:
        return [fact["key"] for fact in terminal.json("keys", "shop.sales", *options)]

    assert keys() == ["ink", "pen", "pencil"]
    assert keys("--prefix", "pen") == ["pen", "pencil"]
    assert keys("--limit", "1", "--after", "ink") == ["pen"]
    terminal.sell(*range(20), article="pencil")
    assert keys("--largest", "--limit", "1") == ["pencil"]
    terminal.ledger.refused = {13}
    terminal.sell(13, name="shop.ledger", article="chalk")
    assert [fact["key"] for fact in terminal.json("keys", "shop.ledger", "--halted")] == ["chalk"]
    assert "pencil" in terminal.run("keys", "shop.sales").output


def test_rebuild_from_a_file(terminal: Terminal, tmp_path: Path) -> None:
    """Lines of JSON; with several kinds of events, each names its kind."""
    terminal.sell(7)
    lines = [
        {"type": "Sold", "event": {"article": "pen", "count": 5}},
        {"type": "Returned", "event": {"article": "pen", "count": 2}},
    ]
    (tmp_path / "events").write_text("\n".join(map(json.dumps, lines)) + "\n\n")
    command = ("rebuild", "shop.sales", "pen", "--events", str(tmp_path / "events"))
    assert terminal.run(*command, said="n\n").exit_code == 1
    assert terminal.json("show", "shop.sales", "pen")["version"] == 1
    assert terminal.json(*command, "--yes") == {"key": "pen", "version": 2}
    assert terminal.json("show", "shop.sales", "pen")["state"]["steps"] == [5, -2]
    (tmp_path / "simple").write_text('{"article": "pen", "count": 4}\n')
    assert (
        terminal.run("rebuild", "shop.simple", "pen", "--yes", "--events", str(tmp_path / "simple")).exit_code
        == 0
    )
    assert terminal.json("show", "shop.simple", "pen")["state"]["count"] == 4


@pytest.mark.parametrize(
    "line",
    [
        "nonsense",
        '{"type": "Sold"}',
        '{"type": "Gone", "event": {}}',
        "7",
        '{"type": "Sold", "event": {"article": "ink", "count": 1}}',
    ],
)
def test_a_bad_line_changes_nothing(terminal: Terminal, tmp_path: Path, line: str) -> None:
    """It is named, and the key stays as it was."""
    terminal.sell(7)
    (tmp_path / "events").write_text(
        f'{{"type": "Sold", "event": {{"article": "pen", "count": 5}}}}\n{line}\n'
    )
    result = terminal.run("rebuild", "shop.sales", "pen", "--yes", "--events", str(tmp_path / "events"))
    assert result.exit_code == 1
    assert "line 2" in result.stderr or "event 2 of the rebuild" in result.stderr
    assert terminal.json("show", "shop.sales", "pen")["version"] == 1


def test_rebuild_from_history(terminal: Terminal) -> None:
    """Where the projection has one."""
    assert terminal.json("rebuild", "shop.simple", "known", "--yes") == {"key": "known", "version": 2}
    without = terminal.run("rebuild", "shop.sales", "pen", "--yes")
    assert without.exit_code == 2
    assert "--events FILE" in without.stderr


def test_wipe_asks_first(terminal: Terminal) -> None:
    """And a script says --yes."""
    terminal.sell(7)
    assert terminal.run("wipe", "shop.sales", "pen", said="n\n").exit_code == 1
    assert terminal.json("show", "shop.sales", "pen")["version"] == 1
    assert terminal.json("wipe", "shop.sales", "pen", "--yes") == {"key": "pen", "version": 0}
    assert terminal.run("show", "shop.sales", "pen").exit_code == 1


def test_new_epochs(terminal: Terminal) -> None:
    """For a key, a projection, everything; states and versions stay, tombstones count, and events go on."""
    for number in range(1100):
        terminal.system.bus.dispatch(Sold(f"pen {number:04}", 1))
    assert terminal.system.settle(DEADLINE)
    terminal.system.runtime("shop.sales").wipe("pen 0007")
    store = terminal.system.store

    def epochs() -> dict[tuple[str, str], str]:
        found = terminal.system.ask(lambda: Queries(store).epochs(limit=10_000))
        return {(name, key): epoch for name, key, epoch in found}

    first = epochs()
    assert terminal.run("new-epoch", "shop.sales", said="n\n").exit_code == 1
    assert epochs() == first
    assert terminal.json("new-epoch", "shop.sales", "pen 0003", "--yes") == {"drawn": 1}
    second = epochs()
    assert [row_key for row_key in first if first[row_key] != second[row_key]] == [("shop.sales", "pen 0003")]
    assert terminal.json("new-epoch", "shop.sales", "--yes") == {"drawn": 1100}
    third = epochs()
    assert {name for (name, _), epoch in third.items() if epoch not in second.values()} == {"shop.sales"}
    assert terminal.json("new-epoch", "--all", "--yes") == {"drawn": len(first)}
    assert not set(epochs().values()) & set(third.values())
    terminal.sell(6, article="pen 0003")
    shown = terminal.json("show", "shop.sales", "pen 0003")
    assert (shown["version"], shown["state"]["count"]) == (2, 7)


def test_dead_letters(terminal: Terminal) -> None:
    """Listed, retried one by one and all, skipped after a question."""
    terminal.shop.refused = {13, 14, 15}
    terminal.sell(1, 13, 14, 15)
    letters = terminal.json("dead-letters", "list", "--name", "shop.sales", "--key", "pen")
    first, second, third = [letter["id"] for letter in letters]
    assert "13 is refused" in letters[0]["error"]
    assert "13 is refused" in terminal.run("dead-letters", "list").output
    terminal.shop.refused = {14}
    assert terminal.json("dead-letters", "retry", "shop.sales", str(first)) == {
        "folded": [first],
        "failed": {},
    }
    rest = terminal.json("dead-letters", "retry", "shop.sales", "--all", code=1)
    assert rest["folded"] == [third]
    assert "14 is refused" in rest["failed"][str(second)]
    assert terminal.run("dead-letters", "skip", "shop.sales", str(second), said="n\n").exit_code == 1
    assert len(terminal.json("dead-letters", "list")) == 1
    assert terminal.json("dead-letters", "skip", "shop.sales", str(second), "--yes") == {"skipped": second}
    assert terminal.json("dead-letters", "list") == []
    assert terminal.json("show", "shop.sales", "pen")["state"]["steps"] == [1, 13, 15]


def test_a_halted_key(terminal: Terminal) -> None:
    """Resume names the error; skip takes the position; then the key is resumed."""
    terminal.ledger.refused = {13}
    terminal.sell(1, 13, 2, name="shop.ledger")
    refused = terminal.run("resume", "shop.ledger", "pen")
    assert refused.exit_code == 1
    assert "13 is refused" in refused.stderr
    [head, _] = terminal.json("dead-letters", "list", "--parked")
    epoch = terminal.json("show", "shop.ledger", "pen")["epoch"]
    skip = ("dead-letters", "skip", "shop.ledger", str(head["id"]), "--yes", "--position")
    assert terminal.run(*skip, f"{epoch}:9").exit_code == 1
    assert terminal.run(*skip, f"{epoch}:1").exit_code == 0
    assert terminal.json("resume", "shop.ledger", "pen") == {"key": "pen", "folded": 1}


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (("show", "no.such", "a"), 2, "no projection is named 'no.such'"),
        (("dead-letters", "skip", "shop.sales", "9" * 20, "--yes"), 1, f"there is no dead letter {'9' * 20}"),
        (("dead-letters", "retry", "shop.sales", "9" * 20), 1, ""),
        (("show", "shop.sales", ""), 2, "not a valid key"),
        (("show", "shop.sales"), 2, "Missing argument"),
        (("keys", "shop.sales", "--limit", "0"), 2, "0 is not in the range"),
        (("dead-letters", "retry", "shop.sales"), 2, "give the ids, or --all"),
        (("dead-letters", "retry", "shop.sales", "7", "--all"), 2, "give the ids, or --all"),
        (("dead-letters", "retry", "shop.sales", "7"), 1, "no dead letter 7"),
        (("dead-letters", "skip", "shop.sales", "7", "--yes"), 1, "no dead letter 7"),
        (("dead-letters", "skip", "shop.sales", "7", "--yes", "--position", "x"), 1, "a position is"),
        (("resume", "shop.sales", "pen"), 1, "is not halted"),
        (("new-epoch",), 2, "NAME, or NAME and KEY, or --all"),
        (("new-epoch", "shop.sales", "--all"), 2, "NAME, or NAME and KEY, or --all"),
        (("new-epoch", "no.such", "--yes"), 2, "no projection is named 'no.such'"),
        (("new-epoch", "shop.sales", "pen", "--yes"), 1, "has no row"),
        (("rebuild", "shop.sales", "pen", "--events", "/no/such/file"), 2, "No such file"),
    ],
)
def test_bad_arguments(terminal: Terminal, arguments: tuple[str, ...], code: int, message: str) -> None:
    """A distinct exit code for scripts, and one line that names the mistake."""
    result = terminal.run(*arguments)
    assert (result.exit_code, message in result.output) == (code, True), result.output


def test_a_database_that_is_away_is_exit_code_three(tmp_path: Path) -> None:
    """Trying again later is right."""
    terminal = Terminal(f"sqlite:///{tmp_path}/no/such/folder.db")
    for arguments in (("status",), ("show", "shop.simple", "a"), ("migrate",)):
        assert terminal.run(*arguments).exit_code == 3
    terminal.system.close()


def test_a_database_that_does_not_answer_is_exit_code_three(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """Within the limit of the setting; no command that only reads waits forever."""
    url = postgres_server.url_of("postgres", postgres_proxy.port)
    terminal = Terminal(url, KEYFOLD_TUNING={"read_timeout": 0.3})
    terminal.sell(1)
    postgres_proxy.freeze()
    for arguments in (
        ("status",),
        ("migrate", "--check"),
        ("show", "shop.sales", "pen"),
        ("show", "shop.sales", "pen", "--raw"),
        ("dead-letters", "list", "--name", "shop.sales"),
        ("tail", "shop.sales", "pen"),
    ):
        result = terminal.run(*arguments)
        assert (result.exit_code, "has not answered within 0.3 s" in result.stderr) == (3, True), arguments
    postgres_proxy.thaw()
    terminal.system.close()


def test_tail_follows_a_key(terminal: Terminal) -> None:
    """The state first, then each change, over the socket and by reading the row."""
    terminal.sell(1)

    def tail(*options: str) -> list[Any]:
        result = terminal.run("tail", "shop.sales", "pen", "--count", "1", "--json", *options)
        assert result.exit_code == 0, result.output
        return [json.loads(line) for line in result.stdout.splitlines()]

    with serve(terminal.app) as site, ThreadPoolExecutor(2) as pool:
        for options in ((), ("--url", f"http://127.0.0.1:{site.port}")):
            following = pool.submit(tail, *options)
            stop = threading.Event()
            _sell_until(following.done, terminal.sell, stop)
            first, second = following.result(DEADLINE)
            assert first["kind"] == "snapshot"
            assert second["kind"] == ("delta" if options else "snapshot")
            assert second["version"] > first["version"]
        terminal.system.close()


def _sell_until(done: Callable[[], bool], sell: Callable[..., None], stop: threading.Event) -> None:
    while not done():
        sell(1)
        stop.wait(0.02)  # one event every 20 ms
