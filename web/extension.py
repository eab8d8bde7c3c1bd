"""Keyfold as a Flask extension.

This module makes the objects of an app and connects them. So it imports a module of each room of the web
part.
"""

from __future__ import annotations

import os
import re
import threading
import weakref
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

from flask import Flask, current_app, has_app_context
from flask_sock import Sock

from ..actors import EventBus, NotStarted, Observer, Projection, ProjectionSystem
from .access.admin import AuthorizeAdmin
from .access.read import Access, Authorize, Identify
from .app_registry import EXTENSION, KeyfoldState
from .cli.commands import make_cli
from .live.hub import Hub
from .operator.health import Health
from .operator.overview import OVERVIEW, Overview
from .routes import make_blueprint
from .settings import ConfigError, WebSettings, make_web_settings, read_config
from .signals import SignalObserver
from .sock_reader import OPTIONS, install_reader
from .sockets import release_unused, serve_socket

if TYPE_CHECKING:
    from werkzeug.routing import Rule

    from .operator.metrics import Metrics


class Keyfold:
    """Live read models for Flask apps.

    Make one, register the projections, and call ``init_app`` for each app. It reads the ``KEYFOLD_…`` config,
    gives the app a ProjectionSystem of its own, and adds the routes. A key is readable if its projection is
    ``public``, or if ``authorize`` returns True. Otherwise it is not.

    Args:
        authorize: Called as ``authorize(request, name, key)``; returns True if the request may read the key.
            Any other result, and any exception, refuses.
        authorize_admin: Called with a request for an admin endpoint; returns True to allow it. Without it,
            the token of ``KEYFOLD_ADMIN_TOKEN`` is needed.
        identify: Called with a request for a connection; returns the name of its user, or None. The name
            counts for the limit on each user's connections and for ``disconnect``.
        observers: Notified of commits and of failures.
        sock: The app's Flask-Sock extension. The library's own WebSocket routes are registered with it. By
            default, they get one of their own.
    """

    def __init__(
        self,
        *,
        authorize: Authorize | None = None,
        authorize_admin: AuthorizeAdmin | None = None,
        identify: Identify | None = None,
        observers: Iterable[Observer] = (),
        sock: Sock | None = None,
    ) -> None:
        self._observers = tuple(observers)
        self._checks: dict[str, Any] = {
            "authorize": authorize,
            "authorize_admin": authorize_admin,
            "identify": identify,
        }
        self._sock = Sock() if sock is None else sock
        self._projections: list[Projection[Any, Any]] = []
        self._apps: weakref.WeakSet[Flask] = weakref.WeakSet()

    def register(self, projection: Projection[Any, Any]) -> None:
        """Run a projection in every app: those that have been initialised, and those that will be.

        Args:
            projection: The projection. One instance serves all apps.

        Raises:
            AlreadyRegistered: Another projection has this name.
            InvalidProjection: The class cannot work.
        """
        for app in self._apps:
            _state(app).system.register(projection)
        self._projections.append(projection)

    def init_app(self, app: Flask) -> None:
        """Set an app up. This starts no thread and opens no connection; the first dispatch or read does.

        Args:
            app: The app, whose config is complete.

        Raises:
            ConfigError: A config key is missing, unknown or malformed, or one of the app's routes has the
                same URL as one of Keyfold's.
            RuntimeError: The app has been initialised before.
        """
        if EXTENSION in app.extensions:
            msg = "this app has Keyfold already: call init_app once for each app"
            raise RuntimeError(msg)
        database, keywords, settings = read_config(app.config, stacklevel=2)
        settings = _with_ping_interval(settings, app)
        system = ProjectionSystem(database, **keywords)
        hub = Hub(settings, system)
        system.broadcast_to(hub)
        for projection in self._projections:
            system.register(projection)
        access = Access(hub.sources, settings, **self._checks)
        for observer in self._observers:
            system.observe(observer)
        attach(app, make_state(system, hub, access, settings), self._sock)
        self._apps.add(app)

    @property
    def system(self) -> ProjectionSystem:
        """The ProjectionSystem of the current app. Without an app context, that of the only app there is.

        Raises:
            NotStarted: There is no app, or there are several.
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
        """The EventBus of the current app, found as ``system`` is."""
        return self.system.bus

    @overload
    def serve(self, ws: Any, name: str, key: str, /) -> None: ...

    @overload
    def serve(self, ws: Any, /, *row_keys: tuple[str, str]) -> None: ...

    def serve(self, ws: Any, /, *channels: Any) -> None:
        """Give the socket of the app's own Flask-Sock handler to the hub, as the last step of the handler.

        ``serve(ws, name, key)`` makes it a socket of one key: its client gets the messages of
        ``/ws/projection/<name>/<key>``, and ``?since=`` and ``?ticket=`` in the request's URL count. With
        pairs, ``serve(ws, (name, key), (name, key))``, it is a socket of many keys that is subscribed to
        these, and ``serve(ws)`` is one that is subscribed to none: its client may subscribe to more, as on
        ``/ws/projection``. Access rules, limits and the check of the Origin are those of the library's own
        routes.

        This returns at once. The hub takes the socket over when the handler has returned, with every byte
        that the client has sent and the handler has not received. For the handler, ``ws`` is closed from now
        on: ``send``, ``receive`` and ``close`` raise ConnectionClosed, and Flask-Sock leaves the connection
        open.

        Args:
            ws: The socket, as Flask-Sock gave it to the handler of the current request.
            *channels: The name of a projection and a key of it, or any number of (name, key) pairs.

        Raises:
            ConnectionClosed: The request was refused, or the client has gone. The handshake was answered
                before, so a refusal is a close code: 4401 (invalid ticket), 4403 (not allowed), 4404 (no such
                projection, no valid key or position), 4429 (limit), 1013 (no descriptor), 1001 (shutdown).
                Flask-Sock handles this exception; the handler does not have to.
            RuntimeError: The socket is not that of a Flask-Sock route of this app, in the current request.
            TypeError: The channels are neither a name and a key nor pairs.
        """
        if len(channels) == 2 and all(isinstance(part, str) for part in channels):  # noqa: PLR2004
            return serve_socket(ws, [_plain(channels)], many=False)
        for pair in channels:
            if not isinstance(pair, tuple) or [isinstance(part, str) for part in pair] != [True, True]:
                msg = f"serve takes a name and a key, or any number of (name, key) pairs, not {pair!r}"
                raise TypeError(msg)
        return serve_socket(ws, list(dict.fromkeys(map(_plain, channels))), many=True)

    def ticket(self, name: str, key: str, user: str | None = None) -> str:
        """Return a signed ticket for one key, which opens one socket, stream or subscription of it.

        It is valid once, for ``KEYFOLD_TICKET_SECONDS``, and meant for clients that cannot send the session's
        cookie. They pass it as ``?ticket=`` or in a ``subscribe`` message. Each process remembers the tickets
        that it has redeemed, and does not know of those that another process has. Needs an app context.

        Args:
            name: The projection's name.
            key: The key.
            user: The name of the user whose connection it will be. None: nobody's.

        Returns:
            The ticket, as URL-safe text.

        Raises:
            RuntimeError: The app has no ``secret_key``.
            NotFound: No projection has this name.
            BadRequest: The text cannot be a key.
        """
        return _state(current_app).access.ticket(current_app._get_current_object(), name, key, user)  # type: ignore[attr-defined]  # noqa: SLF001

    def disconnect(self, *, user: str) -> int:
        """Close the user's connections to this process with 4401. Needs an app context.

        A client that comes back is authorised anew: end the user's session first.

        Args:
            user: The name, as ``identify`` or a ticket gives it.

        Returns:
            The number of connections that were open.
        """
        return _state(current_app).hub.disconnect(user)


def create_app(
    system: ProjectionSystem,
    *,
    authorize: Authorize | None = None,
    authorize_admin: AuthorizeAdmin | None = None,
    identify: Identify | None = None,
    tuning: Mapping[str, Any] | None = None,
    **settings: Any,
) -> Flask:
    """Return a WSGI app with the routes of one system, to mount under a path of any WSGI host.

    Call it before the first dispatch: its hub becomes the system's broadcaster.

    Args:
        system: The system. It must have no other broadcaster.
        authorize: Says whether a request may read a key, as that of ``Keyfold``.
        authorize_admin: Says whether a request may use the admin endpoints, as that of ``Keyfold``.
        identify: Returns the user behind a connection, as that of ``Keyfold``.
        tuning: The web part's keys of ``KEYFOLD_TUNING``.
        **settings: The other settings of the web part: the config key ``KEYFOLD_X`` is the keyword ``x``.

    Returns:
        A Flask app, which is a WSGI app.

    Raises:
        ProjectionError: A setting is wrong; the message names it.
        RuntimeError: The system has another broadcaster, or has started.
    """
    web_settings = make_web_settings(settings, tuning, stacklevel=2)
    hub = Hub(web_settings, system)
    system.broadcast_to(hub)
    here = str(
        Path(__file__).parent
    )  # given, as Flask cannot find the folder of a namespace package by itself
    app = Flask("keyfold.web", root_path=here, instance_path=here, static_folder=None)
    access = Access(
        hub.sources, web_settings, authorize=authorize, authorize_admin=authorize_admin, identify=identify
    )
    attach(app, make_state(system, hub, access, web_settings), Sock())
    return app


def _plain(pair: tuple[str, str]) -> tuple[str, str]:
    """Return the texts themselves: an Enum's member, which is a str, would be formatted as its name."""
    name, key = pair
    return str.__str__(name), str.__str__(key)


