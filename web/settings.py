"""The configuration of the web part, read once."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, fields
from typing import Any

import peewee

from ..actors import ProjectionError, Settings
from .access.origin import parse_origin
from .live.settings import LiveSettings, check_live_setting

_PREFIX = "KEYFOLD_"


class ConfigError(ProjectionError):
    """A ``KEYFOLD_…`` key is missing, unknown or malformed; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings(LiveSettings):
    """What the web part can be told. Each field is the config key ``KEYFOLD_`` + its name in capitals."""

    url_prefix: str = ""
    """Where all routes of Keyfold begin, for instance ``/live``."""
    allowed_origins: tuple[str, ...] = ()
    """Origins besides the app's own that may open a WebSocket, as ``https://app.example.com``."""
    admin_token: str | None = None
    """The bearer token that opens the admin endpoints. None: only ``authorize_admin`` can."""
    metrics_token: str | None = None
    """The bearer token that opens the metrics, and nothing else."""
    ticket_seconds: int = 30
    """How long a ticket may wait to be used."""

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
            elif field.name in ("admin_token", "metrics_token"):
                if value is not None and (not isinstance(value, str) or not value):
                    _malformed(field.name, value, "a string that is not empty")
            else:
                check_live_setting(field.name, field.type, value)


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
