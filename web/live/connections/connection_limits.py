"""The limits on open connections: in total, as the descriptors allow, per client address and per user."""

from __future__ import annotations

import ipaddress
import logging
import resource
import socket
import threading
from collections import Counter
from typing import NamedTuple, Protocol

from ..settings import LiveSettings

_logger = logging.getLogger("keyfold.descriptors")

CARRIED = 3
"""Descriptors of a connection that a request's thread carries: the server's and a pair. Others have one."""

_SITE_BITS = 64
"""The length of the IPv6 prefix that counts as one client: a provider gives a customer at least that."""
_MIN_RESERVE = 64
_RESERVED_PART = 8


class TooManyConnections(Exception):
    """A limit on open connections is reached; the message says which."""


class HeldSlot(Protocol):
    """The part of the limits that one connection takes up."""

    def leave(self) -> None:
        """Give it back."""


class Slot:
    """The slot of one connection. ``leave`` gives it back once, however often it is called."""

    __slots__ = ("_connection_limits", "_names")
    sockets = 1
    """The number of connections that it counts for."""

    def __init__(self, connection_limits: ConnectionLimits, names: tuple[str, ...]) -> None:
        self._connection_limits: ConnectionLimits | None = connection_limits
        self._names = names

    def leave(self) -> None:
        """Give the slot back."""
        connection_limits, self._connection_limits = self._connection_limits, None
        if connection_limits is not None:
            connection_limits.free(self._names, self.sockets)


class UserSlot(Slot):
    """The slot of one more user of a connection that has a slot already: it showed a ticket of this user."""

    __slots__ = ()
    sockets = 0


class Room(NamedTuple):
    """The number of connections that the descriptors of a process allow."""

    descriptors: int
    """The limit of the process (``ulimit -n``)."""
    connections: int
    """Connections that may be open: the setting, or fewer if there are too few descriptors."""
    each: int = 1
    """Descriptors per connection."""

    @property
    def is_short(self) -> bool:
        """Whether half of the reserve is used, by other code or by connections that need more than counted.

        The system gives out the lowest free number. So the number of a new descriptor tells how many are in
        use at least, whoever opened them: the kept-alive connections of a server and the app's files count
        too.
        """
        try:
            with socket.socket(socket.AF_UNIX) as probe:
                return probe.fileno() >= self.descriptors - reserve_of(self.descriptors) // 2
        except OSError:
            return True


class ConnectionLimits:
    """Counts connections against their limits. Safe from any thread."""

    def __init__(self, settings: LiveSettings) -> None:
        self._settings = settings
        self._lock, self._room_lock = threading.Lock(), threading.Lock()
        self._open = 0
        self._by_name: Counter[str] = Counter()
        self._room: Room | None = None
        self.refused = 0

    @property
    def limit(self) -> int:
        """The number of connections that may be open; before ``look_for_room``, that of the settings."""
        return self._settings.max_sockets if self._room is None else self._room.connections

    def look_for_room(self, each: int = 1) -> Room:
        """Raise this process's limit of descriptors, and log a warning if that is not enough.

        The first connection does so too. The work is done once, and again when a connection needs more
        descriptors than was known.

        Args:
            each: Descriptors per connection.
        """
        room = self._room
        if room is None or room.each < each:
            with self._room_lock:
                room = self._room
                if room is None or room.each < each:
                    room = self._room = make_room(self._settings.max_sockets, each)
        return room

    def enter(self, client_address: str, user: str | None, each: int = 1) -> Slot:
        """Take a slot for one more connection.

        Args:
            client_address: The IP address of the client, or any other text for a Unix socket.
            user: The name of the user, if it is known.
            each: Descriptors per connection.

        Raises:
            TooManyConnections: A limit is reached.
        """
        settings, wanted = self._settings, list[tuple[str, int, str]]()
        site = _site(client_address)
        if site is not None:
            wanted.append((f"address {site}", settings.max_sockets_per_address, "your address has its"))
        if user is not None:
            wanted.append((f"user {user}", settings.max_sockets_per_user, "you have your"))
        room = self.look_for_room(each)
        # Asked outside of the lock, as it opens a descriptor. Threads that ask at once may all see the last
        # one free: the other half of the reserve is for more than that.
        is_short = room.is_short
        with self._lock:
            if is_short or self._open >= room.connections:
                self._refuse("this server has as many connections open as it can")
            for name, max_count, text in wanted:
                if self._by_name[name] >= max_count:
                    self._refuse(f"{text} {max_count} connections open")
            self._open += 1
            names = tuple(name for name, _, _ in wanted)
            self._by_name.update(names)
        return Slot(self, names)

    def enter_user(self, user: str) -> UserSlot:
        """Count an open connection for one more user. Raises TooManyConnections."""
        name, max_count = f"user {user}", self._settings.max_sockets_per_user
        with self._lock:
            if self._by_name[name] >= max_count:
                msg = f"you have your {max_count} connections open"
                raise TooManyConnections(msg)
            self._by_name[name] += 1
        return UserSlot(self, (name,))

    def free(self, names: tuple[str, ...], sockets: int) -> None:
        """Take a slot back."""
        with self._lock:
            self._open -= sockets
            for name in names:
                self._by_name[name] -= 1
                if self._by_name[name] <= 0:
                    del self._by_name[name]

    def _refuse(self, message: str) -> None:
        self.refused += 1
        raise TooManyConnections(message)


def reserve_of(descriptors: int) -> int:
    """Return how many of so many descriptors are reserved for the server, the database and the app."""
    return min(max(_MIN_RESERVE, descriptors // _RESERVED_PART), descriptors // 2)


def needed_for(connections: int, each: int = 1) -> int:
    """Return the limit of descriptors that so many connections need, the reserve included."""
    taken = connections * each
    part = -(-taken * _RESERVED_PART // (_RESERVED_PART - 1))
    return max(taken + _MIN_RESERVE, part)


def make_room(connections: int, each: int = 1) -> Room:
    """Raise the soft limit of descriptors to the need of so many connections, within the hard limit.

    The need is counted as if all of them were carried, so that it is enough for any server. If the limit is
    too low all the same, a warning with both numbers is logged.

    Args:
        connections: The number of connections that the settings allow.
        each: Descriptors per connection, as far as is known.
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
            "this process takes %d connections, not the %d of KEYFOLD_MAX_SOCKETS: it may open %d files "
            "only, and each connection needs %d; raise the limit of open files to %d (ulimit -n, LimitNOFILE "
            "of systemd) or lower KEYFOLD_MAX_SOCKETS",
            room.connections, connections, descriptors, each, needed_for(connections, each),
        )  # fmt: skip
    return room


def _site(client_address: str) -> str | None:
    """Return the name that counts as one client: an IPv4 address, or the first half of an IPv6 address.

    None for an address of this machine: it is a proxy with all its clients, or a developer.
    """
    try:
        address = ipaddress.ip_address(client_address.partition("%")[0])
    except ValueError:  # not an IP address: a Unix socket, so a proxy too
        return None
    address = getattr(address, "ipv4_mapped", None) or address
    if address.is_loopback:
        return None
    if address.version == 4:  # noqa: PLR2004
        return str(address)
    return str(ipaddress.ip_network((address, _SITE_BITS), strict=False))
