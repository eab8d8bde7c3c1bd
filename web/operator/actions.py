"""What an operator can do to a projection. Each returns what to tell the operator."""

from __future__ import annotations

from typing import Any

from werkzeug.exceptions import BadRequest, Conflict

from ...actors import (
    ApplyError,
    InvalidEvent,
    InvalidState,
    KeyHalted,
    MailboxFull,
    Position,
    ProjectionRuntime,
    VersionConflict,
)
from ...actors.errors import LetterNotFound
from ...store import StoreRejected
from ..app_registry import current_state
from ..live.protocol.positions import parse_position

REFUSALS = (
    ApplyError,
    InvalidEvent,
    InvalidState,
    KeyHalted,
    LetterNotFound,
    MailboxFull,
    StoreRejected,
    VersionConflict,
)
"""What an action raises that is no defect: the operator is told."""


def _retry(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    [applied] = runtime.dead_letters.retry(_number(wish, "letter"))
    return f"folded into {applied.key} as version {applied.version}"


def _skip(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    position: Position | None = None
    if wish.get("position"):
        try:
            position = parse_position(_text(wish, "position"))
        except ValueError as error:
            raise BadRequest(str(error)) from None
    runtime.dead_letters.skip(_number(wish, "letter"), position=position)
    return "removed; its event will not be folded"


def _resume(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    return f"{runtime.dead_letters.resume(_text(wish, 'key'))} parked events folded; the key goes on"


def _rebuild(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    key = _text(wish, "key")
    events = runtime.projection.history(key)
    if events is None:
        msg = f"{runtime.name} has no history(key) to rebuild from; flask keyfold rebuild takes a file"
        raise Conflict(msg)
    runtime.rebuild(key, events)
    return f"{key} is rebuilt from its history"


def _wipe(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    key = _text(wish, "key")
    runtime.wipe(key)
    return f"{key} is wiped"


def _repair(runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    key = _text(wish, "key")
    runtime.repair(key, _text(wish, "state"))
    return f"{key} is repaired"


def _drop(_runtime: ProjectionRuntime[Any, Any], wish: dict[str, Any]) -> str:
    kept = current_state()
    if wish.get("process") != kept.system.reporter.process:
        msg = "that client is connected to another process; reload until this page is served by it"
        raise Conflict(msg)
    if not kept.hub.drop(_number(wish, "client")):
        msg = "that client has gone already"
        raise Conflict(msg)
    return "the client's connection is closed"


ACTIONS = {
    "retry": _retry,
    "skip": _skip,
    "resume": _resume,
    "rebuild": _rebuild,
    "wipe": _wipe,
    "drop": _drop,
    "repair": _repair,
}


def _number(wish: dict[str, Any], word: str) -> int:
    value = wish.get(word)
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{word} must be a number"
        raise BadRequest(msg)
    return value


def _text(wish: dict[str, Any], word: str) -> str:
    value = wish.get(word)
    if not isinstance(value, str):
        msg = f"{word} must be a string"
        raise BadRequest(msg)
    return value
