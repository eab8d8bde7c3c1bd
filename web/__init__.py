"""Rows and deltas become pages: the hub, sockets, HTTP, and the Flask extension."""

from .extension import Keyfold, create_app
from .live.hub import Hub
from .settings import ConfigError, WebSettings

__all__ = ["ConfigError", "Hub", "Keyfold", "WebSettings", "create_app"]
