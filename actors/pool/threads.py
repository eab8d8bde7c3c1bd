"""The threads that everything runs on: one class for every loop, its health, and the role of a thread."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable
from time import monotonic
from typing import Any, Generic, NamedTuple, Self, TypeVar

_logger = logging.getLogger("keyfold.dispatcher")

ItemT = TypeVar("ItemT")

_ROLE = "keyfold_role"


class ThreadHealth(NamedTuple):
    """The health of one thread. It hangs if one step takes longer than a step should."""

    name: str
    alive: bool
    busy_seconds: float
    """How long the step under way has taken; 0 while the thread waits for its next item."""

    @classmethod
    def of(cls, thread: threading.Thread | None, busy_since: float | None, now: float) -> Self:
        """Return the health of a thread whose current step began at ``busy_since``.

        Args:
            thread: The thread; None while it is being started.
            busy_since: Monotonic time; None while the thread waits.
            now: Monotonic time.
        """
        name, alive = ("", True) if thread is None else (thread.name, thread.is_alive())
        return cls(name, alive, 0.0 if busy_since is None else max(0.0, now - busy_since))

    def trouble(self, max_seconds: float) -> str | None:
        """Return a description of the problem: the thread has ended or hangs. None if it is well."""
        if not self.alive:
            return "has ended"
        if self.busy_seconds > max_seconds:
            return f"has been in one step for {self.busy_seconds:.1f} s"
        return None


class WatchedThread(Generic[ItemT]):
    """A daemon thread that takes one item after another and works on each.

    A step is one call of ``work``. An exception in a step is logged and the next step follows; an exception
    in ``take`` ends the thread, since it would come again. A forked child has no such thread: the owner
    makes a new one there.

    Args:
        name: The name of the thread.
        take: Waits for the next item and returns it; None ends the thread. Called on the thread.
        work: Does one step. Called on the thread.
        role: Marks the thread as one of Keyfold's, see ``role_of_thread``. Empty for a thread on which an
            app may call anything.
        on_start: Called once on the thread, before the first ``take``.
        on_end: Called once on the thread, after the last step, also if ``on_start`` or ``take`` failed.
    """

    def __init__(
        self,
        name: str,
        take: Callable[[], ItemT | None],
        work: Callable[[ItemT], object],
        *,
        role: str = "",
        on_start: Callable[[], object] | None = None,
        on_end: Callable[[], object] | None = None,
    ) -> None:
        self._take = take
        self._work = work
        self._role = role
        self._on_start = on_start
        self._on_end = on_end
        self._busy_since: float | None = None
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)

    def start(self) -> None:
        """Start the thread, once. Raises RuntimeError if the process may have no more threads."""
        self._thread.start()

    @property
    def ident(self) -> int | None:
        """The identifier of the thread; None if it was never started."""
        return self._thread.ident

    def is_alive(self) -> bool:
        """Return whether the thread was started and has not ended."""
        return self._thread.is_alive()

    def is_current(self) -> bool:
        """Return whether the caller runs on this thread."""
        return threading.current_thread() is self._thread

    def join(self, deadline: float) -> bool:
        """Wait until the thread has ended, or until ``deadline`` (monotonic time).

        The owner makes ``take`` return None first. Returns True if the thread has ended or was never started,
        False if it still runs.
        """
        if self._thread.ident is None:
            return True
        self._thread.join(min(max(0.0, deadline - monotonic()), threading.TIMEOUT_MAX))
        return not self._thread.is_alive()

    def health(self, now: float) -> ThreadHealth:
        """Return the health of the thread at ``now`` (monotonic time). From any thread."""
        return ThreadHealth.of(self._thread, self._busy_since, now)

    def count_from(self, moment: float) -> None:
        """Count the step under way from another moment: ``work`` calls it for a step that may take longer."""
        self._busy_since = moment

    def _run(self) -> None:
        mark_thread(self._role)
        try:
            if self._on_start is not None:
                self._on_start()
            while self._step():
                pass
        finally:
            if self._on_end is not None:
                self._on_end()

    def _step(self) -> bool:
        """Take one item and work on it. False: the thread is to end."""
        item = self._take()
        try:
            if item is None:
                return False
            self._busy_since = monotonic()
            self._work(item)
        except BaseException:  # one broken step must not take the thread from all the others
            _logger.exception("a step of %s failed", self._thread.name)
        finally:
            self._busy_since = None
        return True


def on_dispatcher_thread() -> bool:
    """Return whether the calling thread belongs to a Dispatcher, and so must not wait for actors."""
    return role_of_thread() == "dispatcher"


def on_own_thread() -> bool:
    """Return whether the calling thread is one of Keyfold's, and so must not wait for all of them to end."""
    return role_of_thread() != ""


def role_of_thread() -> str:
    """Return the role of the calling thread; an empty string if it is none of Keyfold's."""
    # Kept by the Thread and not in a threading.local: one that was made before gevent has patched the module
    # is shared by all greenlets.
    role: Any = vars(threading.current_thread()).get(_ROLE, "")
    return str(role)


def mark_thread(role: str) -> None:
    """Give the calling thread a role."""
    vars(threading.current_thread())[_ROLE] = role


def _clear_role() -> None:
    # A fork in a hook: the thread that forked is the child's main thread, and no longer one of ours.
    mark_thread("")


os.register_at_fork(after_in_child=_clear_role)
