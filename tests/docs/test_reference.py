"""The reference has every public name, and each says what it promises."""

from __future__ import annotations

import inspect
import json
import re
from pathlib import Path
from types import FunctionType

import keyfold.actors
import keyfold.store
import keyfold.web
import pytest
from keyfold.web.operator.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
DOORS = [keyfold.actors, keyfold.store, keyfold.web]
PUBLIC = [(door.__name__, name) for door in DOORS for name in door.__all__]


@pytest.mark.parametrize("part", ["actors", "store", "web"])
def test_each_door_has_its_page(part: str) -> None:
    """And the page is in the navigation."""
    assert f"::: keyfold.{part}\n" in (DOCS / "reference" / f"{part}.md").read_text()
    assert f"reference/{part}.md" in (DOCS.parent / "mkdocs.yml").read_text()


@pytest.mark.parametrize(("door", "name"), PUBLIC)
def test_every_public_name_is_documented(door: str, name: str) -> None:
    """So are the methods and properties that a class offers; what overrides may lean on its base."""
    thing = getattr(next(one for one in DOORS if one.__name__ == door), name)
    if not isinstance(thing, (type, FunctionType)):
        return  # a constant, told of by what it is an instance of
    assert inspect.getdoc(thing), name
    if not isinstance(thing, type):
        return
    for method, made in vars(thing).items():
        if not method.startswith("_") and isinstance(
            made, (FunctionType, property, classmethod, staticmethod)
        ):
            assert inspect.getdoc(getattr(thing, method)), f"{name}.{method}"


def test_every_page_is_in_the_navigation() -> None:
    """None is left where nobody finds it."""
    navigation = (DOCS.parent / "mkdocs.yml").read_text()
    for file in DOCS.rglob("*.md"):
        assert f"{file.relative_to(DOCS)}\n" in navigation, file


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
