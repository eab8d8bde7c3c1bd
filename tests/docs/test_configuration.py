"""docs/configuration.md lists every setting and tuning key with its default, each in the right table."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest
from keyfold.actors.settings import CheckedSettings, Settings, SystemTuning, field_names
from keyfold.web.live.settings import LiveTuning
from keyfold.web.settings import WebSettings

DOCS = Path(__file__).parents[2] / "docs"
ROW = re.compile(r"^\| `(\w+)` \| ([^|]+) \|([^|]*)\| ([^|]+) \|$", re.MULTILINE)


def tables() -> list[dict[str, tuple[str, str]]]:
    """Return (default, unit) by name, for each table of the page."""
    parts = (DOCS / "configuration.md").read_text().split("|---|---|---|---|\n")[1:]
    return [
        {name.lower(): (default, unit.strip()) for name, default, unit, _ in ROW.findall(part)}
        for part in parts
    ]


def shown(default: Any) -> str:
    """Return a default as the page shows it."""
    if default in (None, "", ()):
        return "none"
    if isinstance(default, str):
        return f"`{default}`"
    return (
        str(default) if isinstance(default, bool) else f"{default:,g}" if default < 1 else f"{default:,.0f}"
    )


SYSTEM, WEB, SYSTEM_TUNING, WEB_TUNING = tables()


@pytest.mark.parametrize(
    ("table", "owner", "names"),
    [
        (SYSTEM, Settings, field_names(Settings) - field_names(SystemTuning)),
        (WEB, WebSettings, field_names(WebSettings) - field_names(LiveTuning)),
        (SYSTEM_TUNING, Settings, field_names(SystemTuning)),
        (WEB_TUNING, WebSettings, field_names(LiveTuning)),
    ],
    ids=["system", "web", "system tuning", "web tuning"],
)
def test_every_setting_is_listed_with_its_default(
    table: dict[str, tuple[str, str]], owner: type[CheckedSettings], names: frozenset[str]
) -> None:
    """And nothing else is; a number has a unit."""
    assert table.keys() - {"database"} == names
    defaults: dict[str, Any] = {name: getattr(owner(), name) for name in names}
    for name in names:
        default, unit = table[name]
        assert default == shown(defaults[name]), name
        assert unit or isinstance(defaults[name], bool), name


def test_the_database_is_listed_first() -> None:
    assert next(iter(SYSTEM)) == "database"


def test_pages_name_no_old_place_of_a_tuning_key() -> None:
    """But the page that tells of it."""
    old = {f"KEYFOLD_{name.upper()}" for name in field_names(SystemTuning) | field_names(LiveTuning)}
    for page in [*DOCS.rglob("*.md"), DOCS.parent / "README.md"]:
        found = old & set(re.findall(r"KEYFOLD_\w+", page.read_text()))
        assert not found or page.name == "configuration.md", page
