"""The web part in a forked child: no state of the parent's threads is left in it."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack
from typing import Any

import pytest
from flask import Flask
from keyfold.web.live.connections.connection_limits import ConnectionLimits, Room
from keyfold.web.settings import WebSettings
from support.counting import Added
from support.parking import DEADLINE, wait_until
from support.serving import serve

_LOCK = type(threading.Lock())
_BEARER = {"Authorization": "Bearer let-me-see"}


def _parts_of(thing: object) -> Iterator[object]:
    """The objects that one of the web part refers to: attributes, items, and the closures of functions."""
    if isinstance(thing, dict):
        yield from thing.values()
    elif isinstance(thing, (list, tuple, set)):
        yield from thing
    elif hasattr(thing, "__closure__"):
        yield from (cell.cell_contents for cell in getattr(thing, "__closure__", None) or ())
    elif type(thing).__module__.startswith("keyfold.web"):
        names = {name for kind in type(thing).__mro__ for name in getattr(kind, "__slots__", ())}
        yield from (getattr(thing, name) for name in names if hasattr(thing, name))
        yield from getattr(thing, "__dict__", {}).values()
    elif isinstance(thing, threading.Condition):
        yield thing._lock  # type: ignore[attr-defined]
    elif isinstance(thing, threading.Event):
        yield thing._cond  # type: ignore[attr-defined]


def _locks_of(things: Iterable[object]) -> list[Any]:
    seen = dict[int, object]()
    waiting = list(things)
    while waiting:
        thing = waiting.pop()
        if id(thing) not in seen:
            seen[id(thing)] = thing
            waiting.extend(_parts_of(thing))
    return [thing for thing in seen.values() if type(thing) is _LOCK]


def _in_a_child(work: Callable[[], None]) -> int:
    """Return the exit code of a forked child that does this."""
    child = os.fork()
    if child == 0:
        code = 1
        try:
            work()
            code = 0
        finally:
            os._exit(code)
    ended = list[int]()

    def has_ended() -> bool:
        pid, status = os.waitpid(child, os.WNOHANG)
        if pid:
            ended.append(os.waitstatus_to_exitcode(status))
        return bool(ended)

    try:
        wait_until(has_ended)
    finally:
        if not ended:
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
    return ended[0]


def test_a_child_waits_for_no_lock_of_its_parent(make_app: Callable[..., Flask]) -> None:
    """A thread that the child does not have may hold any lock of the web part: here, all locks are held."""
    app = make_app(KEYFOLD_ADMIN_TOKEN="let-me-see")
    app.secret_key = "s" * 30
    state = app.extensions["keyfold"]
    with serve(app) as site, app.app_context():
        state.system.bus.dispatch(Added("a")).result(DEADLINE)
        used, unused = (state.access.ticket(app, "test.private", "a", "kim") for _ in range(2))
        before = [site.watch("test.totals", "a"), site.watch("test.private", "a", ticket=used)]
        for watcher in before:
            assert watcher.next()["type"] == "snapshot"
        assert site.request("/keyfold/metrics", **_BEARER)[0] == 200

        def work() -> None:
            assert (state.hub.connection_limits._open, len(state.hub.connections)) == (0, 0)
            with serve(app) as here:
                watcher = here.watch("test.private", "a", ticket=unused)
                assert watcher.next()["type"] == "snapshot"
                assert state.hub.connection_limits._open == 1
                status, _, text = here.request("/keyfold/metrics", **_BEARER)
                assert (status, "keyfold_sockets_opened_total 1.0" in text) == (200, True)
                state.hub.close(DEADLINE)
                assert watcher.close_code() == 1001

        locks = _locks_of([state])
        assert len(locks) >= 8
        with ExitStack() as held:
            for lock in locks:
                held.enter_context(lock)
            assert _in_a_child(work) == 0
        assert state.hub.connection_limits._open == 2
        for watcher in before:
            watcher.send(type="ping")
            assert watcher.next() == {"type": "pong"}
            watcher.close()


def test_room_is_looked_for_outside_the_lock(monkeypatch: pytest.MonkeyPatch) -> None:
    """That opens a descriptor, which lets other threads run, and a place can be given back meanwhile."""
    connection_limits = ConnectionLimits(WebSettings())
    slot = connection_limits.enter("192.0.2.7", None)

    def is_short(_room: Room) -> bool:
        thread = threading.Thread(target=slot.leave, daemon=True)
        thread.start()
        thread.join(1)
        return thread.is_alive()

    monkeypatch.setattr(Room, "is_short", property(is_short))
    connection_limits.enter("192.0.2.7", None).leave()
