"""The class that an app writes: how events fold into the state of a key."""

from __future__ import annotations

import inspect
import types
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable
from typing import Any, ClassVar, Generic, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from ..store.validation import check_name
from .errors import InvalidProjection

EventT = TypeVar("EventT")
StateT = TypeVar("StateT")


class Projection(ABC, Generic[EventT, StateT]):
    """A read model: one state per key, folded from events.

    Subclass it with the event type (or a union of them) and the state type, give it a ``name``, and
    write ``key`` and ``apply``::

        class WarehouseStock(Projection[StockAdjusted, Stock]):
            name = "inventory.warehouse"

            def key(self, event: StockAdjusted) -> str:
                return event.warehouse

            def apply(self, state: Stock, event: StockAdjusted) -> dict[str, int]:
                state.totals[event.sku] = state.totals.get(event.sku, 0) + event.by
                return {event.sku: state.totals[event.sku]}

    An instance is shared by all threads: keep no state of your own in it.
    """

    name: str
    """A dotted name, unique in the system: part of the row, the channel and the URL."""

    events: type[Any] | tuple[type[Any], ...]
    """The event types that are folded, subclasses included. Derived from the type argument."""

    state_type: Callable[[], Any]
    """Called without arguments for a new key; rows are decoded into it. Derived from the type argument."""

    public: ClassVar[bool] = False
    """True: every client may subscribe and read.

    Otherwise the ``authorize`` callable of the web part decides.
    """

    broadcast_event_name: ClassVar[str] = "delta"
    """The value of the ``event`` field in delta messages."""

    on_error: ClassVar[Literal["dead_letter", "halt"]] = "dead_letter"
    """The consequence of an event that can't be folded. ``"dead_letter"``: it is kept in the database for an
    operator, and the next events are folded. ``"halt"``: it halts its key; the events behind it are parked in
    the database until an operator retries or skips it."""

    schema_version: ClassVar[int] = 1
    """The shape of the state. Raise it when rows that exist no longer fit, and write ``upgrade``."""

    verify: ClassVar[bool] = True
    """Whether each state is read back before it is committed, once per commit, so that every committed state
    can be loaded again. False saves that time where states are large; the stats of the projection say so."""

    encode_hook: Callable[[Any], Any] | None = None
    """Turns an object that JSON has no form for into one that has (msgspec's ``enc_hook``)."""

    decode_hook: Callable[[type[Any], Any], Any] | None = None
    """``(type, plain) -> object``, the way back (msgspec's ``dec_hook``)."""

    def key(self, event: EventT) -> str | None:  # noqa: ARG002
        """Return the key that the event belongs to, or None if it is not for this projection.

        Called on the thread that dispatches the event. Deterministic and fast.
        """
        msg = f"{type(self).__name__} must define key(event), or keys(event) for several keys"
        raise InvalidProjection(msg)

    def keys(self, event: EventT) -> Iterable[str]:
        """Return the keys that the event belongs to, each once.

        Override it instead of ``key`` for several keys.
        """
        key = self.key(event)
        return () if key is None else (key,)

    @abstractmethod
    def apply(self, state: StateT, event: EventT) -> Any:
        """Change ``state`` in place by the event, and return the delta that subscribers are sent.

        Must be synchronous and deterministic and do no I/O: after a conflict or a poison event it runs again,
        on a state read back from the row. State and delta must be objects that msgspec can encode as JSON. An
        exception makes the event a dead letter, or halts the key: see ``on_error``.

        Args:
            state: The state of the key, or a new one.
            event: The event.

        Returns:
            The delta. Annotate its type: Receipts decode it as that.
        """

    def upgrade(self, state: Any, from_version: int) -> Any:
        """Return a state of an older schema in the shape of ``schema_version``.

        Called whenever such a row is read, by actors and by readers; the next event writes the row in the new
        shape. Must be deterministic and do no I/O.

        Args:
            state: The state as plain JSON values.
            from_version: The schema version of the row.

        Returns:
            Plain JSON values, or a state.
        """
        msg = (
            f"the row has schema {from_version}, "
            f"and {type(self).__name__} has no upgrade(state, from_version)"
        )
        raise NotImplementedError(msg)

    def history(self, key: str) -> Iterable[EventT] | None:  # noqa: ARG002
        """Return all events of a key, oldest first, if the app keeps them somewhere; else None.

        Override it to let operators rebuild a key from the admin page and the command line.
        """
        return None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        arguments = _type_arguments(cls)
        if arguments is None:
            return
        events, state = arguments
        if "events" not in cls.__dict__ and not isinstance(events, TypeVar):
            cls.events = _event_types(cls, events)
        if "state_type" not in cls.__dict__ and not isinstance(state, TypeVar):
            cls.state_type = state


