"""The checks that the operator's actions make of their bodies."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionSystem
from keyfold.web.operator.actions import ACTIONS
from support.counting import Added
from support.parking import DEADLINE
from werkzeug.exceptions import BadRequest, Conflict


@pytest.mark.parametrize(
    ("action", "body", "message"),
    [
        ("retry", {}, "letter must be a number"),
        ("retry", {"letter": True}, "letter must be a number"),
        ("skip", {"letter": "7"}, "letter must be a number"),
        ("skip", {"letter": 7, "position": 1}, "position must be a string"),
        ("skip", {"letter": 7, "position": "x"}, "a position is 'epoch:version', not 'x'"),
        ("resume", {}, "key must be a string"),
        ("repair", {"key": "pen", "state": {}}, "state must be a string"),
    ],
)
def test_a_malformed_body_names_its_field(
    system: ProjectionSystem, action: str, body: dict[str, Any], message: str
) -> None:
    """True is no number, although Python counts it as one."""
    with pytest.raises(BadRequest) as refused:
        ACTIONS[action](system.runtime("test.totals"), body)
    assert refused.value.description == message


def test_a_projection_without_a_history_is_not_rebuilt(system: ProjectionSystem) -> None:
    """The refusal names the command that takes a file, and the state stays."""
    runtime = system.runtime("test.totals")
    runtime.apply_event(Added("pen", 3), DEADLINE)
    with pytest.raises(Conflict, match="flask keyfold rebuild takes a file"):
        ACTIONS["rebuild"](runtime, {"key": "pen"})
    snapshot = runtime.snapshot("pen")
    assert snapshot is not None
    assert snapshot.state.total == 3


def test_a_client_is_dropped_only_by_its_own_process(app: Flask, system: ProjectionSystem) -> None:
    """Numbers of clients are those of one process, so the same number is a stranger in another process."""
    runtime = system.runtime("test.totals")
    with app.app_context():
        with pytest.raises(Conflict, match="another process"):
            ACTIONS["drop"](runtime, {"process": "other", "client": 1})
        with pytest.raises(Conflict, match="gone already"):
            ACTIONS["drop"](runtime, {"process": system.reporter.process, "client": 1})
