"""How a committed change is told to the world: the broadcaster first, then the app's hooks."""

from __future__ import annotations

import logging
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

from ...store.errors import describe
from ..errors import BroadcastError
from ..receipt import Delivery

if TYPE_CHECKING:
    from ..broadcaster import Broadcaster, Committed
    from .actor_context import ActorContext
    from .commands import Replacement

_logger = logging.getLogger("keyfold.broadcast")


def publish(context: ActorContext, turn: Committed, state: Any) -> BroadcastError | None:
    """Publish a committed turn and run the hooks. Return what failed: the change stays committed."""
    failure = _broadcast(context, turn.key, turn.version, lambda to: to.publish(turn))
    for hook in context.on_applied:
        try:
            hook(turn.key, state)
        except BaseException:  # not even SystemExit may stop the actor
            facts = {"projection": context.projection, "key": turn.key, "version": turn.version}
            _logger.exception(
                "an on_applied hook of %s raised for key %r", context.projection, turn.key, extra=facts
            )
            context.counters.add(hook_errors=1)
    return failure


def publish_replacement(context: ActorContext, key: str, replacement: Replacement) -> None:
    """Publish the whole state after a rebuild or a wipe, and tell whoever asked for it."""
    position, state = replacement.position, replacement.state
    failure = _broadcast(
        context,
        key,
        position.version,
        lambda to: to.publish_snapshot(context.projection, key, position, state, "rebuild"),
    )
    if failure is None:
        replacement.done.set_result(position)
    else:
        replacement.done.set_exception(failure)


def settle_deliveries(
    deliveries: Sequence[Delivery], turn: Committed, failure: BroadcastError | None
) -> None:
    """Resolve the Receipts of a committed turn, after it was announced."""
    if failure is None:
        Delivery.commit(deliveries, turn)
        return
    for delivery in deliveries:
        delivery.fail(failure)


def _broadcast(
    context: ActorContext, key: str, version: int, publish: Callable[[Broadcaster], None]
) -> BroadcastError | None:
    broadcaster = context.broadcaster
    if broadcaster is None:
        return None
    try:
        publish(broadcaster)
    except BaseException as cause:
        msg = (
            f"{context.projection}: version {version} of key {key!r} is committed but was not broadcast: "
            f"{describe(cause)}"
        )
        error = BroadcastError(msg, projection=context.projection, key=key, version=version)
        error.__cause__ = cause
        _logger.exception(msg, extra=error.facts)
        context.counters.add(broadcast_errors=1)
        invalidate(context, key)
        return error
    return None


def invalidate(context: ActorContext, key: str) -> None:
    """Have the pages of a key brought back by its row: what they were shown is not what leads on."""
    if context.broadcaster is None:
        return
    try:
        context.broadcaster.invalidate(context.projection, key)
    except BaseException:
        facts = {"projection": context.projection, "key": key}
        _logger.exception("invalidating key %r of %s failed", key, context.projection, extra=facts)
