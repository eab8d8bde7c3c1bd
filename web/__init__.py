"""Rows become pages: the Flask extension and the WSGI app."""

from .extension import Keyfold, create_app
from .settings import ConfigError

__all__ = ["ConfigError", "Keyfold", "create_app"]
