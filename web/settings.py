"""The configuration of the web part, read once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import peewee

from ..actors import ProjectionError, Settings, check_setting
from .access.origin import parse_origin

_PREFIX = "KEYFOLD_"


class ConfigError(ProjectionError):
    """A ``KEYFOLD_…`` key is missing, unknown or malformed; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings:
    """What the web part can be told. Each field is the config key ``KEYFOLD_`` + its name in capitals."""

    url_prefix: str = ""
    """Where all routes of Keyfold begin, for instance ``/live``."""
    allowed_origins: tuple[str, ...] = ()
    """Origins besides the app's own that may open a WebSocket, as ``https://app.example.com``."""
    admin_token: str | None = None
    """The bearer token that opens the admin endpoints. None: only ``authorize_admin`` can."""
    metrics_token: str | None = None
    """The bearer token that opens the metrics, and nothing else."""
    heartbeat_seconds: float = 25.0
    """After so long without a change a channel is compared with its row, and tells its position."""
    ping_seconds: float = 25.0
    """How often a connection is pinged."""
    silence_seconds: float = 60.0
    """A WebSocket that says nothing for so long, not even a pong, is closed with 4102."""
    stall_seconds: float = 20.0
    """A client that takes nothing for so long is closed with 4101."""
    reauthorize_seconds: float = 300.0
    """For so long an answer of ``authorize`` holds. It is asked again before that. A ticket's channel ends then. 0: never."""
    ticket_seconds: int = 30
    """How long a ticket may wait to be used."""
    outbox_frames: int = 64
    """Frames that may wait for one connection; over it, they are replaced by the newest snapshot."""
    outbox_bytes: int = 256 * 1024
    """Bytes that may wait for one connection, likewise; and as many bytes of answers, over which it is closed."""
    ring_frames: int = 128
    """Deltas that a channel keeps for clients that come back."""
    ring_bytes: int = 256 * 1024
    """Bytes of them, likewise."""
    ring_seconds: float = 300.0
    """And how long they are kept."""
    rings_bytes: int = 64 * 1024 * 1024
    """Bytes that all channels keep together, looked after every few seconds."""
    idle_channels: int = 1_000
    """Channels that nobody watches any more and that still keep deltas."""
    max_sockets: int = 10_000
    """Open connections in this process, streams included; further ones get 429."""
    max_sockets_per_address: int = 100
    """Open connections from one client address; further ones get 429. Loopback is a proxy, and not counted."""
    max_sockets_per_user: int = 50
    """Open connections of one user, as ``identify`` or a ticket names them; further ones get 429, or ``limit``."""
    max_channels_per_socket: int = 100
    """Channels that one WebSocket may watch."""

    redis: str | None = None
    """The URL of a Redis through which processes tell each other's sockets what they commit. It may come and go."""
    redis_prefix: str = "keyfold:"
    """What the channels in Redis begin with: apps that share a Redis need one each."""
    redis_patience_seconds: float = 0.25
    """How long a change may wait for the one before it, which another process has on its way."""

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if field.name == "url_prefix":
                if not isinstance(value, str) or (value and not value.startswith("/")) or value.endswith("/"):
                    _malformed(field.name, value, "a path such as '/live', with no slash at its end")
            elif field.name == "allowed_origins":
                if not isinstance(value, tuple) or not all(_is_origin(origin) for origin in value):
                    _malformed(
                        field.name,
                        value,
                        "a list of origins such as 'https://app.example.com', without a path",
                    )
            elif field.name in ("admin_token", "metrics_token", "redis"):
                if value is not None and (not isinstance(value, str) or not value):
                    _malformed(field.name, value, "a string that is not empty")
            elif field.name == "redis_prefix":
                if not isinstance(value, str):
                    _malformed(field.name, value, "a string")
            else:
                check_setting(field.name, field.type, value)


def read_config(config: Mapping[str, Any]) -> tuple[str | peewee.Database, dict[str, Any], WebSettings]:
    """Return the database, the keywords of a ProjectionSystem and the WebSettings of a Flask config.

    Raises ConfigError that names the key, also for a ``KEYFOLD_…`` key that nobody knows.
    """
    given = {
        key.removeprefix(_PREFIX).lower(): value for key, value in config.items() if key.startswith(_PREFIX)
    }
    if "database" not in given:
        msg = "the config key KEYFOLD_DATABASE is missing; set it, for instance to 'sqlite:///shop.db'"
        raise ConfigError(msg)
    database = given.pop("database")
    of_web = {field.name for field in fields(WebSettings)}
    of_system = {field.name for field in fields(Settings)}
    for name in given:
        if name not in of_web | of_system:
            near = difflib.get_close_matches(name, of_web | of_system, n=1)
            hint = f"; did you mean {_PREFIX}{near[0].upper()}?" if near else ""
            msg = f"the config key {_PREFIX}{name.upper()} is unknown{hint}"
            raise ConfigError(msg)
    if isinstance(given.get("allowed_origins"), list):
        given["allowed_origins"] = tuple(given["allowed_origins"])
    web = {name: value for name, value in given.items() if name in of_web}
    system = {name: value for name, value in given.items() if name in of_system}
    try:
        Settings(**system)
        return database, system, WebSettings(**web)
    except ConfigError:
        raise
    except ProjectionError as error:
        msg = str(error).removeprefix("projection: ")
        for name in given:
            msg = msg.replace(f"the setting {name} ", f"the config key {_PREFIX}{name.upper()} ")
        raise ConfigError(msg) from None


def _is_origin(value: object) -> bool:
    return isinstance(value, str) and parse_origin(value) is not None


def _malformed(name: str, value: object, expected: str) -> None:
    msg = f"the setting {name} must be {expected}, not {value!r}"
    raise ProjectionError(msg)
