"""The settings of the Flask part, and the one place that reads ``KEYFOLD_…`` keys from a Flask config."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Annotated, Any

import peewee
from msgspec import Meta

from ..actors import ProjectionError
from ..actors.settings import (
    Count,
    InvalidSetting,
    NonEmptyText,
    Settings,
    SystemTuning,
    field_names,
    merge_tuning,
    spelled,
)
from .access.origin import parse_origin
from .live.settings import LiveSettings, LiveTuning

_PREFIX = "KEYFOLD_"
_TUNING = "KEYFOLD_TUNING"

_SYSTEM_TUNING = field_names(SystemTuning)
_WEB_TUNING = field_names(LiveTuning)

_ORIGINS = "a list of origins such as 'https://app.example.com', without a path"
_Origins = Annotated[tuple[str, ...], Meta(description=_ORIGINS)]
_Path = Annotated[
    str,
    Meta(pattern=r"\A(/(?s:.*)[^/])?\Z", description="a path such as '/live', with no slash at its end"),
]


class ConfigError(ProjectionError):
    """A ``KEYFOLD_…`` key is missing, unknown or malformed; the message names it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WebSettings(LiveSettings):
    """The settings of the web part.

    Each is the config key ``KEYFOLD_`` + its name in capitals; the tuning keys are keys of
    ``KEYFOLD_TUNING``. The page *Configuration* lists all of them.

    Raises:
        ProjectionError: A value has the wrong type or is out of range; the message names the setting.
    """

    url_prefix: _Path = ""
    """The path under which all routes of Keyfold lie, for instance ``/live``."""
    allowed_origins: _Origins = ()
    """Origins besides the app's own whose pages may connect, such as ``https://app.example.com``."""
    admin_token: NonEmptyText | None = field(default=None, repr=False)
    """The bearer token for the admin endpoints. None: only ``authorize_admin`` gives access."""
    metrics_token: NonEmptyText | None = field(default=None, repr=False)
    """The bearer token for the metrics alone."""
    ticket_seconds: Count = 30
    """Seconds for which a ticket is valid until it is used."""

    def __post_init__(self) -> None:
        LiveSettings.__post_init__(self)  # super() does not work in a dataclass with slots
        if any(parse_origin(origin) is None for origin in self.allowed_origins):
            name = "allowed_origins"
            raise InvalidSetting(name, f"must be {_ORIGINS}, not {list(self.allowed_origins)!r}")


def make_web_settings(given: Mapping[str, Any], tuning: object, *, stacklevel: int) -> WebSettings:
    """Return the WebSettings of keywords and a tuning mapping, as ``create_app`` takes them."""
    names = field_names(WebSettings) - _WEB_TUNING
    merged = merge_tuning(given, tuning, stable=names, tunable=_WEB_TUNING, stacklevel=stacklevel + 1)
    return WebSettings(**merged)


def read_config(
    config: Mapping[str, Any], *, stacklevel: int = 2
) -> tuple[str | peewee.Database, dict[str, Any], WebSettings]:
    """Return the database, the keywords of a ProjectionSystem and the WebSettings of a Flask config.

    Args:
        config: The config. Keys that do not start with ``KEYFOLD_`` are ignored.
        stacklevel: The frame to which the warning about a moved key points: 1 is the caller of this function.

    Raises:
        ConfigError: A key is missing, unknown or malformed; the message names it.
    """
    given = {
        key.removeprefix(_PREFIX).lower(): value for key, value in config.items() if key.startswith(_PREFIX)
    }
    if "database" not in given:
        msg = "the config key KEYFOLD_DATABASE is missing; set it, for instance to 'sqlite:///shop.db'"
        raise ConfigError(msg)
    database = given.pop("database")
    tuning = given.pop("tuning", None)
    of_web, of_system = field_names(WebSettings), field_names(Settings)
    tunable = _WEB_TUNING | _SYSTEM_TUNING
    _check_names(given, of_web | of_system, tunable)
    try:
        merged = merge_tuning(
            given,
            tuning,
            stable=(of_web | of_system | {"database"}) - tunable,
            tunable=tunable,
            prefix=_PREFIX,
            stacklevel=stacklevel + 1,
        )
        Settings(**_only(merged, of_system))
        web = WebSettings(**_only(merged, of_web))
    except InvalidSetting as error:
        name = error.setting
        place = spelled(name, _PREFIX) if name in given else f"the config key {_TUNING}[{name!r}]"
        msg = f"{place} {error.problem}"
        raise ConfigError(msg) from None
    except ProjectionError as error:
        raise ConfigError(str(error).removeprefix("projection: ")) from None
    keywords = _only(merged, of_system - _SYSTEM_TUNING)
    return database, {**keywords, "tuning": _only(merged, _SYSTEM_TUNING)}, web


def _check_names(given: Mapping[str, Any], known: frozenset[str], tunable: frozenset[str]) -> None:
    for name in given:
        if name not in known:
            near = difflib.get_close_matches(name, known | {"database", "tuning"}, n=1)
            hint = ""
            if near:
                right = f"{_TUNING}[{near[0]!r}]" if near[0] in tunable else f"{_PREFIX}{near[0].upper()}"
                hint = f"; did you mean {right}?"
            msg = f"{spelled(name, _PREFIX)} is unknown{hint}"
            raise ConfigError(msg)


def _only(settings: Mapping[str, Any], names: frozenset[str]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name in names}
