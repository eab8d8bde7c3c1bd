"""An app around the extension, its hooks and its client, as a user would write them. Checked, never run."""

# pyright: reportUnnecessaryTypeIgnoreComment=error
from __future__ import annotations

from typing import Any, assert_type

from flask import Flask, Request
from keyfold.actors import EventBus, ProjectionError, ProjectionSystem
from keyfold.actors.broadcaster import Committed
from keyfold.store import Position
from keyfold.web import Keyfold, create_app
from keyfold.web.client import Change, Watch


def authorize(request: Request, name: str, key: str) -> bool:
    """Decide whether a request may watch a key."""
    return request.headers.get("X-Team") == key.partition("/")[0] and name.startswith("inventory.")


def authorize_admin(request: Request) -> bool:
    """Decide whether a request comes from an operator."""
    return "operator" in request.cookies


class Audit:
    """An observer: no base class is needed."""

    def applied(self, turn: Committed, seconds: float) -> None:
        """Count commits."""
        assert_type(turn.key, str)
        assert_type(seconds, float)

    def failed(self, error: ProjectionError, event: object) -> None:
        """Count failures."""


keyfold = Keyfold(authorize=authorize, authorize_admin=authorize_admin, observers=[Audit()])
Keyfold(authorize=lambda: True)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def make() -> Flask:
    """Return the app."""
    app = Flask(__name__)
    keyfold.init_app(app)
    assert_type(keyfold.bus, EventBus)
    assert_type(keyfold.system, ProjectionSystem)
    assert_type(keyfold.ticket("inventory.warehouse", "north"), str)
    return app


def mount(system: ProjectionSystem) -> Flask:
    """Mount a system without a Flask app."""
    return create_app(system, authorize=authorize, tuning={"heartbeat_seconds": 10})


def follow() -> None:
    """Read changes."""
    with Watch("http://127.0.0.1:8000", "inventory.warehouse", "north", since=Position("e", 1)) as watch:
        for change in watch:
            assert_type(change, Change)
            assert_type(change.value, Any)
        assert_type(watch.next(timeout=1.0), Change | None)
