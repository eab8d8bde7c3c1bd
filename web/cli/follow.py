"""Following a key, for ``flask keyfold tail``."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from msgspec import json

if TYPE_CHECKING:
    from ...actors import ProjectionRuntime

_POLL_SECONDS = 0.5


def follow(
    runtime: ProjectionRuntime[Any, Any], key: str, *, url: str | None, token: str | None
) -> Iterator[dict[str, Any]]:
    """Yield the state of a key and then its changes, without an end.

    Args:
        runtime: The runtime of the projection.
        key: The key to follow.
        url: The URL of the app, to follow over a WebSocket. None: read the row twice per second.
        token: The admin token to send.

    Yields:
        ``{"kind": "snapshot" or "delta", "epoch": …, "version": …, "value": …}``.
    """
    return _over_socket(runtime.name, key, url, token) if url else _in_database(runtime, key)


def _in_database(runtime: ProjectionRuntime[Any, Any], key: str) -> Iterator[dict[str, Any]]:
    seen: object = object()
    while True:
        snapshot = runtime.snapshot(key)
        position = None if snapshot is None else (snapshot.epoch, snapshot.version)
        if position != seen:
            seen = position
            epoch, version = position or ("", 0)
            state = None if snapshot is None else json.decode(runtime.codec.state.encode(snapshot.state))
            yield {"kind": "snapshot", "epoch": epoch, "version": version, "value": state}
        threading.Event().wait(_POLL_SECONDS)


def _over_socket(name: str, key: str, url: str, token: str | None) -> Iterator[dict[str, Any]]:
    from ..client import Watch  # noqa: PLC0415  # an extra

    headers = {"Authorization": f"Bearer {token}"} if token else {}
    with Watch(url, name, key, headers=headers) as watch:
        for change in watch:
            kind = "snapshot" if change.is_snapshot else "delta"
            epoch, version = change.position
            yield {"kind": kind, "epoch": epoch, "version": version, "value": change.value}
