"""An operator sees all gunicorn workers, no matter which of them answers."""

from __future__ import annotations

import json
import re
import urllib.request
from collections.abc import Callable
from pathlib import Path
from threading import Event
from time import monotonic
from typing import Any

from support.gunicorns import SHOP, Gunicorn
from support.parking import DEADLINE

BEARER = {"Authorization": "Bearer let-me-see"}
CONFIG = json.dumps({"KEYFOLD_ADMIN_TOKEN": "let-me-see", "KEYFOLD_TUNING": {"report_seconds": 0.05}})


def ask(server: Gunicorn, path: str) -> str:
    """GET on a connection of its own, which any worker may take."""
    request = urllib.request.Request(f"http://127.0.0.1:{server.site.port}{path}", headers=BEARER)
    with urllib.request.urlopen(request, timeout=DEADLINE) as answer:
        text: str = answer.read().decode()
        return text


def until(what: Callable[[], bool]) -> None:
    """Ask again and again, and leave the workers time to report."""
    deadline, tick = monotonic() + DEADLINE, Event()
    while not what():
        assert monotonic() < deadline
        tick.wait(0.02)


def overview(server: Gunicorn) -> dict[str, Any]:
    facts: dict[str, Any] = json.loads(ask(server, "/admin/projections/overview"))
    return facts


def until_both_have_worked(server: Gunicorn) -> int:
    """Post until each worker has committed something, and return how many posts it took."""
    pids, posts = set[int](), 0
    while len(pids) < 2:
        pids.add(json.loads(server.site.post("/add/a"))["pid"])
        posts += 1
        assert posts < 1000
    return posts


def test_every_worker_tells_of_all(database_url: str, tmp_path: Path) -> None:
    """The page and a scrape show the sum; a worker that is gone takes nothing from the counters."""
    metrics = tmp_path / "metrics"
    metrics.mkdir()
    server = Gunicorn(
        tmp_path, "-c", "python:keyfold.web.gunicorn", "--threads", "2", workers=2, source=SHOP,
        DATABASE=database_url, CONFIG=CONFIG, PROMETHEUS_MULTIPROC_DIR=str(metrics),
    )  # fmt: skip
    try:
        posts = until_both_have_worked(server)

        seen: dict[str, list[int]] = {}

        def each_has_seen_both() -> bool:
            facts = overview(server)
            seen[facts["this"]] = [one["projections"]["test.totals"]["events"] for one in facts["processes"]]
            return [sum(events) for events in seen.values() if len(events) == 2] == [posts, posts]

        until(each_has_seen_both)

        def scraped() -> float:
            found = re.search(
                r'keyfold_events_total\{projection="test.totals"\} (\S+)', ask(server, "/keyfold/metrics")
            )
            return float(found[1]) if found else 0

        until(lambda: scraped() >= posts)
        assert scraped() == posts
        assert server.stop() == 0
        kept = sum(1 for file in metrics.glob("counter_*.db"))
        assert kept >= 2
    finally:
        server.remove()
