"""The objects of Keyfold that belong to one app."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING

from flask import current_app

if TYPE_CHECKING:
    from ..actors import ProjectionSystem
    from .access.read import Access
    from .live.hub import Hub
    from .operator.health import Health
    from .operator.metrics import Metrics
    from .operator.overview import Overview
    from .settings import WebSettings

EXTENSION = "keyfold"


@dataclass(frozen=True, slots=True)
class KeyfoldState:
    """The value of ``app.extensions["keyfold"]``."""

    system: ProjectionSystem
    hub: Hub
    access: Access
    settings: WebSettings
    overview: Overview
    health: Health
    metrics: Callable[[], Metrics]
    """Makes the metrics at the first call. Raises ImportError without the extra ``metrics``."""


def current_state() -> KeyfoldState:
    """Return Keyfold's objects for the current app."""
    state: KeyfoldState = current_app.extensions[EXTENSION]
    return state
