"""The actions of the operator's page. Each returns the message that the page shows."""

from __future__ import annotations

from typing import Any, Protocol

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
from ..live.protocol.messages import parse_position

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
"""The errors that refuse an action. They are shown to the operator; any other error is a defect."""


class Action(Protocol):
    """Carries out one action. It is called on the request's thread, after the check of the rights."""

    def __call__(self, runtime: ProjectionRuntime[Any, Any], body: dict[str, Any], /) -> str:
        """Return the message for the operator. Raises BadRequest (a malformed body) or one of REFUSALS."""


def _retry(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    [applied] = runtime.dead_letters.retry(_number(body, "letter"))
    return f"folded into {applied.key} as version {applied.version}"


def _skip(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    position: Position | None = None
    if body.get("position"):
        try:
            position = parse_position(_text(body, "position"))
        except ValueError as error:
            raise BadRequest(str(error)) from None
    runtime.dead_letters.skip(_number(body, "letter"), position=position)
    return "removed; its event will not be folded"


def _resume(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    return f"{runtime.dead_letters.resume(_text(body, 'key'))} parked events folded; the key goes on"


def _rebuild(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    key = _text(body, "key")
    events = runtime.projection.history(key)
    if events is None:
        msg = f"{runtime.name} has no history(key) to rebuild from; flask keyfold rebuild takes a file"
        raise Conflict(msg)
    runtime.rebuild(key, events)
    return f"{key} is rebuilt from its history"


def _wipe(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    key = _text(body, "key")
    runtime.wipe(key)
    return f"{key} is wiped"


def _repair(runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    key = _text(body, "key")
    runtime.repair(key, _text(body, "state"))
    return f"{key} is repaired"


def _drop(_runtime: ProjectionRuntime[Any, Any], body: dict[str, Any]) -> str:
    state = current_state()
    if body.get("process") != state.system.reporter.process:
        msg = "that client is connected to another process; reload until this page is served by it"
        raise Conflict(msg)
    if not state.hub.drop(_number(body, "client")):
        msg = "that client is gone already"
        raise Conflict(msg)
    return "the client's connection is closed"


ACTIONS: dict[str, Action] = {
    "retry": _retry,
    "skip": _skip,
    "resume": _resume,
    "rebuild": _rebuild,
    "wipe": _wipe,
    "drop": _drop,
    "repair": _repair,
}


def _number(body: dict[str, Any], field: str) -> int:
    value = body.get(field)
    if not isinstance(value, int) or isinstance(value, bool):
        msg = f"{field} must be a number"
        raise BadRequest(msg)
    return value


def _text(body: dict[str, Any], field: str) -> str:
    value = body.get(field)
    if not isinstance(value, str):
        msg = f"{field} must be a string"
        raise BadRequest(msg)
    return value
