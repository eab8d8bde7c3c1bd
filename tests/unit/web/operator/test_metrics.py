"""Stats as metrics of Prometheus."""

from __future__ import annotations

import copy
from typing import Any

import pytest
from keyfold.actors import ProjectionSystem
from keyfold.web.operator.metrics import Metrics
from prometheus_client.parser import text_string_to_metric_families
from support.counting import Added
from support.parking import DEADLINE


def samples(metrics: Metrics) -> dict[tuple[str, str], float]:
    """Return the values by name and projection."""
    families = text_string_to_metric_families(metrics.text().decode())
    found = [sample for family in families for sample in family.samples]
    return {(one.name, one.labels.get("projection", "")): one.value for one in found}


@pytest.fixture
def stats(system: ProjectionSystem) -> dict[str, Any]:
    """The stats of a system that has committed one event."""
    system.runtime("test.totals").apply_event(Added("a"), DEADLINE)
    return system.stats()


def test_a_counter_grows_by_the_difference_and_a_gauge_is_set(stats: dict[str, Any]) -> None:
    """The same stats twice change nothing; older ones change no counter."""
    metrics, newer = Metrics(), copy.deepcopy(stats)
    newer["projections"]["test.totals"] |= {"events": 5, "live": 0}
    for given, events, live in ((stats, 1, 1), (stats, 1, 1), (newer, 5, 0), (stats, 5, 1), (newer, 5, 0)):
        metrics.mirror(given)
        found = samples(metrics)
        assert found["keyfold_events_total", "test.totals"] == events
        assert found["keyfold_actors_live", "test.totals"] == live


def test_the_parts_that_an_app_may_lack_are_zero(stats: dict[str, Any]) -> None:
    """No hub, and a writer that has not started."""
    metrics = Metrics()
    metrics.mirror({**stats, "writer": {}, "sockets": {}})
    found = samples(metrics)
    for name in ("keyfold_sockets_open", "keyfold_sockets_opened_total", "keyfold_writer_rows_total"):
        assert found[name, ""] == 0


def test_a_redis_that_is_away_is_not_connected(stats: dict[str, Any]) -> None:
    """And the messages that wait for it are shown."""
    backplane = {
        "published": 7,
        "received": 9,
        "dropped": 1,
        "reconnects": 2,
        "waiting": 3,
        "trouble": "refused",
    }
    metrics = Metrics()
    metrics.mirror({**stats, "sockets": {**stats["sockets"], "backplane": backplane}})
    found = samples(metrics)
    assert (found["keyfold_backplane_connected", ""], found["keyfold_backplane_waiting", ""]) == (0, 3)
    metrics.mirror({**stats, "sockets": {**stats["sockets"], "backplane": {**backplane, "trouble": None}}})
    assert samples(metrics)["keyfold_backplane_connected", ""] == 1
    assert samples(metrics)["keyfold_backplane_dropped_total", ""] == 1
