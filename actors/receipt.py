"""The Receipt of a dispatch: a future that the commit resolves."""

from __future__ import annotations

import logging
import os
import threading
from collections.abc import Callable, Sequence
from contextlib import suppress
from typing import Any

import msgspec

from .broadcaster import Committed
from .errors import WouldDeadlock
from .pool.threads import on_dispatcher_thread

_logger = logging.getLogger("keyfold.receipt")

_callbacks_lock = threading.Lock()


def _renew_lock() -> None:
    # Another thread of the parent may have held it at the fork, and does not exist in the child.
    global _callbacks_lock  # noqa: PLW0603
    _callbacks_lock = threading.Lock()


os.register_at_fork(after_in_child=_renew_lock)


class Applied(msgspec.Struct, frozen=True):
    """One event, folded into one key and committed.

    Attributes:
        projection: The name of the projection.
        key: The key.
        epoch: The epoch of the row.
        version: The version of the row right after this event.
        delta: The delta that subscribers see, read back from its JSON: as the type that ``apply`` is
            annotated to return, else as plain dicts, lists and scalars. It is a copy; changing it changes
            nothing else.
    """

    projection: str
    key: str
    epoch: str
    version: int
    delta: Any


class Receipt(msgspec.Struct, eq=False, gc=False):
    """The outcome of one dispatch, in the shape of ``concurrent.futures.Future``.

    It is done when every projection that the event reached has committed it, or failed to. (It is a Struct,
    since one is made for every event: C makes it in a third of the time that an ``__init__`` takes.)
    """

    _callbacks: list[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'done' if self.done() else 'under way'}>"

    def done(self) -> bool:
        """Return whether the outcome is known."""
        raise NotImplementedError

    def _outcome(self) -> tuple[Applied, ...]:
        """Return the changes, or raise the error. Called only when done."""
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> tuple[Applied, ...]:
        """Wait for the commit and return the changes.

        Args:
            timeout: Seconds to wait; None: without a limit.

        Returns:
            One Applied per projection and key that the event reached.

        Raises:
            TimeoutError: The timeout is over. The event stays accepted, and will be committed.
            WouldDeadlock: Called in ``apply``, a hook or a callback, before the outcome is known.
            ProjectionError: The error of the first projection that failed: ApplyError, BroadcastError,
                KeyHalted, StoreError, MailboxFull or Closed. Each call raises an error object of its own.
        """
        if not self.done():
            self._wait(timeout)
        return self._outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait as ``result`` does, and return the error instead of raising it; None if there is none."""
        if not self.done():
            self._wait(timeout)
        try:
            self._outcome()
        except Exception as error:
            return error.with_traceback(None)
        return None

    def add_done_callback(self, fn: Callable[[Receipt], object]) -> None:
        """Call ``fn(receipt)`` when the Receipt is done; at once if it is.

        Callbacks run in the order in which they were added.

        Args:
            fn: Called on a dispatcher thread, or here if the Receipt is done: it should be short and never
                wait. An exception is logged.
        """
        self._when_done(lambda: fn(self))

    def _when_done(self, callback: Callable[[], object]) -> None:
        # Here the callback is appended before the outcome is looked at; the resolver sets the outcome before
        # it takes the callbacks. So one of the two sees the other, and list.pop makes sure that only one
        # calls.
        if self._callbacks is None:
            with _callbacks_lock:
                if self._callbacks is None:
                    self._callbacks = []
        self._callbacks.append(callback)
        if self.done():
            self._run_callbacks()

    def _run_callbacks(self) -> None:
        callbacks = self._callbacks
        while callbacks:
            try:
                callback = callbacks.pop(0)
            except IndexError:
                return
            try:
                callback()
            except BaseException:  # not even SystemExit may stop the actor that resolves it
                _logger.exception("a callback of a Receipt raised")

    def _wait(self, timeout: float | None) -> None:
        if on_dispatcher_thread():
            attempt = "waiting for a Receipt"
            raise WouldDeadlock(attempt)
        if timeout is None or timeout > 0:
            resolved = threading.Lock()
            resolved.acquire()
            wake = resolved.release
            seconds = -1 if timeout is None else min(timeout, threading.TIMEOUT_MAX)
            try:
                self._when_done(wake)
                if resolved.acquire(timeout=seconds):
                    return
            finally:
                # A Receipt that is polled must not keep a callback of each poll.
                if self._callbacks:
                    with suppress(ValueError):
                        self._callbacks.remove(wake)
        if not self.done():
            msg = f"projection: not committed within {timeout} s; the event stays accepted"
            raise TimeoutError(msg)


class Delivery(Receipt, eq=False, kw_only=True, gc=False):
    """One event on its way to one key: the message in the mailbox, and the Receipt of that part.

    It is one object for both, since one is made for every event, and no allocation is hotter. The garbage
    collector does not track it, as it would walk 100,000 of them again and again. No cycle through it lasts:
    its callbacks are removed when it is done, and its event when that is committed.
    """

    event: Any
    _resolution: Committed | Exception | None = None
    _index: int = 0

    def done(self) -> bool:
        return self._resolution is not None

    is_over = done

    def result(self, timeout: float | None = None) -> tuple[Applied, ...]:
        resolution = self._resolution
        if resolution is None:
            self._wait(timeout)
            resolution = self._resolution
        if type(resolution) is not Committed:
            return self._outcome()  # raises
        index = self._index
        try:  # as applied_of, without its call: this runs once for each event
            delta = resolution.decode_delta(resolution.deltas[index])
        except Exception:
            return self._outcome()
        version = resolution.base_version + index + 1
        return (Applied(resolution.projection, resolution.key, resolution.epoch, version, delta),)

    @staticmethod
    def commit(deliveries: Sequence[Delivery], committed: Committed) -> None:
        """Resolve all of them: each event became the delta at its own index of the commit.

        A delivery that has an outcome keeps it: a close that ran out of time may have failed it.
        """
        for index, delivery in enumerate(deliveries):
            if delivery._resolution is None:  # noqa: SLF001  # its own class
                delivery._index = index  # noqa: SLF001
                delivery._resolution = committed  # noqa: SLF001
                delivery.event = None
            if delivery._callbacks:  # noqa: SLF001
                delivery._run_callbacks()  # noqa: SLF001

    def fail(self, error: Exception) -> None:
        """Resolve with an error, unless there is an outcome already."""
        if self._resolution is None:
            self._resolution = error
        if self._callbacks:
            self._run_callbacks()

    def _outcome(self) -> tuple[Applied, ...]:
        resolution = self._resolution
        if isinstance(resolution, Exception):
            raise twin_of(resolution)
        assert resolution is not None, "asked for the outcome before it was done"  # noqa: S101
        return (applied_of(resolution, self._index),)


class JointReceipt(Receipt, eq=False, kw_only=True, gc=True):
    """The Receipt of an event that reached several keys, or none."""

    parts: Sequence[Delivery]
    _known: int = 0
    _watches: bool = False

    def done(self) -> bool:
        # Every part before ``_known`` was seen to be done, and stays so: each is looked at once, and not once
        # per other part.
        parts, known = self.parts, self._known
        while known < len(parts) and parts[known].done():
            known += 1
        self._known = known
        return known == len(parts)

    def _when_done(self, callback: Callable[[], object]) -> None:
        if not self._watches and not self.done():
            for part in self.parts:
                part._when_done(self._part_is_done)  # noqa: SLF001
            self._watches = True  # last: if this was interrupted, the next one watches them once more
        Receipt._when_done(self, callback)  # noqa: SLF001

    def _part_is_done(self) -> None:
        # The last part, or one of several last ones at the same moment: running the callbacks twice is
        # harmless.
        if self.done():
            self._run_callbacks()

    def _outcome(self) -> tuple[Applied, ...]:
        return tuple(applied for part in self.parts for applied in part._outcome())  # noqa: SLF001


def applied_of(committed: Committed, index: int) -> Applied:
    """Return the change that the event at this index of a commit made."""
    encoded = committed.deltas[index]
    try:
        delta = committed.decode_delta(encoded)
    except Exception:
        # It is committed, so this is no error of the event: a decode hook fails at the moment, for instance.
        delta = msgspec.json.decode(encoded)
    version = committed.base_version + index + 1
    return Applied(committed.projection, committed.key, committed.epoch, version, delta)


def twin_of(error: Exception) -> Exception:
    """Return an error like this one, with the same cause and attributes, and no traceback.

    All Receipts of a failed batch share one error. If each raised that one, its traceback would grow with
    every request that asks for the result, and hold the local variables of all of them.
    """
    try:
        twin: Exception = type(error).__new__(type(error), *error.args)
        vars(twin).update(vars(error))
        if notes := getattr(error, "__notes__", None):
            twin.__notes__ = list(notes)
        twin.__cause__, twin.__context__ = error.__cause__, error.__context__
        twin.__suppress_context__ = error.__suppress_context__
    except Exception:
        return error.with_traceback(None)
    return twin
