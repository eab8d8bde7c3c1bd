"""How many file descriptors this process may have, and whether there is room for one more connection."""

from __future__ import annotations

import logging
import resource
import socket
from typing import NamedTuple

_logger = logging.getLogger("keyfold.descriptors")

_MIN_RESERVE = 64
_RESERVED_PART = 8
_MAX_EACH = 4
"""Of a carried connection: the server's, gevent's duplicate, a pair. Others have one."""


class Room(NamedTuple):
    """What the descriptors of a process allow."""

    descriptors: int
    """The limit of the process (``ulimit -n``)."""
    connections: int
    """Connections that may be open: all that is not reserved, at most as many as were asked for."""

    @property
    def is_short(self) -> bool:
        """Say whether others have used up half of the reserve, or carried connections what they need more.

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


def make_room(connections: int) -> Room:
    """Raise the soft limit of this process to what so many connections need, as far as the hard limit allows.

    Logs a warning that names both numbers if that is not enough.
    """
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    wanted = needed_for(connections, _MAX_EACH)
    aim = wanted if hard == resource.RLIM_INFINITY else min(wanted, hard)
    if soft != resource.RLIM_INFINITY and soft < aim:
        try:
            resource.setrlimit(resource.RLIMIT_NOFILE, (aim, hard))
            soft = aim
        except (OSError, ValueError) as error:
            _logger.info("the soft limit of open files stays at %d: %s", soft, error)
    descriptors = wanted if soft == resource.RLIM_INFINITY else soft
    room = Room(descriptors, min(connections, descriptors - reserve_of(descriptors)))
    if room.connections < connections:
        _logger.warning(
            "this process takes %d connections, not the %d of KEYFOLD_MAX_SOCKETS: it may open %d files only; "
            "raise the limit of open files to %d (ulimit -n, LimitNOFILE of systemd) or lower KEYFOLD_MAX_SOCKETS",
            room.connections, connections, descriptors, needed_for(connections),
        )  # fmt: skip
    return room
