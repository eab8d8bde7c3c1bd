"""How many file descriptors this process may have, and whether there is room for one more connection."""

from __future__ import annotations

import logging
import resource
import socket
from typing import NamedTuple

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
