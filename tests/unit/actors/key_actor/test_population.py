"""Which actor owns a key: of two that are made, one; of one that ends late, its successor."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from keyfold.actors.key_actor.population import Population
from keyfold.actors.upkeep.counters import Counters


class Sweeper:
    """Counts the calls."""

    def __init__(self) -> None:
        self.retired = 0

    def actor_retired(self) -> None:
        self.retired += 1


def make() -> tuple[Population, Counters, Any]:
    counters, sweeper = Counters(), Sweeper()
    as_sweeper: Any = sweeper
    return Population(counters, as_sweeper), counters, sweeper


def actor(key: str) -> Any:
    return SimpleNamespace(key=key)


def test_the_first_actor_of_a_key_owns_it() -> None:
    """A thread that spawns at the same moment gets the other one's actor."""
    population, counters, _ = make()
    first, second = actor("a"), actor("a")
    assert population.add(first) is first
    assert population.add(second) is first
    assert counters["spawned"] == 1


def test_an_actor_that_is_removed_late_leaves_its_successor() -> None:
    """Only the actor that is mapped is removed, counted and announced."""
    population, counters, sweeper = make()
    old, new = actor("a"), actor("a")
    population.add(old)
    population.remove(old)
    population.add(new)
    population.remove(old)
    assert population.actors == {"a": new}
    assert (counters["retired"], sweeper.retired) == (1, 1)
