"""The reference has every public name, and each has a docstring with its parameters, results and errors."""

from __future__ import annotations

import importlib
import inspect
import json
import re
from pathlib import Path
from types import FunctionType, ModuleType
from typing import Any

import keyfold
import keyfold.actors
import keyfold.store
import keyfold.web
import pytest
from keyfold.web.operator.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
NAVIGATION = (DOCS.parent / "mkdocs.yml").read_text()
FRONT = (DOCS / "reference" / "keyfold.md").read_text()
DOORS: list[ModuleType] = [keyfold, keyfold.actors, keyfold.store, keyfold.web]
PUBLIC = [(door.__name__, name) for door in DOORS for name in door.__all__ if not name.startswith("__")]
PAGES = {
    "keyfold.actors": "actors",
    "keyfold.actors.testing": "actors",
    "keyfold.actors.tracing": "actors",
    "keyfold.store": "store",
    "keyfold.web": "web",
    "keyfold.web.client": "web",
    "keyfold.web.testing": "web",
    "keyfold.web.signals": "web",
    "keyfold.web.gunicorn": "web",
}
"""Each module that users import from, with its page."""


@pytest.mark.parametrize("module", PAGES)
def test_each_door_has_its_page(module: str) -> None:
    """The module exists, its page asks mkdocstrings for it, and the page is in the navigation."""
    if module != "keyfold.actors.tracing":  # which needs OpenTelemetry
        importlib.import_module(module)
    assert f"::: {module}\n" in (DOCS / "reference" / f"{PAGES[module]}.md").read_text()
    assert f"reference/{PAGES[module]}.md\n" in NAVIGATION


def test_the_front_door_comes_first() -> None:
    """A reader meets the names of ``keyfold`` before those of the parts."""
    pages = re.findall(r"reference/(\w+)\.md\n", NAVIGATION)
    assert pages == ["keyfold", "actors", "store", "web"]


@pytest.mark.parametrize("name", [name for name in keyfold.__all__ if not name.startswith("__")])
def test_the_page_of_the_front_door_leads_to_each_name(name: str) -> None:
    """By a link to the entry of the part that it comes from; ``mkdocs build --strict`` checks its target."""
    [part] = re.findall(rf"\[`{name}`\]\[keyfold\.(\w+)\.{name}\]", FRONT)
    assert getattr(importlib.import_module(f"keyfold.{part}"), name) is getattr(keyfold, name)


def test_the_page_of_the_front_door_names_nothing_else() -> None:
    """A name that has left the front door leaves the page."""
    assert set(re.findall(r"^\| \[`(\w+)`\]", FRONT, re.MULTILINE)) <= set(keyfold.__all__)


@pytest.mark.parametrize(("door", "name"), PUBLIC)
def test_every_public_name_is_documented(door: str, name: str) -> None:
    """So are the methods and properties of a class; an override may inherit the docstring of its base."""
    thing = getattr(next(one for one in DOORS if one.__name__ == door), name)
    if not isinstance(thing, (type, FunctionType)):
        return  # a constant is documented by the class that it is an instance of
    assert inspect.getdoc(thing), name
    if not isinstance(thing, type):
        return
    for method, made in vars(thing).items():
        if not method.startswith("_") and isinstance(
            made, (FunctionType, property, classmethod, staticmethod)
        ):
            assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


def _functions() -> dict[str, FunctionType]:
    """Return the public functions and methods of the front door, by their qualified name."""
    found: dict[str, FunctionType] = {}
    for name in keyfold.__all__:
        thing: Any = getattr(keyfold, name)
        if isinstance(thing, FunctionType):
            found[name] = thing
        elif isinstance(thing, type) and not issubclass(thing, Exception):
            for method, made in vars(thing).items():
                if isinstance(made, FunctionType) and not method.startswith("_"):
                    found[f"{name}.{method}"] = made
    return found


@pytest.mark.parametrize("name", _functions())
def test_the_parameters_of_the_front_door_are_described(name: str) -> None:
    """A function with two parameters or more has an ``Args:`` section that names them, and no others."""
    function = _functions()[name]
    parameters = [parameter for parameter in inspect.signature(function).parameters if parameter != "self"]
    docstring = inspect.getdoc(function) or ""
    section = re.search(r"^Args:\n((?: {4}.*\n?|\n)+)", docstring, re.MULTILINE)
    if section is None:
        assert len(parameters) < 2, f"{name} has no Args: section for {parameters}"
        return
    described = re.findall(r"^ {4}\*{0,2}(\w+)(?: \([^)]*\))?:", section.group(1), re.MULTILINE)
    assert described == parameters


def test_every_page_is_in_the_navigation() -> None:
    """None is left where nobody finds it."""
    for file in DOCS.rglob("*.md"):
        assert f"{file.relative_to(DOCS)}\n" in NAVIGATION, file


def test_the_dashboard_asks_for_metrics_that_there_are() -> None:
    """By the names of a scrape."""
    dashboard = json.loads((DOCS / "howto" / "grafana.json").read_text())
    text = json.dumps([panel["targets"] for panel in dashboard["panels"]])
    text += (DOCS / "howto" / "monitoring.md").read_text()
    asked = set(re.findall(r"\bkeyfold_[a-z_]+", text))
    there = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in Metrics()._registry.collect()
    }
    assert len(asked) > 12
    assert asked <= there, asked - there
