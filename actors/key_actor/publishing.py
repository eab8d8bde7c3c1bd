"""How a committed change is shown to the world: to the broadcaster first, then to the app's hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...store.errors import describe
from ..errors import BroadcastError

if TYPE_CHECKING:
    from ...store import Position, ProjectionError
    from ..broadcaster import Broadcaster, Committed, Observer
    from ..upkeep.counters import Counters

_logger = logging.getLogger("keyfold.broadcast")


class Publisher:
    """Shows the committed changes of one projection. Nothing that app code raises here stops an actor.

    Args:
        name: The name of the projection.
        broadcaster: Shows changes to subscribers; None if there is none.
        hooks: The ``on_applied`` hooks of the projection. The app may add to them at any time.
        observers: The observers of the system. The app may add to them at any time.
        counters: Counts the failures.
    """

    def __init__(
        self,
        name: str,
        broadcaster: Broadcaster | None,
        hooks: Sequence[Callable[[str, Any], object]],
        observers: Sequence[Observer],
        counters: Counters,
    ) -> None:
        self._name = name
        self._broadcaster = broadcaster
        self._hooks = hooks
        self._observers = observers
        self._counters = counters

    def publish(self, committed: Committed, state: Any) -> BroadcastError | None:
        """Broadcast a commit and run the hooks.

        Return the failure of the broadcast: the change stays committed.
        """
        failure = self._broadcast(committed.key, committed.version, lambda to: to.publish(committed))
        for hook in self._hooks:
            try:
                hook(committed.key, state)
            except BaseException:  # not even SystemExit may stop the actor
                details = {"projection": self._name, "key": committed.key, "version": committed.version}
                _logger.exception(
                    "an on_applied hook of %s raised for key %r", self._name, committed.key, extra=details
                )
                self._counters.add(hook_errors=1)
        return failure

    def publish_replacement(self, key: str, position: Position, state: bytes) -> BroadcastError | None:
        """Broadcast the whole state after a rebuild, a repair or a wipe. Return the failure, if it failed."""
        return self._broadcast(
            key,
            position.version,
            lambda to: to.publish_snapshot(self._name, key, position, state, "rebuild"),
        )

    def invalidate(self, key: str) -> None:
        """Have the subscribers of a key read its row again: the deltas they have seen do not lead to it."""
        if self._broadcaster is None:
            return
        try:
            self._broadcaster.invalidate(self._name, key)
        except BaseException:
            details = {"projection": self._name, "key": key}
            _logger.exception("invalidating key %r of %s failed", key, self._name, extra=details)

    def notify_applied(self, committed: Committed, seconds: float) -> None:
        """Notify the observers of a commit that took so many seconds."""
        for observer in self._observers:
            try:
                observer.applied(committed, seconds)
            except BaseException:  # not even SystemExit may stop the actor
                _logger.exception("%r raised", observer)

    def notify_failed(self, error: ProjectionError, event: object) -> None:
        """Notify the observers of an event that could not be folded."""
        for observer in self._observers:
            try:
                observer.failed(error, event)
            except BaseException:
                _logger.exception("%r raised", observer)

    def _broadcast(
        self, key: str, version: int, publish: Callable[[Broadcaster], None]
    ) -> BroadcastError | None:
        if self._broadcaster is None:
            return None
        try:
            publish(self._broadcaster)
        except BaseException as cause:
            msg = (
                f"{self._name}: version {version} of key {key!r} is committed but was not broadcast: "
                f"{describe(cause)}"
            )
            error = BroadcastError(msg, projection=self._name, key=key, version=version)
            error.__cause__ = cause
            _logger.exception(msg, extra=error.facts)
            self._counters.add(broadcast_errors=1)
            self.invalidate(key)
            return error
        return None
