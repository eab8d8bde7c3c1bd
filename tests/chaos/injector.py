"""Raises an exception at a line of the library, the first time that a thread of a given role comes to it."""

from __future__ import annotations

import dis
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from types import CodeType, FrameType
from typing import Any, NamedTuple

import keyfold.actors
import keyfold.store

_FOLDERS = tuple(str(Path(module.__file__ or "").parent) + "/" for module in (keyfold.actors, keyfold.store))
"""As the import system spells them: compared with the file names of code objects."""

CALLER = "caller"
"""The name of the thread that plays the application."""

_ROLES = {
    CALLER: CALLER,
    "keyfold-dispatcher": "dispatcher",
    "SnapshotWriter": "writer",
    "keyfold-writer": "writer",
    "keyfold-reader": "reader",
    "keyfold-sweeper": "sweeper",
    "keyfold-timer": "timer",
    "keyfold-migration": "migration",
}


class Point(NamedTuple):
    """A line, and the role of the thread that came to it. ``file`` is relative to the library's root."""

    role: str
    file: str
    line: int
    function: str

    def __str__(self) -> str:
        return f"{self.role:10} {self.file}:{self.line} in {self.function}"


def role_of(thread: threading.Thread) -> str:
    """Return the part that a thread plays, by its name; the name itself if it is unknown."""
    return next((role for prefix, role in _ROLES.items() if thread.name.startswith(prefix)), thread.name)


def point_of(code: CodeType, line: int, role: str) -> Point:
    """Return the point of a line of a code object."""
    file = Path(code.co_filename).relative_to(Path(_FOLDERS[0]).parent)
    return Point(role, str(file), line, code.co_qualname)


@cache
def lines_of(code: CodeType) -> frozenset[int]:
    """Return the lines of a function on which something can be raised.

    A line that only begins a ``try`` is left out. In CPython 3.11 it is a NOP that an outer ``with`` does not
    guard: an exception there would leave a lock held, but no signal is ever handled there.
    """
    nop = dis.opmap["NOP"]
    return frozenset(
        line
        for start, end, line in code.co_lines()
        if line is not None and any(operation != nop for operation in code.co_code[start:end:2])
    )


class Recorder:
    """Notes every line that is executed, with the role of the thread, in the order of the first time."""

    def __init__(self) -> None:
        self.points: dict[Point, None] = {}

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        """Take a call: follow the lines of the library's own functions only."""
        return self._line if frame.f_code.co_filename.startswith(_FOLDERS) else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any]:
        if event == "line" and frame.f_lineno in lines_of(frame.f_code):
            role = role_of(threading.current_thread())
            self.points[point_of(frame.f_code, frame.f_lineno, role)] = None
        return self._line


class Injector:
    """Raises ``error`` once, at one point."""

    def __init__(self, point: Point, error: type[BaseException]) -> None:
        self.point = point
        self.error = error
        self.fired = False
        self._armed = True
        self._once = threading.Lock()
        self._file = str(Path(_FOLDERS[0]).parent / point.file)

    def disarm(self) -> None:
        """Raise nothing from now on."""
        self._armed = False

    def trace(self, frame: FrameType, _event: str, _argument: Any) -> Callable[..., Any] | None:
        """Take a call: follow the lines of the function that the point is in only."""
        code = frame.f_code
        mine = (
            self._armed
            and code.co_qualname == self.point.function
            and code.co_filename == self._file
            and role_of(threading.current_thread()) == self.point.role
        )
        return self._line if mine else None

    def _line(self, frame: FrameType, event: str, _argument: Any) -> Callable[..., Any] | None:
        if event != "line" or frame.f_lineno != self.point.line or not self._armed:
            return self._line
        if not self._once.acquire(blocking=False):
            return None
        self._armed, self.fired = False, True
        raise self.error(f"injected at {self.point}")


@contextmanager
def tracing(trace: Callable[..., Any]) -> Iterator[None]:
    """Trace the threads that are started within; the calling thread is not traced."""
    before = threading.gettrace()
    threading.settrace(trace)
    try:
        yield
    finally:
        threading.settrace(before)
