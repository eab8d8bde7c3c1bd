"""Origins of pages, as browsers send them: exactly ``scheme://host`` or ``scheme://host:port``."""

from __future__ import annotations

import ipaddress
import re
from typing import NamedTuple

_ORIGIN = re.compile(r"(https?)://(?:\[([0-9a-f:.]+)\]|([^\s/?#@:\\\[\]%]+))(?::([0-9]{1,5}))?", re.ASCII)
_NAME = re.compile(r"[a-z0-9_]([a-z0-9_.-]*[a-z0-9_.])?", re.ASCII)
_DEFAULT_PORTS = {"http": 80, "https": 443}
_MAX_PORT = 65_535


class Origin(NamedTuple):
    """Compared by equality: host in lower case and punycode, with its port."""

    scheme: str
    host: str
    port: int

    def is_of_host(self, here: Origin) -> bool:
        """Say whether a page of this origin came from a server that was asked as ``here``.

        A server that was asked by https knows the scheme of its pages. One that was asked by http may stand
        behind a proxy that ends TLS, and then does not: the default port of either scheme is the same there.
        """
        if self == here:
            return True
        if here.scheme == "https" or self.host != here.host:
            return False
        return self.port == here.port or {self.port, here.port} == set(_DEFAULT_PORTS.values())


def parse_origin(text: str) -> Origin | None:
    """Return an origin, or None for a text that is none: ``null``, another scheme, a user, a path."""
    found = _ORIGIN.fullmatch(text.lower())
    if found is None:
        return None
    scheme, address, name, digits = found.groups()
    port = int(digits) if digits else _DEFAULT_PORTS[scheme]
    if not 0 < port <= _MAX_PORT:
        return None
    try:
        if address is not None:
            host = ipaddress.IPv6Address(address).compressed
        else:
            host = name if name.isascii() else name.encode("idna").decode().lower()
    except ValueError:  # UnicodeError too
        return None
    if address is None and _NAME.fullmatch(host) is None:
        return None
    return Origin(scheme, host, port)
