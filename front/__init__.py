"""Keyfold: live read models for Flask and other synchronous WSGI apps.

This module has the names that most apps need. More names are in ``keyfold.actors``, ``keyfold.store`` and
``keyfold.web``. Each name is loaded at its first use, so that ``import keyfold.actors`` does not load Flask.
"""

from __future__ import annotations

import importlib
from importlib.metadata import version as _version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from .actors import (
        Applied,
        ApplyError,
        Closed,
        EventBus,
        InvalidEvent,
        InvalidKey,
        InvalidProjection,
        InvalidState,
        KeyHalted,
        MailboxFull,
        Observer,
        Position,
        Projection,
        ProjectionError,
        ProjectionRuntime,
        ProjectionSystem,
        Receipt,
        Snapshot,
        StateNotFound,
        StoreError,
        VersionConflict,
    )
    from .web import ConfigError, Keyfold, create_app

    __version__: str

_PARTS = {
    "Applied": "actors",
    "ApplyError": "actors",
    "Closed": "actors",
    "ConfigError": "web",
    "EventBus": "actors",
    "InvalidEvent": "actors",
    "InvalidKey": "actors",
    "InvalidProjection": "actors",
    "InvalidState": "actors",
    "KeyHalted": "actors",
    "Keyfold": "web",
    "MailboxFull": "actors",
    "Observer": "actors",
    "Position": "actors",
    "Projection": "actors",
    "ProjectionError": "actors",
    "ProjectionRuntime": "actors",
    "ProjectionSystem": "actors",
    "Receipt": "actors",
    "Snapshot": "actors",
    "StateNotFound": "actors",
    "StoreError": "actors",
    "VersionConflict": "actors",
    "create_app": "web",
}

__all__ = [
    "Applied",
    "ApplyError",
    "Closed",
    "ConfigError",
    "EventBus",
    "InvalidEvent",
    "InvalidKey",
    "InvalidProjection",
    "InvalidState",
    "KeyHalted",
    "Keyfold",
    "MailboxFull",
    "Observer",
    "Position",
    "Projection",
    "ProjectionError",
    "ProjectionRuntime",
    "ProjectionSystem",
    "Receipt",
    "Snapshot",
    "StateNotFound",
    "StoreError",
    "VersionConflict",
    "__version__",
    "create_app",
]


def __getattr__(name: str) -> Any:
    if name == "__version__":
        value: Any = _version("keyfold")
    elif name in _PARTS:
        value = getattr(importlib.import_module(f".{_PARTS[name]}", __name__), name)
    else:
        msg = f"module {__name__!r} has no attribute {name!r}"
        raise AttributeError(msg)
    globals()[name] = value  # the next use does not call __getattr__
    return value


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
