"""A gate that delays a fork until no thread is inside SQLite."""

from __future__ import annotations

import logging
import os
import threading
import weakref
from time import monotonic

_logger = logging.getLogger("keyfold.store")

_PATIENCE = 10.0
"""The maximal seconds that a fork waits for running operations."""

_gates: weakref.WeakSet[ForkGate] = weakref.WeakSet()


class ForkGate:
    """A fork waits until no thread is inside. ``enter`` before each operation on SQLite, ``leave`` after it.

    SQLite has one table of locks for all connections of a process. A child that is forked while another
    thread holds a lock inherits that lock with a connection that no thread of the child uses. The child could
    never write: its new connections, too, would find the database locked.

    Entering takes no lock. A thread first notes that it is inside and then checks whether the gate is closed;
    a fork first closes the gate and then checks which threads are inside. So one always sees the other.
    """

    def __init__(self) -> None:
        self._renew()
        _gates.add(self)

    def _renew(self) -> None:
        self._changed = threading.Condition()
        self._inside: dict[int, int] = {}
        self._forks = 0
        """How many threads are about to fork; the gate is closed meanwhile."""

    def enter(self) -> None:
        """Enter, after a fork that is about to happen. Operations may be nested."""
        me, inside = threading.get_ident(), self._inside
        depth = inside.get(me, 0)
        inside[me] = depth + 1
        # A thread that is inside already must not wait here, as the fork waits for it.
        if self._forks and not depth:
            self._wait_outside(me)

    def leave(self) -> None:
        me, inside = threading.get_ident(), self._inside
        depth = inside.get(me, 1) - 1
        if depth:
            # Without removing the entry in between: a fork would not see a thread that is still inside.
            inside[me] = depth
            return
        inside.pop(me, None)
        if self._forks:
            with self._changed:
                self._changed.notify_all()

    def _wait_outside(self, me: int) -> None:
        with self._changed:
            del self._inside[me]
            self._changed.notify_all()
            self._changed.wait_for(lambda: not self._forks)
            self._inside[me] = 1  # within the lock, which ``close`` takes as well

    def close(self) -> None:
        """Keep other threads from entering, before a fork."""
        with self._changed:
            self._forks += 1

    def wait_until_empty(self, deadline: float) -> set[int]:
        """Wait until no other thread is inside; return the idents of those that still are at the deadline."""
        with self._changed:
            self._changed.wait_for(lambda: not self._others(), max(0.0, deadline - monotonic()))
            return self._others()

    def _others(self) -> set[int]:
        return self._inside.keys() - {threading.get_ident()}

    def open(self) -> None:
        """Let threads enter again, after a fork."""
        with self._changed:
            self._forks -= 1
            self._changed.notify_all()

    def renew(self) -> None:
        """Start anew in a forked child, which has no other threads."""
        depth = self._inside.get(threading.get_ident(), 0)
        self._renew()
        if depth:
            self._inside[threading.get_ident()] = depth


_thread = threading.local()


def _all_gates() -> list[ForkGate]:
    while True:
        try:
            return list(_gates)
        except RuntimeError:  # another thread has added a gate meanwhile
            continue


def _before_fork() -> None:
    _thread.closed = gates = _all_gates()
    for gate in gates:
        gate.close()
    deadline = monotonic() + _PATIENCE
    inside = set[int]().union(*(gate.wait_until_empty(deadline) for gate in gates))
    if inside:
        names = [thread.name for thread in threading.enumerate() if thread.ident in inside]
        _logger.error(
            "the process forks although threads have been inside SQLite for %.0f s (%s): the child may find "
            "its database locked for ever",
            _PATIENCE,
            ", ".join(names),
        )


def _after_fork_in_parent() -> None:
    for gate in _thread.closed:
        gate.open()
    del _thread.closed


def _after_fork_in_child() -> None:
    for gate in _all_gates():
        gate.renew()


os.register_at_fork(
    before=_before_fork, after_in_parent=_after_fork_in_parent, after_in_child=_after_fork_in_child
)
