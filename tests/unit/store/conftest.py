"""The fixtures of the store tests."""

from support.fixtures_of_store import make_store, store

__all__ = ["make_store", "store"]
