"""The seam for whoever wants to know what happens: signals, traces, an app's own counters."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from ..store import ProjectionError
    from .broadcaster import Committed

_logger = logging.getLogger("keyfold.system")


class Observer(Protocol):
    """Told after the fact, on a dispatcher thread: keep it short. What it raises is logged and harms nothing."""

    def applied(self, turn: Committed, seconds: float) -> None:
        """A turn of one key is committed and broadcast; it waited so many seconds for its commit."""

    def failed(self, error: ProjectionError, event: object) -> None:
        """An event could not be folded, and is a dead letter now."""


def tell(observers: Sequence[Observer], what: Callable[[Observer], None]) -> None:
    """Tell each of them."""
    for observer in observers:
        try:
            what(observer)
        except BaseException:  # not even SystemExit may stop the actor
            _logger.exception("%r raised", observer)
