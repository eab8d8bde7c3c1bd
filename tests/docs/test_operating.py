"""docs/operating.md names every metric, action and command that there is; docs/testing.md runs."""

from __future__ import annotations

import re
from pathlib import Path
from types import ModuleType
from typing import Any

import click
from keyfold.web.cli.commands import make_cli
from keyfold.web.operator.actions import ACTIONS
from keyfold.web.operator.metrics import Metrics

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "operating.md").read_text()
README = (DOCS.parent / "README.md").read_text()


def test_every_metric_is_listed() -> None:
    """By the name that a scrape shows."""
    metrics = Metrics()
    names = {
        f"{family.name}_total" if family.type == "counter" else family.name
        for family in metrics._registry.collect()
    }
    assert len(names) > 20
    for name in names:
        assert f"`{name}`" in PAGE, name


def test_every_action_and_command_is_listed() -> None:
    """Each one that an operator can use."""
    for action in ACTIONS:
        assert f"| {action.capitalize()} |" in PAGE
    group: Any = make_cli()
    for name, command in group.commands.items():
        assert f"flask keyfold {name}" in PAGE, name
        for inner in getattr(command, "commands", {}):
            assert inner in PAGE
        if not isinstance(command, click.Group):
            assert any("--json" in option.opts for option in command.params), name


def test_the_examples_about_testing_run() -> None:
    """With the projection of the README."""
    [source] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    module = ModuleType("shop")
    exec(
        compile(source.partition("keyfold = Keyfold()")[0], "README.md", "exec", dont_inherit=True),
        vars(module),
    )
    first, second, *_ = re.findall(r"```python\n(.*?)```", (DOCS / "testing.md").read_text(), re.DOTALL)
    for text in (first, second):
        exec(compile(text, "testing.md", "exec", dont_inherit=True), vars(module))
    module.__dict__["test_stock_is_added_up"]()
    module.__dict__["test_apply"]()
