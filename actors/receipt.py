"""The Receipt of a dispatch: a future that the commit resolves."""

from __future__ import annotations

import logging
import threading
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from .dispatcher import on_dispatcher_thread
from .errors import WouldDeadlock

if TYPE_CHECKING:
    from .broadcaster import Committed

_logger = logging.getLogger("keyfold.receipt")

_callbacks_lock = threading.Lock()


class Applied(msgspec.Struct, frozen=True):
    """One event, folded into one key and committed.

    ``version`` is the row's version right after this event. ``delta`` is what subscribers see: the
    delta read back from its JSON, as the type that ``apply`` is annotated to return, else as plain
    dicts, lists and scalars. It is a copy; changing it changes nothing else.
    """

    projection: str
    key: str
    epoch: str
    version: int
    delta: Any


class Receipt(msgspec.Struct, eq=False):
    """The outcome of one dispatch, in the shape of ``concurrent.futures.Future``.

    It is done when every projection that the event reached has committed it, or failed to. (A Struct, as
    one is made for every event: C makes it in a third of the time that an ``__init__`` takes.)
    """

    _callbacks: list[Callable[[], object]] | None = None

    def __repr__(self) -> str:
        return f"<{type(self).__name__}: {'done' if self.done() else 'under way'}>"

    def done(self) -> bool:
        """Return whether the outcome is known."""
        raise NotImplementedError

    def _outcome(self) -> tuple[Applied, ...]:
        """Return what was applied, or raise what failed. Called only when done."""
        raise NotImplementedError

    def result(self, timeout: float | None = None) -> tuple[Applied, ...]:
        """Wait for the commit and return what was applied, an item a projection and key.

        Raises TimeoutError after ``timeout`` seconds (the event stays accepted, and will be
        committed), or the error of the first projection that failed: ApplyError, BroadcastError,
        StoreError, MailboxFull, Closed.
        """
        if not self.done():
            self._wait(timeout)
        return self._outcome()

    def exception(self, timeout: float | None = None) -> BaseException | None:
        """Wait like result, and return the error instead of raising it, or None."""
        if not self.done():
            self._wait(timeout)
        try:
            self._outcome()
        except Exception as error:
            return error
        return None

    def add_done_callback(self, fn: Callable[[Receipt], object]) -> None:
        """Call ``fn(receipt)`` when done: at once if it is, else in the thread that resolves it.

        Callbacks run in the order they were added; one that raises is logged. They run on a
        dispatcher thread: keep them short, and never wait in them.
        """
        self._when_done(lambda: fn(self))

    def _when_done(self, callback: Callable[[], object]) -> None:
        # Append first, look second; the resolver sets the outcome first and takes callbacks second.
        # So one of the two sees the other, and list.pop makes sure that only one calls.
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
            except BaseException:  # not even SystemExit may stop the actor that settles
                _logger.exception("a callback of a Receipt raised")

    def _wait(self, timeout: float | None) -> None:
        if on_dispatcher_thread():
            what = "waiting for a Receipt"
            raise WouldDeadlock(what)
        resolved = threading.Lock()
        resolved.acquire()
        self._when_done(resolved.release)
        if not resolved.acquire(timeout=-1 if timeout is None else max(0.0, timeout)) and not self.done():
            msg = f"projection: not committed within {timeout} s; the event stays accepted"
            raise TimeoutError(msg)


class Delivery(Receipt, eq=False, kw_only=True):
    """One event on its way to one key: the message in the mailbox, and the Receipt of that part.

    One object for both, since one is made for every event: it is the hottest allocation there is.
    """

    event: Any
    _settled: Committed | Exception | None = None
    _index: int = 0

    def done(self) -> bool:
        return self._settled is not None

    @staticmethod
    def commit(deliveries: Sequence[Delivery], committed: Committed) -> None:
        """Resolve all: each event became the delta of the committed turn at its own place."""
        for index, delivery in enumerate(deliveries):
            delivery._index = index  # noqa: SLF001  # its own class
            delivery._settled = committed  # noqa: SLF001
            if delivery._callbacks:  # noqa: SLF001
                delivery._run_callbacks()  # noqa: SLF001

    def fail(self, error: Exception) -> None:
        """Resolve with an error."""
        self._settled = error
        if self._callbacks:
            self._run_callbacks()

    def _outcome(self) -> tuple[Applied, ...]:
        settled = self._settled
        if isinstance(settled, Exception):
            raise settled
        assert settled is not None, "asked for the outcome before it was done"  # noqa: S101
        index = self._index
        delta = settled.decode_delta(settled.deltas[index])
        version = settled.base_version + index + 1
        return (Applied(settled.projection, settled.key, settled.epoch, version, delta),)


class JointReceipt(Receipt, eq=False, kw_only=True):
    """The Receipt of an event that reached several keys, or none."""

    parts: Sequence[Delivery]

    def __post_init__(self) -> None:
        for part in self.parts:
            part._when_done(self._part_is_done)  # noqa: SLF001

    def done(self) -> bool:
        return all(part.done() for part in self.parts)

    def _part_is_done(self) -> None:
        # The last part, or one of the last at the same moment: running the callbacks twice is harmless.
        if self.done():
            self._run_callbacks()

    def _outcome(self) -> tuple[Applied, ...]:
        return tuple(applied for part in self.parts for applied in part._outcome())  # noqa: SLF001
