"""Apps for the tests of the web part."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import Projection, ProjectionSystem
from keyfold.web import Keyfold

from support.counting import Totals
from support.serving import Site, serve


class Private(Totals):
    """The same, but closed."""

    name = "test.private"
    public = False


@pytest.fixture
def make_app(sqlite_url: str) -> Iterator[Callable[..., Flask]]:
    """Make apps with Totals and Private; their systems are closed afterwards."""
    made: list[ProjectionSystem] = []

    def make(*, authorize: Any = None, authorize_admin: Any = None, **config: Any) -> Flask:
        keyfold = Keyfold(authorize=authorize, authorize_admin=authorize_admin)
        projections: list[Projection[Any, Any]] = [Totals(), Private()]
        for projection in projections:
            keyfold.register(projection)
        app = Flask("test")
        app.config.update({"KEYFOLD_DATABASE": sqlite_url, **config})
        keyfold.init_app(app)
        made.append(app.extensions["keyfold"].system)
        return app

    yield make
    for system in made:
        system.close()


@pytest.fixture
def app(make_app: Callable[..., Flask]) -> Flask:
    """An app with default settings."""
    return make_app()


@pytest.fixture
def system(app: Flask) -> ProjectionSystem:
    """The system of ``app``."""
    found: ProjectionSystem = app.extensions["keyfold"].system
    return found


@pytest.fixture
def site(app: Flask, system: ProjectionSystem) -> Iterator[Site]:
    """``app``, served. Its system is closed first, so that the sockets end."""
    with serve(app) as site:
        yield site
        system.close()