def _with_ping_interval(settings: WebSettings, app: Flask) -> WebSettings:
    """Return the settings with the app's ping interval for Flask-Sock, if that is the shorter one."""
    options = app.config.get(OPTIONS) or {}
    if not isinstance(options, Mapping):
        msg = (
            f"the config key {OPTIONS} must be a dict of options of simple_websocket.Server, not {options!r}"
        )
        raise ConfigError(msg)
    seconds = options.get("ping_interval")
    if not seconds:
        return settings
    if isinstance(seconds, bool) or not isinstance(seconds, (int, float)) or not seconds > 0:
        msg = (
            f"the config key {OPTIONS}['ping_interval'] must be a number of seconds, or None, not {seconds!r}"
        )
        raise ConfigError(msg)
    return settings if seconds >= settings.ping_seconds else replace(settings, ping_seconds=float(seconds))


def make_state(system: ProjectionSystem, hub: Hub, access: Access, settings: WebSettings) -> KeyfoldState:
    """Make the objects of one app, and connect them."""
    made: list[Metrics] = []
    making = threading.Lock()

    def metrics() -> Metrics:
        from .operator.metrics import Metrics  # noqa: PLC0415  # an extra

        with making:  # a report and a scrape may come at once: two of them would count everything twice
            if not made:
                made.append(Metrics())
        return made[0]

    def mirror(stats: dict[str, Any]) -> None:
        # A scrape may reach any worker: each one updates its own file of metrics.
        if "PROMETHEUS_MULTIPROC_DIR" in os.environ:
            metrics().mirror(stats)

    overview, health = Overview(system, hub), Health(system)

    def after_fork() -> None:
        # Threads of the parent may hold this lock and those within the metrics. The stats begin anew.
        nonlocal making
        making = threading.Lock()
        made.clear()

    for forked in (health.after_fork, access.after_fork, after_fork):
        system.after_fork(forked)
    hub.sources.add(OVERVIEW, overview)
    system.reporter.on_report(mirror)
    system.reporter.on_report(lambda _stats: hub.cross_process_sync.look_around(system.reporter.others))
    return KeyfoldState(system, hub, access, settings, overview, health, metrics)


def attach(app: Flask, state: KeyfoldState, sock: Sock) -> None:
    """Give an app the routes and the objects that they need. Raises ConfigError if a URL is the app's own."""
    app.extensions[EXTENSION] = state
    signals = SignalObserver(app, state.hub)
    state.system.observe(signals)
    state.hub.on_connected(signals.connected)
    app.cli.add_command(make_cli())
    install_reader(app.config)
    app.register_blueprint(make_blueprint(state.settings, sock))
    app.teardown_request(release_unused)
    _check_collisions(app)
    checked = False

    def check_once() -> None:
        # The routes and the config that the app has added after init_app. Flask takes none after the first
        # request.
        nonlocal checked
        if not checked:
            install_reader(app.config)
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
    state: KeyfoldState = app.extensions[EXTENSION]
    return state
