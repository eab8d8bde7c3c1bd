"""The answers of the probes."""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web.operator import health as health_module
from keyfold.web.operator.health import Health


class Counting:
    """The system, except that a test answers the queries of the probes, and counts them."""

    def __init__(self, system: ProjectionSystem) -> None:
        self._system = system
        self.asked: list[Future[Any]] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._system, name)

    def submit(self, _query: Callable[[], Any]) -> Future[Any]:
        self.asked.append(Future())
        return self.asked[-1]


@pytest.fixture
def counting(system: ProjectionSystem) -> Counting:
    """The system of ``app``, with queries that a test answers."""
    return Counting(system)


@pytest.fixture
def health(counting: Counting) -> Health:
    """The health of ``counting``."""
    return Health(counting)  # type: ignore[arg-type]


def test_a_healthy_process_has_no_failing_part(app: Flask) -> None:
    """Neither dead nor degraded, before the first event."""
    health: Health = app.extensions["keyfold"].health
    assert (health.alive(), health.ready(), health.degraded()) == ({}, {}, {})


def test_many_probes_ask_the_database_once_per_second(
    counting: Counting, health: Health, monkeypatch: pytest.MonkeyPatch
) -> None:
    """And never while an answer is due, however old the question is."""
    now = 1000.0
    monkeypatch.setattr(health_module, "monotonic", lambda: now)
    monkeypatch.setattr(health_module, "_ANSWER_SECONDS", 0)
    for _ in range(3):
        assert "has not answered within" in health.ready()["database"]
        now += 10
    assert len(counting.asked) == 1
    counting.asked[0].set_result([])
    now = 1000.9
    assert health.ready() == {}
    assert len(counting.asked) == 1
    now = 1001.1
    assert "database" in health.ready()
    assert len(counting.asked) == 2


def test_an_error_names_the_part_and_nothing_of_its_text(counting: Counting, health: Health) -> None:
    """Probes need no token, and the text of a driver's error may name hosts and users."""
    asked = health._pending()
    asked.set_exception(OSError("secret.example refused kim"))
    assert health.ready() == {"database": "can't be reached"}
    assert counting.asked == [asked]


def test_pending_migrations_are_counted(health: Health) -> None:
    """Their names are no business of a probe."""
    health._pending().set_result(["0001_rows", "0002_more"])
    assert health.ready() == {"migrations": "2 are pending: run flask keyfold migrate"}


def test_a_closed_system_asks_nothing(system: ProjectionSystem, counting: Counting, health: Health) -> None:
    """It is not ready, whatever its database says."""
    system.close()
    assert health.ready() == {"system": "is closed"}
    assert counting.asked == []


def test_a_forked_child_asks_its_own_question(counting: Counting, health: Health) -> None:
    """The parent's answer would never arrive in the child, and its lock may be held."""
    health._pending()
    with health._lock:
        health.after_fork()
        health._pending()
    assert len(counting.asked) == 2
