"""The fixtures of the actors tests."""

from support.fixtures_of_actors import broadcaster, make_system, system, totals

__all__ = ["broadcaster", "make_system", "system", "totals"]
