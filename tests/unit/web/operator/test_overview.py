"""The data of the operator's page."""

from __future__ import annotations

import json
from typing import Any

import msgspec
import pytest
from flask import Flask
from keyfold.actors import InvalidKey, ProjectionSystem
from keyfold.web.operator.overview import Overview, degraded_in
from support.counting import Added
from support.damage import damage
from support.parking import DEADLINE


@pytest.fixture
def overview(app: Flask) -> Overview:
    """The overview of ``app``."""
    found: Overview = app.extensions["keyfold"].overview
    return found


def test_each_row_is_a_newer_version_of_all_stats(system: ProjectionSystem, overview: Overview) -> None:
    """The channel sends it as it sends a row of the database, though it is never saved."""
    system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    first, second = overview.row(), overview.row()
    assert (first.epoch, first.version + 1) == (second.epoch, second.version)
    stats = json.loads(second.state)
    assert stats["this"] == system.reporter.process == stats["processes"][0]["process"]
    assert stats["processes"][0]["projections"]["test.totals"]["events"] == 1
    assert (stats["trouble"], set(stats["on_error"])) == (None, {"test.totals", "test.private"})


def test_the_details_of_a_key(system: ProjectionSystem, overview: Overview) -> None:
    """Its state is embedded as it is; a key without a row is None."""
    runtime = system.runtime("test.totals")
    for amount in (1, 2):
        runtime.apply_event(Added("a", amount), DEADLINE)
    detail = json.loads(msgspec.json.encode(overview.detail(runtime, "a")))
    assert detail["busiest"] == [{"key": "a", "events": 2}]
    assert (detail["key"]["state"], detail["key"]["version"]) == ({"total": 3, "amounts": [1, 2]}, 2)
    assert (detail["degraded"], detail["degraded_keys"], detail["halted"], detail["clients"]) == (
        0,
        [],
        [],
        [],
    )
    assert overview.detail(runtime, "b")["key"] is None
    assert "key" not in overview.detail(runtime, None)
    with pytest.raises(InvalidKey):
        overview.detail(runtime, "")


def test_a_row_that_is_not_json_is_shown_raw_and_not_embedded(
    system: ProjectionSystem, overview: Overview
) -> None:
    """SQLite stores any text. Within the details it would make the whole answer unreadable."""
    runtime = system.runtime("test.totals")
    runtime.apply_event(Added("a"), DEADLINE)
    damage(system, "a", "{'total': 3")
    assert overview.raw(runtime, "a")["raw"] == "{'total': 3"
    key = json.loads(msgspec.json.encode(overview.detail(runtime, "a")))["key"]
    assert (key["state"], key["bytes"], bool(key["error"])) == (None, 11, True)
    assert overview.raw(runtime, "b") == {"position": None, "raw": None}


def test_degraded_keys_of_several_processes_are_counted_once() -> None:
    """A process of an older release does not report them; one that knows many names 20."""

    def process(count: int, *keys: str) -> Any:
        stats = {"degraded": count, "degraded_keys": dict.fromkeys(keys, "error")}
        return {"projections": {"shop": stats, "quiet": {"degraded": 0, "degraded_keys": {}}}}

    old = {"projections": {"shop": {"live": 1}}}
    assert degraded_in([old, process(0)]) == {}
    both = degraded_in([old, process(2, "a", "b"), process(2, "b", "c")])
    assert both == {"shop": {"degraded": 3, "degraded_keys": dict.fromkeys("abc", "error")}}
    assert degraded_in([process(90, "a"), process(1, "b")])["shop"]["degraded"] == 90
