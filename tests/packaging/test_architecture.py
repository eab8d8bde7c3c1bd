"""The house: which folder imports which, how many modules a room holds, and which modules lie in circles."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("actors", "store", "web")
MODULES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))
FOLDERS = sorted({path.parent for path in MODULES})
BY_NAME = {
    ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path for path in MODULES
}

MAX_MODULES = 16
MAX_SIBLINGS = 12
MAX_ATTRIBUTES = 12

ARROWS: dict[str, set[str]] = {
    "actors": {"actors/key_actor", "actors/pool", "actors/upkeep", "store", "store/writing"},
    "actors/key_actor": {"actors", "actors/pool", "actors/upkeep", "store", "store/writing"},
    "actors/pool": {"actors"},
    "actors/upkeep": {"actors", "actors/key_actor", "actors/pool", "store", "store/writing"},
    "store": {"store/connect", "store/dialects", "store/schema", "store/writing"},
    "store/connect": {"store", "store/dialects"},
    "store/dialects": {"store", "store/connect", "store/writing"},
    "store/schema": {"store", "store/connect", "store/dialects"},
    "store/writing": {"store"},
    "web": {
        "actors",
        "store",
        "web/access",
        "web/cli",
        "web/live",
        "web/live/channels",
        "web/live/connections",
        "web/live/protocol",
        "web/operator",
    },
    "web/access": {"actors", "web", "web/live", "web/live/connections"},
    "web/cli": {"actors", "store", "web", "web/live/protocol", "web/operator"},
    "web/live": {
        "actors",
        "actors/pool",
        "store",
        "web/live/backplane",
        "web/live/channels",
        "web/live/connections",
        "web/live/protocol",
    },
    "web/live/backplane": {
        "actors",
        "actors/pool",
        "store",
        "web/live",
        "web/live/channels",
        "web/live/protocol",
    },
    "web/live/channels": {
        "actors",
        "store",
        "web/live",
        "web/live/backplane",
        "web/live/connections",
        "web/live/protocol",
    },
    "web/live/connections": {
        "actors",
        "actors/pool",
        "store",
        "web/live",
        "web/live/channels",
        "web/live/protocol",
    },
    "web/live/protocol": {"store"},
    "web/operator": {"actors", "store", "web", "web/access", "web/live", "web/live/protocol"},
}
"""Each folder with the folders whose modules it imports, type-only imports included."""

CIRCLES: dict[frozenset[str], str] = {
    frozenset(
        {
            "actors/dead_letters.py",
            "actors/engine.py",
            "actors/event_bus.py",
            "actors/runtime.py",
            "actors/system.py",
            "actors/upkeep/reporter.py",
        }
    ): "The objects of one system, which know the system that they belong to.",
    frozenset(
        {
            "actors/key_actor/actor.py",
            "actors/key_actor/actor_context.py",
            "actors/key_actor/commands.py",
            "actors/key_actor/dead_lettering.py",
            "actors/key_actor/population.py",
            "actors/upkeep/sweeper.py",
        }
    ): "The state machine of a key, and its parts: commands and letters act on the actor.",
    frozenset(
        {
            "actors/pool/dispatcher.py",
            "actors/pool/mailbox.py",
            "actors/pool/pooled_actor.py",
        }
    ): "Pykka's actor, its mailbox and its dispatcher: each calls one method of the next.",
    frozenset(
        {
            "web/live/backplane/cross_process_sync.py",
            "web/live/channels/channel.py",
            "web/live/channels/channels.py",
            "web/live/connections/checks.py",
            "web/live/connections/connection.py",
            "web/live/connections/connections.py",
            "web/live/connections/send_buffer.py",
            "web/live/connections/subscription.py",
            "web/live/hub.py",
            "web/live/row_reader.py",
        }
    ): "The state machine of a subscription, split by subject: channel, connection and hub act on it.",
}
"""Modules that import one another in a circle, for type annotations alone, with the reason."""


def imports_of(path: Path, *, at_run_time: bool = False) -> Iterator[tuple[str, str]]:
    """Yield each import of a module as (dotted module, name), relative ones written out below keyfold.

    Args:
        path: The file.
        at_run_time: Leave out imports that only type checkers see, and those inside functions.
    """
    package = path.relative_to(ROOT).parent.parts
    for node in _statements(ast.parse(path.read_text()), at_run_time=at_run_time):
        if isinstance(node, ast.Import):
            yield from ((alias.name.removeprefix("keyfold."), "") for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = package[: len(package) - node.level + 1] if node.level else ()
            module = ".".join([*base, *([node.module] if node.module else [])]).removeprefix("keyfold.")
            yield from ((module, alias.name) for alias in node.names)


def _statements(tree: ast.AST, *, at_run_time: bool) -> Iterator[ast.AST]:
    for node in ast.iter_child_nodes(tree):
        if at_run_time and isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        if at_run_time and isinstance(node, ast.If) and "TYPE_CHECKING" in ast.dump(node.test):
            continue
        yield node
        yield from _statements(node, at_run_time=at_run_time)


def siblings_of(path: Path, *, at_run_time: bool = False) -> set[Path]:
    """Return the modules of Keyfold that a module imports."""
    found = {
        BY_NAME.get(f"{module}.{name}") or BY_NAME.get(module)
        for module, name in imports_of(path, at_run_time=at_run_time)
    }
    return {sibling for sibling in found if sibling is not None} - {path}


def name_of(path: Path) -> str:
    """Return a path below the repository, as the tables of this file write it."""
    return str(path.relative_to(ROOT))


def circles(*, at_run_time: bool) -> set[frozenset[str]]:
    """Return the sets of modules in which each reaches every other by imports."""
    arrows = {path: siblings_of(path, at_run_time=at_run_time) for path in MODULES}
    reach: dict[Path, set[Path]] = {}
    for start in MODULES:
        seen: set[Path] = set()
        waiting = [start]
        while waiting:
            for target in arrows[waiting.pop()] - seen:
                seen.add(target)
                waiting.append(target)
        reach[start] = seen
    return {
        frozenset(name_of(other) for other in reach[path] if path in reach[other])
        for path in MODULES
        if path in reach[path]
    }


def test_every_arrow_between_two_folders_is_drawn_here() -> None:
    """A new arrow is a decision, and one that is gone is struck off."""
    found: dict[str, set[str]] = {}
    for path in MODULES:
        for sibling in siblings_of(path):
            if sibling.parent != path.parent:
                found.setdefault(name_of(path.parent), set()).add(name_of(sibling.parent))
    assert found == ARROWS


def test_arrows_between_the_parts_point_one_way() -> None:
    """web → actors → store."""
    order = {"store": 0, "actors": 1, "web": 2}
    for folder, targets in ARROWS.items():
        for target in targets:
            assert order[target.split("/")[0]] <= order[folder.split("/")[0]], f"{folder} → {target}"


def test_web_live_stands_by_itself() -> None:
    """It imports nothing from the rest of web."""
    for folder, targets in ARROWS.items():
        if f"{folder}/".startswith("web/live/"):
            outside = {t for t in targets if t.startswith("web") and not f"{t}/".startswith("web/live/")}
            assert not outside, folder


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_each_part_knows_only_the_libraries_that_are_its_own(path: Path) -> None:
    """No actor knows Flask, the store knows no Pykka actor's thread pool, and web/live no web framework."""
    name = name_of(path)
    foreign: tuple[str, ...] = {
        "store": ("flask", "werkzeug", "click", "simple_websocket", "wsproto"),
        "actors": ("flask", "werkzeug", "click", "simple_websocket", "wsproto", "psycopg2"),
        "web": ("pykka", "psycopg2"),
    }[name.split("/")[0]]
    if name.startswith("web/live/"):
        foreign += ("flask", "werkzeug", "click", "itsdangerous")
    wrong = {module for module, _ in imports_of(path) if module.split(".")[0] in foreign}
    assert not wrong


