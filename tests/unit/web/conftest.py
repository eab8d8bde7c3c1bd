"""The fixtures of the web tests."""

from support.fixtures_of_web import app, make_app, site, system

__all__ = ["app", "make_app", "site", "system"]