def _type_arguments(cls: type) -> tuple[Any, Any] | None:
    """Return the two arguments of Projection[...] among the direct bases of cls, if they are there."""
    for base in getattr(cls, "__orig_bases__", ()):
        origin = get_origin(base)
        if isinstance(origin, type) and issubclass(origin, Projection):
            arguments = get_args(base)
            if len(arguments) == 2:  # noqa: PLR2004
                return arguments
    return None


def _event_types(cls: type, annotation: Any) -> type[Any] | tuple[type[Any], ...]:
    annotation = getattr(annotation, "__value__", annotation)  # a `type` alias of Python 3.12
    members = get_args(annotation) if get_origin(annotation) in (Union, types.UnionType) else (annotation,)
    classes = tuple(get_origin(member) or member for member in members)
    for member in classes:
        if not isinstance(member, type):
            msg = (
                f"{cls.__name__}: the event type {member!r} is no class; "
                "set the attribute events = (TypeA, TypeB) instead"
            )
            raise InvalidProjection(msg)
    return classes[0] if len(classes) == 1 else classes


def event_types(projection: Projection[Any, Any]) -> tuple[type[Any], ...]:
    """Return the event types of a projection as a tuple."""
    events = projection.events
    return events if isinstance(events, tuple) else (events,)


def overrides_keys(projection: Projection[Any, Any]) -> bool:
    """Return whether the projection routes an event to several keys."""
    return type(projection).keys is not Projection.keys


def check_projection(projection: object) -> Projection[Any, Any]:
    """Return projection if it can run. Raises InvalidProjection that names the missing part."""
    if isinstance(projection, type):
        msg = f"register an instance: {projection.__name__}(), not the class"
        raise InvalidProjection(msg)
    if not isinstance(projection, Projection):
        msg = f"{projection!r} is no Projection"
        raise InvalidProjection(msg)
    class_name = type(projection).__name__
    if not hasattr(projection, "name"):
        msg = f"{class_name} has no name: set the attribute name = 'some.name'"
        raise InvalidProjection(msg)
    check_name(projection.name)
    if projection.name.split(".")[0] == "keyfold":
        msg = f"{class_name}: names that begin with keyfold are Keyfold's own; call it something else"
        raise InvalidProjection(msg)
    if not hasattr(projection, "events") or not hasattr(projection, "state_type"):
        wanted = f"write class {class_name}(Projection[EventType, StateType]), or set events and state_type"
        msg = f"{class_name}: {wanted}"
        raise InvalidProjection(msg)
    if inspect.iscoroutinefunction(projection.apply):
        msg = f"{class_name}.apply must be a plain function, not async"
        raise InvalidProjection(msg)
    if type(projection).key is Projection.key and not overrides_keys(projection):
        msg = f"{class_name} must define key(event), or keys(event) for several keys"
        raise InvalidProjection(msg)
    _check_options(projection, class_name)
    return projection


def _check_options(projection: Projection[Any, Any], class_name: str) -> None:
    if projection.on_error not in ("dead_letter", "halt"):
        msg = f'{class_name}.on_error must be "dead_letter" or "halt", not {projection.on_error!r}'
        raise InvalidProjection(msg)
    if not isinstance(projection.verify, bool):
        msg = f"{class_name}.verify must be True or False, not {projection.verify!r}"
        raise InvalidProjection(msg)
    version = projection.schema_version
    if not isinstance(version, int) or isinstance(version, bool) or version < 1:
        msg = f"{class_name}.schema_version must be a whole number of at least 1, not {version!r}"
        raise InvalidProjection(msg)


def delta_type(projection: Projection[Any, Any]) -> Any:
    """Return the type that ``apply`` is annotated to return, or Any if there is none that can be resolved."""
    try:
        hints = get_type_hints(projection.apply)
    except Exception:
        # Names that exist for type checkers only; the delta is then read back as plain JSON.
        return Any
    return hints.get("return", Any)
