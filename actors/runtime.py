"""A registered projection: the door to its keys."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING, Any, Generic, NoReturn

from ..store import Position, ProjectionError, Snapshot, StoreError
from ..store.codec import Codec
from ..store.errors import describe
from ..store.rows import Row, new_epoch
from ..store.validation import check_key
from .dead_letters import DeadLetters
from .errors import (
    InvalidEvent,
    InvalidState,
    StateNotFound,
    WouldDeadlock,
    apply_error,
    undecodable_row,
)
from .event_bus import MAX_CLASSES
from .event_check import EventCheck, has_json_form, make_event_check
from .key_actor.commands import TOMBSTONE, Repair, Replacement
from .pool.threads import on_dispatcher_thread
from .projection import EventT, Projection, StateT, event_types, overrides_keys
from .projection_codec import ProjectionCodec
from .receipt import Applied, Delivery, JointReceipt, Receipt
from .upkeep.degraded import Degraded

if TYPE_CHECKING:
    from .supervisor import Supervisor
    from .system import ProjectionSystem


class ProjectionRuntime(Generic[EventT, StateT]):
    """One projection in one system. Made by ``ProjectionSystem.register``; safe from any thread.

    Reads return the committed state, never the working state of an actor. It imports many modules, since it
    is the door of an app to all that the library does with one projection.
    """

    def __init__(self, projection: Projection[EventT, StateT], system: ProjectionSystem) -> None:
        self.projection = projection
        self.name = projection.name
        self.event_types = event_types(projection)
        self.codec = ProjectionCodec(projection)
        self.hooks: list[Callable[[str, Any], object]] = []
        self.dead_letters = DeadLetters(self, system)
        self.degraded = Degraded()
        """The keys whose rows do not load, as far as this process has met them."""
        self.supervisor: Supervisor | None = None
        """Set while the system runs in this process, so that the hot path asks for nothing else."""
        self._system = system
        self._checks: dict[type[Any], EventCheck] = {}

    # -- the life of the system

    def attach(self, supervisor: Supervisor | None) -> None:
        """Give events to this supervisor from now on; None: the next event starts the system."""
        self.supervisor = supervisor

    def after_fork(self) -> None:
        """Drop everything that belongs to the parent process. Called in a forked child."""
        self.supervisor = None
        self.degraded = Degraded()

    # -- events

    def apply_event(self, event: EventT, timeout: float | None = None) -> tuple[Applied, ...]:
        """Fold an event into this projection only, without the bus, and wait for the commit.

        Args:
            event: An event of one of the projection's event types.
            timeout: Seconds to wait; None: without a limit.

        Returns:
            The change of each key that the event belongs to.

        Raises:
            InvalidEvent: The event is of another type; and everything that ``EventBus.dispatch`` and
                ``Receipt.result`` raise.
        """
        if not isinstance(event, self.event_types):
            names = ", ".join(event_type.__qualname__ for event_type in self.event_types)
            msg = f"{self.name}: it folds {names}, not {type(event).__qualname__}"
            raise InvalidEvent(msg, event=event, projection=self.name)
        return self.accept(event).result(timeout)

    def accept(self, event: EventT) -> Receipt:
        """Accept an event as the bus does, and return its Receipt. Raises as ``EventBus.dispatch``."""
        return self.acceptor(type(event))(event)

    def acceptor(self, event_class: type[Any]) -> Callable[[Any], Receipt]:
        """Return a function that accepts events of exactly this class.

        A dispatch calls it, on its own thread.
        """
        if overrides_keys(self.projection):
            return self._accept_many
        # Everything that does not depend on the event is looked up here, once.
        key_of, check, name = self.projection.key, self._check_of(event_class), self.name

        def accept(event: Any) -> Receipt:
            try:
                key = key_of(event)
            except Exception as cause:
                self._no_key(event, cause)
            if key is None:
                return JointReceipt(parts=())
            if type(key) is not str:
                key = check_key(key, projection=name)
            if (reason := check(event)) is not None:
                self._refuse(event, reason)
            return (self.supervisor or self._start()).deliver(key, event)

        return accept

    def _accept_many(self, event: EventT) -> Receipt:
        parts: list[Delivery] = []
        self.deliver_into(parts, event)
        return parts[0] if len(parts) == 1 else JointReceipt(parts=parts)

    def deliver_into(self, parts: list[Delivery], event: EventT) -> None:
        """Deliver an event to each of its keys and append the Receipts to ``parts``.

        A refusal raises while ``parts`` is empty. Otherwise it is appended as a Receipt that failed, since
        another key has the event already.

        Args:
            parts: The Receipts of the keys that took the event before. Appended to.
            event: The event.
        """
        try:
            keys = self._keys_of(event)
            if keys and (reason := self._check_of(type(event))(event)) is not None:
                self._refuse(event, reason)
            supervisor = self.supervisor or self._start()
            for key in keys:
                parts.append(supervisor.deliver(key, event))  # noqa: PERF401  # those before a refusal
        except ProjectionError as refusal:
            if not parts:
                raise
            refused = Delivery(event=event)
            refused.fail(refusal)
            parts.append(refused)

    def _check_of(self, event_class: type[Any]) -> EventCheck:
        """Return the check whether an event of this class can be kept, and read back to be folded later."""
        known = self._checks.get(event_class)
        if known is not None:
            return known
        try:
            codec: Codec | None = self.codec.codec_of(event_class)
        except Exception:
            codec = None  # msgspec knows nothing of the class
        # A key that halts parks its events, which have to be folded later: it takes no classes without JSON.
        required = self.projection.on_error == "halt" and not has_json_form(event_class)
        check = make_event_check(event_class, codec, self._system.settings.event_bytes, required=required)
        if len(self._checks) >= MAX_CLASSES:
            self._checks = {}  # the classes of an app that makes them as it goes must not pile up
        self._checks[event_class] = check
        return check

    def _refuse(self, event: EventT, reason: str) -> NoReturn:
        msg = f"{self.name}: {type(event).__qualname__} can't be accepted: {reason}"
        raise InvalidEvent(msg, event=event, projection=self.name)

    def _keys_of(self, event: EventT) -> dict[str, None]:
        try:
            keys = self.projection.keys(event)
            if isinstance(keys, str):
                msg = (
                    f"keys() returned the str {keys!r}: return a list or tuple of keys, or define key(event)"
                )
                raise TypeError(msg)
            # Each once, and all checked before the first takes the event.
            return dict.fromkeys([check_key(key, projection=self.name) for key in keys])
        except Exception as cause:
            self._no_key(event, cause)

    def _no_key(self, event: EventT, cause: Exception) -> NoReturn:
        if isinstance(cause, ProjectionError):
            raise cause
        msg = f"{self.name}: key() raised for {type(event).__qualname__}: {describe(cause)}"
        raise InvalidEvent(msg, event=event, projection=self.name) from cause

    def running(self) -> Supervisor:
        """Return the supervisor of this process, started if need be. Raises Closed, StoreError."""
        return self.supervisor or self._start()

    def decode_event(self, data: str | bytes, event_type: str | None = None) -> EventT:
        """Return an event of this projection from its JSON.

        Args:
            data: The JSON.
            event_type: The name of its class, with or without its module. None if there is only one class.

        Raises:
            InvalidEvent: The JSON does not decode, or no event type has this name.
        """
        known = _with_subclasses(self.event_types)
        if event_type is None and len(known) > 1:
            names = ", ".join(sorted(cls.__qualname__ for cls in known))
            msg = f"{self.name}: say which event this is, one of {names}"
            raise InvalidEvent(msg, event=data, projection=self.name)
        for cls in known:
            if event_type is None or _is_named(cls, event_type):
                try:
                    event: EventT = self.codec.codec_of(cls).decode(data)
                except ValueError as cause:
                    msg = f"{self.name}: this {cls.__qualname__} does not decode: {describe(cause)}"
                    raise InvalidEvent(msg, event=data, projection=self.name) from cause
                return event
        msg = f"{self.name}: {event_type} is no event of it"
        raise InvalidEvent(msg, event=data, projection=self.name)

    def _start(self) -> Supervisor:
        self._system.start()
        assert self.supervisor is not None  # noqa: S101
        return self.supervisor

    # -- reading

    def read(self, key: str) -> StateT | None:
        """Return the newest committed state of a key, or None if it has none.

        Raises:
            InvalidKey: The key is none.
            StoreError: The database is not available, or the row does not decode.
        """
        snapshot = self.snapshot(key)
        return None if snapshot is None else snapshot.state

    def read_required(self, key: str) -> StateT:
        """Return the newest committed state of a key, as ``read``. Raises StateNotFound if it has none."""
        snapshot = self.snapshot(key)
        if snapshot is None:
            msg = f"{self.name}: key {key!r} has no state"
            raise StateNotFound(msg, projection=self.name, key=key)
        return snapshot.state

    def snapshot(self, key: str) -> Snapshot[StateT] | None:
        """Return the newest committed state of a key with its epoch, version and time, or None.

        Raises as ``read``.
        """
        row = self._system.read_row(self.name, check_key(key, projection=self.name))
        if row is None or row.is_tombstone:
            self.degraded.clear(key)
            return None
        return Snapshot(self._decode(key, row), row.epoch, row.version, row.updated_at)

    def _decode(self, key: str, row: Row) -> StateT:
        try:
            state: StateT = self.codec.state.decode(row.state)
        except Exception as cause:
            raise self.degraded.note(key, undecodable_row(self.name, key, row.position, cause)) from cause
        self.degraded.clear(key)
        return state

    def upgraded(self, key: str, row: Row) -> Row:
        """Return the row with its state in the shape of this release. Updates ``degraded``.

        Args:
            key: The key of the row.
            row: The row as it was read.

        Raises:
            StoreError: The row is of a newer release, or can't be upgraded. The message names the key.
        """
        try:
            return self.codec.upgraded(row)
        except StoreError as error:
            self.degraded.note(key, error)
            raise
        except Exception as cause:
            raise self.degraded.note(key, undecodable_row(self.name, key, row.position, cause)) from cause

    def examine(self, key: str, row: Row | None) -> str | None:
        """Return the reason why the row of a key does not load; None if it does. Updates ``degraded``.

        Args:
            key: A key of this projection.
            row: The row as it was read just now; None if there is none.
        """
        if row is None or row.is_tombstone:
            self.degraded.clear(key)
            return None
        try:
            self._decode(key, self.upgraded(key, row))
        except StoreError as error:
            return str(error)
        return None

    # -- replacing

    def rebuild(self, key: str, events: Iterable[EventT]) -> StateT:
        """Put the fold of these events in place of the present state of a key, in one transaction.

        The key gets a new epoch and the number of events as version; subscribers get one snapshot.
        Events dispatched before are overwritten, later ones fold on top. A halted key stays halted, with its
        parked events, until they are retried or skipped.

        Args:
            key: The key to rebuild.
            events: All events of the key, oldest first. If there are none, the key is wiped.

        Returns:
            The new state.

        Raises:
            InvalidEvent: An event is not for this key. Nothing was written.
            ApplyError: An event can't be folded. Nothing was written.
            BroadcastError: The state is committed, but could not be shown.
            StoreError: The database refuses the state, or the system was closed before it came back.
        """
        key = check_key(key, projection=self.name)
        state: StateT = self.projection.state_type()
        version, event = 0, None
        for version, event in enumerate(events, 1):
            if key not in self._keys_of(event):
                msg = f"{self.name}: event {version} of the rebuild, {event!r}, is not for key {key!r}"
                raise InvalidEvent(msg, event=event, projection=self.name, key=key)
            try:
                self.projection.apply(state, event)
            except Exception as cause:
                raise apply_error(self.name, key, version, event, cause, is_letter=False) from cause
        try:
            encoded = self.codec.encode_state(state) if version else TOMBSTONE
        except Exception as cause:
            raise apply_error(self.name, key, version, event, cause, is_letter=False) from cause
        self._replace(key, version, encoded)
        return state

    def repair(self, key: str, data: str | bytes) -> StateT:
        """Put a state given as JSON in place of the present state of key, also if its row does not load.

        The key gets a new epoch; the version stays that of the row, as it counts the events folded into it
        (1 if there is no row). Subscribers get one snapshot. Events committed since the row was looked at
        are overwritten, later ones fold on top. A halted key stays halted, with its parked events, until
        they are retried or skipped.

        Args:
            key: The key to repair. Its row need not decode.
            data: The state as JSON, in the shape of this release's state type.

        Returns:
            The state, decoded.

        Raises:
            InvalidKey: The key is none.
            InvalidState: ``data`` does not decode as the state type, or could not be read back once it is
                written. Nothing was written.
            BroadcastError: The state is committed, but could not be shown.
            StoreError: The database refuses the state, or the system was closed before it came back.
        """
        key = check_key(key, projection=self.name)
        try:
            state: StateT = self.codec.state.decode(data)
            encoded = self.codec.encode_state(state)
        except Exception as cause:
            msg = f"{self.name}: this is no state for key {key!r}: {describe(cause)}"
            raise InvalidState(msg, data=data, projection=self.name, key=key) from cause
        self._put_in_place(key, Repair(encoded))
        return state

    def wipe(self, key: str) -> None:
        """Delete the state of a key.

        The row stays as a tombstone: version 0 and a new epoch. Raises as ``rebuild``.
        """
        self._replace(check_key(key, projection=self.name), 0, TOMBSTONE)

    def _replace(self, key: str, version: int, state: bytes) -> None:
        self._put_in_place(key, Replacement(Position(new_epoch(), version), state))

    def _put_in_place(self, key: str, replacement: Replacement) -> None:
        if on_dispatcher_thread():
            attempt = "rebuilding, repairing or wiping a key"
            raise WouldDeadlock(attempt, projection=self.name, key=key)
        self.running().command(key, replacement)
        replacement.done.result()

    # -- hooks

    def on_applied(self, hook: Callable[[str, StateT], object]) -> Callable[[str, StateT], object]:
        """Call ``hook(key, state)`` after each commit was broadcast. A commit may hold several events.

        Args:
            hook: Called on a dispatcher thread. The state is the actor's own: read it, render it, don't
                change it. An exception of the hook is logged and counted.

        Returns:
            The hook, so that this can be used as a decorator.
        """
        self.hooks.append(hook)
        return hook


def _is_named(cls: type[Any], name: str) -> bool:
    """Return whether the name in a letter means this class.

    Other processes import __main__ by another name.
    """
    module = name.removesuffix(cls.__qualname__)
    if module == name or not (module == "" or module.endswith(".")):
        return False
    return module in ("", f"{cls.__module__}.", "__main__.") or cls.__module__ == "__main__"


def _with_subclasses(classes: tuple[type[Any], ...]) -> list[type[Any]]:
    found: dict[type[Any], None] = {}
    waiting = list(classes)
    while waiting:
        cls = waiting.pop()
        if cls not in found:
            found[cls] = None
            waiting += type.__subclasses__(cls)
    return list(found)
