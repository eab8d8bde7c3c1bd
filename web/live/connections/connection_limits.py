"""How many connections there may be: in total, for the descriptors, from one address, of one user."""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
import threading
from collections import Counter
from typing import NamedTuple, Protocol

from ..settings import LiveSettings

_SITE_BITS = 64
"""Of an IPv6 address: a customer of a provider has at least all addresses that begin alike."""


class TooManyConnections(Exception):  # says what it is
    """A limit on open connections is reached; the message says which."""


class Taken(Protocol):
    """A place that is taken."""

    def leave(self) -> None:
        """Give it back."""


class Slot:
    """One connection's place. ``leave`` gives it back, once however often it is called."""

    __slots__ = ("_connection_limits", "_names")
    sockets = 1
    """How many of the connections are counted by it."""

    def __init__(self, connection_limits: ConnectionLimits, names: tuple[str, ...]) -> None:
        self._connection_limits: ConnectionLimits | None = connection_limits
        self._names = names

    def leave(self) -> None:
        """Make room for another connection."""
        connection_limits, self._connection_limits = self._connection_limits, None
        if connection_limits is not None:
            connection_limits.free(self._names, self.sockets)


class UserSlot(Slot):
    """A user's place on a connection that has one already: a ticket of this user was shown over it."""

    __slots__ = ()
    sockets = 0


class ConnectionLimits:
    """Counts connections against their limits. Safe from any thread."""

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings
        self._lock, self._looking = threading.Lock(), threading.Lock()
        self._open = 0
        self._by_name: Counter[str] = Counter()
        self._room: Room | None = None
        self.refused = 0

    @property
    def limit(self) -> int:
        """Connections that may be open: those of the settings, until somebody has looked for room."""
        return self._settings.max_sockets if self._room is None else self._room.connections

    def look_for_room(self, each: int = 1) -> Room:
        """Raise this process's limit of descriptors, and log it if that is not enough. Else the first connection does.

        Looks once, and once more where a connection needs more descriptors than was known.
        """
        room = self._room
        if room is None or room.each < each:
            with self._looking:
                room = self._room
                if room is None or room.each < each:
                    room = self._room = make_room(self._settings.max_sockets, each)
        return room

    def enter(self, address: str, user: str | None, each: int = 1) -> Slot:
        """Take a place for a connection of so many descriptors. Raises TooManyConnections."""
        limits, asked = self._settings, list[tuple[str, int, str]]()
        site = _site(address)
        if site is not None:
            asked.append((f"address {site}", limits.max_sockets_per_address, "your address has its"))
        if user is not None:
            asked.append((f"user {user}", limits.max_sockets_per_user, "you have your"))
        room = self.look_for_room(each)
        # Asked outside the lock, as it opens a descriptor. Those who ask at once may all be told that there is one
        # left: the other half of the reserve is for more than that.
        is_short = room.is_short
        with self._lock:
            if is_short or self._open >= room.connections:
                self._refuse("this server has as many connections open as it can")
            for name, most, who in asked:
                if self._by_name[name] >= most:
                    self._refuse(f"{who} {most} connections open")
            self._open += 1
            names = tuple(name for name, _, _ in asked)
            self._by_name.update(names)
        return Slot(self, names)

    def enter_user(self, user: str) -> UserSlot:
        """Count an open connection among those of one more user. Raises TooManyConnections."""
        name, most = f"user {user}", self._settings.max_sockets_per_user
        with self._lock:
            if self._by_name[name] >= most:
                msg = f"you have your {most} connections open"
                raise TooManyConnections(msg)
            self._by_name[name] += 1
        return UserSlot(self, (name,))

    def free(self, names: tuple[str, ...], sockets: int) -> None:
        """Take a place back."""
        with self._lock:
            self._open -= sockets
            for name in names:
                self._by_name[name] -= 1
                if self._by_name[name] <= 0:
                    del self._by_name[name]

    def _refuse(self, message: str) -> None:
        self.refused += 1
        raise TooManyConnections(message)


def _site(address: str) -> str | None:
    """Return what counts as one client address: an IPv4 address, or the first half of one of IPv6.

    None for one of this machine: a proxy's then, with everybody behind it, or a developer's.
    """
    try:
        given = ipaddress.ip_address(address.partition("%")[0])
    except ValueError:  # none at all: a Unix socket, so a proxy too
        return None
    given = getattr(given, "ipv4_mapped", None) or given
    if given.is_loopback:
        return None
    return str(given) if given.version == 4 else str(ipaddress.ip_network((given, _SITE_BITS), strict=False))  # noqa: PLR2004


_logger = logging.getLogger("keyfold.descriptors")

_MIN_RESERVE = 64
_RESERVED_PART = 8
CARRIED = 3
"""Descriptors of a connection that a request's thread carries: the server's and a pair. Others have one."""


class Room(NamedTuple):
    """What the descriptors of a process allow."""

    descriptors: int
    """The limit of the process (``ulimit -n``)."""
    connections: int
    """Connections that may be open: all that is not reserved, at most as many as were asked for."""
    each: int = 1
    """Descriptors of each connection."""

    @property
    def is_short(self) -> bool:
        """Say whether half of the reserve has been used up: by others, or where connections need more than counted.

        The system gives the lowest free number, so a new descriptor tells how many are in use at least,
        whoever opened them: a server's kept-alive connections and the app's files count as well.
        """
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.fileno() >= self.descriptors - reserve_of(self.descriptors) // 2
        except OSError:
            return True


def reserve_of(descriptors: int) -> int:
    """Return how many of so many descriptors are for the server, the database and the app."""
    return min(max(_MIN_RESERVE, descriptors // _RESERVED_PART), descriptors // 2)


def needed_for(connections: int, each: int = 1) -> int:
    """Return the limit of descriptors under which so many connections fit."""
    taken = connections * each
    part = -(-taken * _RESERVED_PART // (_RESERVED_PART - 1))
    return max(taken + _MIN_RESERVE, part)


def make_room(connections: int, each: int = 1) -> Room:
    """Raise the soft limit of this process to what so many connections need, as far as the hard limit allows.

    To what they need if all of them are carried, so that it is enough whatever the server gives an app.

    Logs a warning that names both numbers if that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed_for(connections, CARRIED)
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < aim:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            soft = aim
        except (OSError, ValueError) as error:
            _logger.info("the soft limit of open files stays at %d: %s", soft, error)
    descriptors = wanted if soft == resource.RLIM_INFINITY else soft
    room = Room(descriptors, min(connections, (descriptors - reserve_of(descriptors)) // each), each)
    if room.connections < connections:
        _logger.warning(
            "this process takes %d connections, not the %d of KEYFOLD_MAX_SOCKETS: it may open %d files only, and each "
            "connection needs %d; raise the limit of open files to %d (ulimit -n, LimitNOFILE of systemd) or lower KEYFOLD_MAX_SOCKETS",
            room.connections, connections, descriptors, each, needed_for(connections, each),
        )  # fmt: skip
    return room