@pytest.mark.parametrize("folder", FOLDERS, ids=name_of)
def test_a_room_can_be_taken_in_at_a_glance(folder: Path) -> None:
    """A folder holds 16 modules at most."""
    assert len([path for path in folder.glob("*.py") if path.name != "__init__.py"]) <= MAX_MODULES


def test_no_circle_at_run_time() -> None:
    """Modules can be imported in any order."""
    assert circles(at_run_time=True) == set()


def test_circles_of_annotations_are_explained_here() -> None:
    """Modules that name each other's types belong together; which ones, and why, stands above."""
    assert circles(at_run_time=False) == set(CIRCLES)


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_module_that_knows_many_says_why(path: Path) -> None:
    """In its docstring: ``It imports …, as …``."""
    if len(siblings_of(path)) > MAX_SIBLINGS and path.name != "__init__.py":
        docstring = " ".join((ast.get_docstring(ast.parse(path.read_text())) or "").split())
        assert re.search(r"\bimports (a|most)\b", docstring), len(siblings_of(path))


@pytest.mark.parametrize("path", MODULES, ids=name_of)
def test_a_class_with_many_attributes_says_why(path: Path) -> None:
    """In its docstring: ``It has many attributes`` or ``more than twelve attributes``, and the reason."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.ClassDef):
            docstring = " ".join((ast.get_docstring(node) or "").split())
            attributes = _attributes(node)
            said = re.search(r"(many|more than (twelve|12)) attributes", docstring)
            assert len(attributes) <= MAX_ATTRIBUTES or said, f"{node.name}: {len(attributes)}"


def _attributes(node: ast.ClassDef) -> set[str]:
    """Return the names that the methods of a class assign on self."""
    return {
        target.attr
        for part in ast.walk(node)
        if isinstance(part, ast.Assign | ast.AnnAssign)
        for whole in (part.targets if isinstance(part, ast.Assign) else [part.target])
        for target in ast.walk(whole)
        if isinstance(target, ast.Attribute)
        and isinstance(target.ctx, ast.Store)
        and isinstance(target.value, ast.Name)
        and target.value.id == "self"
    }
