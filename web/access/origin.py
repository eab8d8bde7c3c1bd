"""Origins of pages, as browsers send them: exactly ``scheme://host`` or ``scheme://host:port``."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, NamedTuple

from werkzeug.exceptions import Forbidden

if TYPE_CHECKING:
    from flask import Request

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
        """Return whether a page of this origin came from the server that was asked as ``here``.

        A server that was asked over https knows the scheme of its pages. A server that was asked over http
        may stand behind a proxy that ends TLS, and cannot know it: there, the default ports of both schemes
        count as equal.
        """
        if self == here:
            return True
        if here.scheme == "https" or self.host != here.host:
            return False
        return self.port == here.port or {self.port, here.port} == set(_DEFAULT_PORTS.values())


class AllowedOrigins:
    """The origins whose pages may use their user's cookies here: the app's own, and those of the settings."""

    def __init__(self, allowed: Iterable[str]) -> None:
        self._allowed = {parse_origin(text) for text in allowed}

    def check(self, request: Request) -> None:
        """Refuse a request from a page of another origin: the browser sends the user's cookies with it.

        Every browser sends an Origin with a WebSocket handshake, so a client without one is not a browser.

        Raises:
            Forbidden: The origin is neither the app's own nor allowed.
        """
        text = request.headers.get("Origin")
        if text is not None and not self.admits(text, request):
            msg = f"the origin {text[:100]!r} is not allowed; KEYFOLD_ALLOWED_ORIGINS names those that are"
            raise Forbidden(msg)

    def admits(self, text: str, request: Request) -> bool:
        """Return whether the pages of an origin may read here, with their user's cookies."""
        origin = parse_origin(text)
        if origin is None:
            return False
        here = parse_origin(f"{request.scheme}://{request.host}")
        return (here is not None and origin.is_of_host(here)) or origin in self._allowed


def parse_origin(text: str) -> Origin | None:
    """Return the origin, or None for any other text: ``null``, another scheme, a user, a path."""
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
