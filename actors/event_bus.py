"""The bus: it takes an event to its listeners and projections."""

from __future__ import annotations

import threading
from collections.abc import Callable
from typing import TYPE_CHECKING, Any, NamedTuple, TypeVar

from .errors import AlreadyRegistered, InvalidEvent, InvalidProjection
from .receipt import Delivery, JointReceipt, Receipt

if TYPE_CHECKING:
    from .runtime import ProjectionRuntime

EventT = TypeVar("EventT")
Listener = Callable[[Any], object]
"""A function of the app. ``dispatch`` calls it, on the thread of the caller."""
ListenerT = TypeVar("ListenerT", bound=Listener)
Route = Callable[[Any], Receipt]
"""Takes the events of one class. ``dispatch`` calls it, on the thread of the caller."""


MAX_CLASSES = 1_000
"""How many event classes are known at once. One more, and the routes of all of them are looked up again."""


class _Registration(NamedTuple):
    event_type: type[Any]
    priority: int
    number: int
    listener: Listener | None
    runtime: ProjectionRuntime[Any, Any] | None


class EventBus:
    """Takes domain events from request handlers to listeners and projections. Safe from any thread.

    Routing is by class, base classes included: a listener for a base gets its subclasses. Higher
    priority goes first, equal priority in the order of registration; projections have priority 0.
    """

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._registrations: list[_Registration] = []
        self._number = 0
        # The function that dispatch calls for each class. The map is replaced, never cleared: see
        # _find_route.
        self._routes: dict[type[Any], Route] = {}

    def dispatch(self, event: object) -> Receipt:
        """Give an event to the listeners and projections of its class.

        Returns as soon as every projection has the event in a mailbox; ``receipt.result()`` waits for the
        commit. Plain listeners run here, on the caller's thread; the first one that raises stops the rest,
        and its error leaves dispatch (give a listener that may veto a priority above 0). If one projection or
        key took the event before another refused it, nothing is raised here: the Receipt reports the refusal.

        Args:
            event: An object, of any class.

        Returns:
            The Receipt of all projections. It is done and empty if there are no listeners and projections.

        Raises:
            InvalidEvent: It is no event, a projection's ``key`` could not make a key of it, or it can't be
                kept.
            InvalidKey: A projection's ``key`` returned a key that can't be one.
            MailboxFull: A projection had no room within the dispatch timeout.
            Closed: The system is closed.
            StoreError: The first dispatch of a process starts the system, and the tables can't be made.
        """
        route = self._routes.get(type(event))
        if route is None:
            route = self._find_route(type(event), event)
        return route(event)

    def listen(
        self, event_type: type[EventT], listener: Callable[[EventT], object], *, priority: int = 0
    ) -> None:
        """Call ``listener(event)`` for each event of this type.

        Args:
            event_type: A class. Events of its subclasses are included.
            listener: Called on the thread that dispatches the event. An exception leaves the dispatch.
            priority: Listeners of a higher priority are called first; projections have 0.

        Raises:
            InvalidProjection: The type is no class, or the listener is not callable.
        """
        if not callable(listener):
            msg = f"a listener must be callable, {listener!r} is not"
            raise InvalidProjection(msg)
        self._register(event_type, priority, listener, None)

    def on(self, event_type: type[Any], *, priority: int = 0) -> Callable[[ListenerT], ListenerT]:
        """Return a decorator that makes a function listen for events of a type, as ``listen`` does.

        Args:
            event_type: A class. Events of its subclasses are included.
            priority: Listeners of a higher priority are called first; projections have 0.
        """

        def register(listener: ListenerT) -> ListenerT:
            self.listen(event_type, listener, priority=priority)
            return listener

        return register

    def attach(self, runtime: ProjectionRuntime[Any, Any]) -> None:
        """Fold the events of the runtime's projection. Raises AlreadyRegistered the second time."""
        with self._lock:
            if any(registration.runtime is runtime for registration in self._registrations):
                problem = "it listens on this bus already; a second time would fold every event twice"
                msg = f"{runtime.name}: {problem}"
                raise AlreadyRegistered(msg, projection=runtime.name)
        for event_type in runtime.event_types:
            self._register(event_type, 0, None, runtime)

    def has_listeners(self, event_type: type[Any]) -> bool:
        """Return whether an event of exactly this class would reach a listener or a projection."""
        return bool(self._matching(event_type))

    def forget(self, event_type: type[Any]) -> None:
        """Remove the listeners and projections registered for exactly this class."""
        with self._lock:
            self._replace([r for r in self._registrations if r.event_type is not event_type])

    def flush(self) -> None:
        """Remove all listeners and projections."""
        with self._lock:
            self._replace([])

    def after_fork(self) -> None:
        """Replace the lock, which another thread of the parent may have held."""
        self._lock = threading.Lock()

    # -- registrations

    def _register(
        self,
        event_type: type[Any],
        priority: int,
        listener: Listener | None,
        runtime: ProjectionRuntime[Any, Any] | None,
    ) -> None:
        if not isinstance(event_type, type):
            msg = f"listen for a class, not for {event_type!r}"
            raise InvalidProjection(msg)
        with self._lock:
            self._number += 1
            added = _Registration(event_type, priority, self._number, listener, runtime)
            self._replace([*self._registrations, added])

    def _replace(self, registrations: list[_Registration]) -> None:
        self._registrations = registrations
        self._routes = {}

    def _matching(self, event_type: type[Any]) -> list[_Registration]:
        matching = [r for r in self._registrations if issubclass(event_type, r.event_type)]
        matching.sort(key=lambda r: (-r.priority, r.number))
        seen: set[int] = set()
        unique = []
        for registration in matching:
            # A union may name a class and its base: the projection still folds the event once.
            if registration.runtime is not None:
                if id(registration.runtime) in seen:
                    continue
                seen.add(id(registration.runtime))
            unique.append(registration)
        return unique

    # -- routes

    def _find_route(self, event_type: type[Any], event: object) -> Route:
        if event is None or isinstance(event, type):
            msg = f"dispatch an event object, not {event!r}"
            raise InvalidEvent(msg, event=event)
        # Read the map before the registrations: if they change now, the bus has another map already, and the
        # stale route is put into one that is no longer used.
        routes = self._routes
        matching = self._matching(event_type)
        if len(matching) == 1 and matching[0].runtime is not None:
            route: Route = matching[0].runtime.acceptor(event_type)
        else:
            route = _Fanout(matching)
        if len(routes) >= MAX_CLASSES:
            self._routes = routes = {}  # the classes of an app that makes them as it goes must not pile up
        routes[event_type] = route
        return route


class _Fanout:
    """The route of an event with no listener, with several, or with plain ones."""

    __slots__ = ("_registrations",)

    def __init__(self, registrations: list[_Registration]) -> None:
        self._registrations = registrations

    def __call__(self, event: Any) -> Receipt:
        parts: list[Delivery] = []
        for registration in self._registrations:
            if registration.listener is not None:
                registration.listener(event)
            elif registration.runtime is not None:
                registration.runtime.deliver_into(parts, event)
        return parts[0] if len(parts) == 1 else JointReceipt(parts=parts)
