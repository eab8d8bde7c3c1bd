"""The sweeper's choice: idle actors, and over the limit the ones that were quiet for longest."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
from keyfold.actors.settings import Settings
from keyfold.actors.upkeep.sweeper import Sweeper


class Actor:
    """Notes that it was asked to retire."""

    def __init__(self, last_turn: float, *, idle: bool = True) -> None:
        self.last_turn = last_turn
        self.actor_inbox = SimpleNamespace(idle=idle)
        self.suggestions = 0

    def suggest_retirement(self) -> bool:
        self.suggestions += 1
        return True


def sweeper_of(actors: list[Actor], **settings: Any) -> Sweeper:
    sweeper = Sweeper(Settings(**settings), lambda: None)
    population: Any = {str(number): actor for number, actor in enumerate(actors)}
    sweeper.watch(population)
    return sweeper


def asked(actors: list[Actor]) -> list[int]:
    return [actor.suggestions for actor in actors]


def test_only_an_idle_actor_whose_time_is_over_is_asked() -> None:
    """An actor that works is left alone, however long its turn takes."""
    actors = [Actor(0), Actor(50), Actor(91), Actor(0, idle=False)]
    assert sweeper_of(actors, idle_seconds=10).sweep(100) == 2
    assert asked(actors) == [1, 1, 0, 0]


def test_over_the_limit_the_quietest_are_asked_before_their_time() -> None:
    """One more than the excess, so that a new key is not a sweep of its own."""
    actors = [Actor(100 - number) for number in range(6)]
    assert sweeper_of(actors, idle_seconds=1000, max_live_actors=4).sweep(101) == 3
    assert asked(actors) == [0, 0, 0, 1, 1, 1]


def test_actors_whose_time_is_over_count_as_gone() -> None:
    """No other actor has to go for them."""
    actors = [Actor(0), Actor(0), Actor(99), Actor(99)]
    assert sweeper_of(actors, idle_seconds=10, max_live_actors=2).sweep(100) == 2
    assert asked(actors) == [1, 1, 0, 0]


@pytest.mark.parametrize(("live", "room"), [(15, True), (17, True), (18, False)])
def test_room_ends_at_an_eighth_over_the_limit(live: int, room: bool) -> None:  # noqa: FBT001
    """Of 16: at 18 a new key waits."""
    sweeper = sweeper_of([Actor(0) for _ in range(live)], max_live_actors=16)
    assert sweeper.has_room() is room
    assert sweeper.wait_for_room(0.0) is room
