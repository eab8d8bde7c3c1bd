"""Systems for the tests of the actors."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest
from keyfold.actors import ProjectionRuntime, ProjectionSystem

from support.counting import Added, RecordingBroadcaster, Total, Totals


@pytest.fixture
def make_system(database_url: str) -> Iterator[Callable[..., ProjectionSystem]]:
    """Make systems on the test's database; all are closed afterwards."""
    made: list[ProjectionSystem] = []

    def make(**settings: Any) -> ProjectionSystem:
        system = ProjectionSystem(database_url, **settings)
        made.append(system)
        return system

    yield make
    for system in made:
        system.close()


@pytest.fixture
def broadcaster() -> RecordingBroadcaster:
    """The broadcaster of ``system``."""
    return RecordingBroadcaster()


@pytest.fixture
def system(
    make_system: Callable[..., ProjectionSystem], broadcaster: RecordingBroadcaster
) -> ProjectionSystem:
    """A system with nothing registered."""
    return make_system(broadcaster=broadcaster)


@pytest.fixture
def totals(system: ProjectionSystem) -> ProjectionRuntime[Added, Total]:
    """The projection Totals, registered in ``system``."""
    return system.register(Totals())
