"""Keyfold as a Flask extension."""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

from flask import Flask, current_app, has_app_context

from ..actors import EventBus, NotStarted, Observer, Projection, ProjectionSystem
from .access.admin import AuthorizeAdmin
from .access.read import Access, Authorize, Identify
from .app_registry import EXTENSION, KeyfoldState
from .cli.commands import make_cli
from .live.hub import Hub
from .operator.health import Health
from .operator.overview import OVERVIEW, Overview
from .routes import make_blueprint
from .settings import ConfigError, WebSettings, read_config
from .signals import SignalObserver

if TYPE_CHECKING:
    from werkzeug.routing import Rule

    from .operator.metrics import Metrics


class Keyfold:
    """Live read models for Flask apps.

    Make one, register the projections, and call ``init_app`` on each app: it reads the ``KEYFOLD_…``
    config, gives the app a ProjectionSystem of its own and adds the routes. Nothing is readable
    unless its projection is ``public`` or ``authorize(request, name, key)`` returns True; the admin
    endpoints need ``authorize_admin(request)`` or the token of ``KEYFOLD_ADMIN_TOKEN``.
    ``identify(request)`` names the user behind a connection (None: nobody), for the limit on each
    user's connections and for ``disconnect``. ``observers`` are told what is committed and what fails.
    """

    def __init__(
        self,
        *,
        authorize: Authorize | None = None,
        authorize_admin: AuthorizeAdmin | None = None,
        identify: Identify | None = None,
        observers: Iterable[Observer] = (),
    ) -> None:
        self._observers = tuple(observers)
        self._checks: dict[str, Any] = {
            "authorize": authorize,
            "authorize_admin": authorize_admin,
            "identify": identify,
        }
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
        system = ProjectionSystem(database, **keywords)
        hub = Hub(settings, system)
        system.broadcast_to(hub)
        for projection in self._projections:
            system.register(projection)
        access = Access(hub.sources, settings, **self._checks)
        for observer in self._observers:
            system.observe(observer)
        attach(app, make_state(system, hub, access, settings))
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

    def ticket(self, name: str, key: str, user: str | None = None) -> str:
        """Return a word that opens one key's socket or stream once, as ``?ticket=``, within 30 seconds.

        For clients that can't send the session's cookie. Needs an app context, and ``app.secret_key``.
        It is used up within this process; several worker processes don't know of each other's.
        """
        return _state(current_app).access.ticket(current_app._get_current_object(), name, key, user)  # type: ignore[attr-defined]  # noqa: SLF001

    def disconnect(self, *, user: str) -> int:
        """Close the user's connections to this process with 4401, and return how many there were.

        Who comes back is asked for authorisation again: end the session first. Needs an app context.
        """
        return _state(current_app).hub.disconnect(user)


def create_app(
    system: ProjectionSystem,
    *,
    authorize: Authorize | None = None,
    authorize_admin: AuthorizeAdmin | None = None,
    identify: Identify | None = None,
    **settings: Any,
) -> Flask:
    """Return a WSGI app with the routes of one system, to mount under a path of any WSGI host.

    Keywords are those of WebSettings. Call it before the first dispatch: it becomes the system's
    broadcaster. Raises RuntimeError if the system has another one, or has started.
    """
    web_settings = WebSettings(**settings)
    hub = Hub(web_settings, system)
    system.broadcast_to(hub)
    here = str(Path(__file__).parent)  # said, as Flask can't find the folder of a namespace package by itself
    app = Flask("keyfold.web", root_path=here, instance_path=here, static_folder=None)
    access = Access(
        hub.sources, web_settings, authorize=authorize, authorize_admin=authorize_admin, identify=identify
    )
    attach(app, make_state(system, hub, access, web_settings))
    return app


def make_state(system: ProjectionSystem, hub: Hub, access: Access, settings: WebSettings) -> KeyfoldState:
    """Put together what is kept for one app."""
    made: list[Metrics] = []
    making = threading.Lock()

    def metrics() -> Metrics:
        from .operator.metrics import Metrics  # noqa: PLC0415  # an extra

        with making:  # a report and a scrape may come at once: two of them would count everything twice
            if not made:
                made.append(Metrics())
        return made[0]

    def mirror(stats: dict[str, Any]) -> None:
        # A scrape may reach any worker: each keeps its own file of metrics up to date.
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            metrics().mirror(stats)

    overview, health = Overview(system, hub), Health(system)

    def after_fork() -> None:
        # Its locks, and those of the metrics within it, may be held by threads of the parent; the stats begin anew.
        nonlocal making
        making = threading.Lock()
        made.clear()

    for forked in (health.after_fork, access.after_fork, after_fork):
        system.after_fork(forked)
    hub.sources.add(OVERVIEW, overview)
    system.reporter.hooks.append(mirror)
    system.reporter.hooks.append(lambda _stats: hub.cross_process_sync.look_around(system.reporter.others))
    return KeyfoldState(system, hub, access, settings, overview, health, metrics)


def attach(app: Flask, state: KeyfoldState) -> None:
    """Give app the routes and what they work on. Raises ConfigError if they collide with the app's own."""
    app.extensions[EXTENSION] = state
    signals = SignalObserver(app, state.hub)
    state.system.observe(signals)
    state.hub.on_connected(signals.connected)
    app.cli.add_command(make_cli())
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
