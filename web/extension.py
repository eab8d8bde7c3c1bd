"""Keyfold as a Flask extension."""

from __future__ import annotations

import re
import weakref
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, has_app_context

from ..actors import EventBus, NotStarted, Projection, ProjectionSystem
from .access import Access, Authorize, AuthorizeAdmin
from .hub import Hub
from .routes import make_blueprint
from .settings import ConfigError, WebSettings, read_config
from .state import EXTENSION, KeyfoldState

if TYPE_CHECKING:
    from werkzeug.routing import Rule


class Keyfold:
    """Live read models for Flask apps.

    Make one, register the projections, and call ``init_app`` on each app: it reads the ``KEYFOLD_…``
    config, gives the app a ProjectionSystem of its own and adds the routes. Nothing is readable
    unless its projection is ``public`` or ``authorize(request, name, key)`` returns True; the admin
    endpoints need ``authorize_admin(request)`` or the token of ``KEYFOLD_ADMIN_TOKEN``.
    """

    def __init__(
        self, *, authorize: Authorize | None = None, authorize_admin: AuthorizeAdmin | None = None
    ) -> None:
        self._authorize = authorize
        self._authorize_admin = authorize_admin
        self._projections: list[Projection[Any, Any]] = []
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()

    def register(self, projection: Projection[Any, Any]) -> None:
        """Run this projection in every app, those initialised already and those to come.

        Raises AlreadyRegistered for a name that is taken, InvalidProjection for a class that can't run.
        """
        for app in self._apps:
            _state(app).system.register(projection)
        self._projections.append(projection)

    def init_app(self, app: Flask) -> None:
        """Set app up. Starts no thread and connects to nothing: the first dispatch or read does.

        Raises ConfigError that names the config key, RuntimeError for a second call or a route of the
        app's own that would be shadowed.
        """
        if EXTENSION in app.extensions:
            msg = "this app has Keyfold already: call init_app once for each app"
            raise RuntimeError(msg)
        database, keywords, settings = read_config(app.config)
        hub = Hub(settings)
        system = ProjectionSystem(database, broadcaster=hub, **keywords)
        for projection in self._projections:
            system.register(projection)
        access = Access(system, settings, self._authorize, self._authorize_admin)
        attach(app, KeyfoldState(system, hub, access, settings))
        self._apps.add(app)

    @property
    def system(self) -> ProjectionSystem:
        """The ProjectionSystem of the current app; without an app context, of the only app there is.

        Raises NotStarted if that is no app, or several.
        """
        if has_app_context() and EXTENSION in current_app.extensions:
            return _state(current_app).system
        apps = list(self._apps)
        if len(apps) == 1 and not has_app_context():
            return _state(apps[0]).system
        msg = (
            "call init_app(app) first"
            if not apps or has_app_context()
            else f"{len(apps)} apps use this extension; say which by `with app.app_context():`"
        )
        raise NotStarted(msg)

    @property
    def bus(self) -> EventBus:
        """The EventBus of the current app, as ``system``."""
        return self.system.bus


def create_app(
    system: ProjectionSystem,
    *,
    authorize: Authorize | None = None,
    authorize_admin: AuthorizeAdmin | None = None,
    **settings: Any,
) -> Flask:
    """Return a WSGI app with the routes of one system, to mount under a path of any WSGI host.

    Keywords are those of WebSettings. Call it before the first dispatch: it becomes the system's
    broadcaster. Raises RuntimeError if the system has another one, or has started.
    """
    web_settings = WebSettings(**settings)
    hub = Hub(web_settings)
    system.broadcast_to(hub)
    here = str(Path(__file__).parent)  # said, as Flask can't find the folder of a namespace package by itself
    app = Flask("keyfold.web", root_path=here, instance_path=here, static_folder=None)
    access = Access(system, web_settings, authorize, authorize_admin)
    attach(app, KeyfoldState(system, hub, access, web_settings))
    return app


def attach(app: Flask, state: KeyfoldState) -> None:
    """Give app the routes and what they work on. Raises ConfigError if they collide with the app's own."""
    app.extensions[EXTENSION] = state
    app.register_blueprint(make_blueprint(state.settings))
    _check_collisions(app)
    checked = False

    def check_once() -> None:
        # Routes that the app adds after init_app: Flask takes none after the first request.
        nonlocal checked
        if not checked:
            _check_collisions(app)
            checked = True

    app.before_request(check_once)


def _check_collisions(app: Flask) -> None:
    ours: dict[str, Rule] = {}
    others: dict[str, Rule] = {}
    for rule in app.url_map.iter_rules():
        side = ours if rule.endpoint.startswith("keyfold.") else others
        side[re.sub(r"<[^>]*>", "<>", rule.rule)] = rule
    for shape in ours.keys() & others.keys():
        msg = (
            f"the app's route {others[shape].rule!r} ({others[shape].endpoint}) and Keyfold's "
            f"{ours[shape].rule!r} ({ours[shape].endpoint}) are the same URL; set KEYFOLD_URL_PREFIX"
        )
        raise ConfigError(msg)


def _state(app: Flask) -> KeyfoldState:
    kept: KeyfoldState = app.extensions[EXTENSION]
    return kept
