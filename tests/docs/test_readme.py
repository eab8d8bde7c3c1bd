"""The README's example runs as it stands."""

from __future__ import annotations

import re
import sys
from collections.abc import Iterator
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest

README = (Path(__file__).parents[2] / "README.md").read_text()


@pytest.fixture
def example(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Any]:
    """The module of the README's Python block, in an empty directory."""
    monkeypatch.chdir(tmp_path)
    [source] = re.findall(r"```python\n(.*?)```", README, re.DOTALL)
    module = ModuleType("shop")
    monkeypatch.setitem(sys.modules, "shop", module)
    exec(compile(source, "README.md", "exec", dont_inherit=True), vars(module))
    yield module
    module.__dict__["keyfold"].system.close()


def test_the_example_counts_up_and_serves_its_snapshot(example: Any) -> None:
    """Two requests, versions 1 and 2, and the snapshot over HTTP."""
    client = example.create_app().test_client()
    assert [client.post("/adjust").json["version"] for _ in range(2)] == [1, 2]
    snapshot = client.get("/projection/inventory.warehouse/north").json
    assert (snapshot["version"], snapshot["state"]) == (2, {"totals": {"apple": 6}})


def test_it_is_short() -> None:
    """A newcomer reads it in a few minutes."""
    assert len(README.splitlines()) <= 150


@pytest.mark.parametrize("page", ["README.md", "CONTRIBUTING.md", "SECURITY.md"])
def test_the_links_of_the_pages_beside_the_docs_lead_somewhere(page: str) -> None:
    """mkdocs checks the links between the docs, and does not see these pages."""
    root = Path(__file__).parents[2]
    for target in re.findall(r"\]\(([^)#:]+)(?:#[^)]*)?\)", (root / page).read_text()):
        assert (root / target).exists(), target
