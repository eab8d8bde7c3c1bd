"""Sources: the row key that a client means, and who may read it."""

from __future__ import annotations

from collections.abc import Iterator
from concurrent.futures import Future

import pytest
from keyfold.actors import InvalidKey, ProjectionSystem
from keyfold.actors.errors import UnknownProjection
from keyfold.store.rows import Head, Row
from keyfold.web.live.sources import ReadableBy, Sources
from support.counting import Totals
from support.parking import DEADLINE


class Longer(Totals):
    """A projection whose name begins with the other one's."""

    name = "test.totals.of"
    public = False


class Board:
    """A source that is no projection."""

    readable_by = ReadableBy.OPERATORS
    is_published = False

    def submit_read(self, key: str, lost: Head | None) -> Future[Row | None]:
        raise AssertionError


@pytest.fixture
def system() -> Iterator[ProjectionSystem]:
    system = ProjectionSystem("sqlite://", tuning={"report_seconds": 0})
    system.register(Totals())
    yield system
    system.close()


@pytest.fixture
def sources(system: ProjectionSystem) -> Sources:
    return Sources(system)


def test_projections_are_sources_also_those_registered_later(
    sources: Sources, system: ProjectionSystem
) -> None:
    """A public one is readable by everyone, another one if the app's authorize allows it."""
    assert sources.get("test.totals").readable_by is ReadableBy.EVERYONE
    assert sources.is_public("test.totals")
    with pytest.raises(UnknownProjection, match=r"test\.totals\.of"):
        sources.get("test.totals.of")
    system.register(Longer())
    assert sources.get("test.totals.of").readable_by is ReadableBy.AUTHORIZED
    assert not sources.is_public("test.totals.of")
    assert sources.get("test.totals.of").is_published
    assert sources.get("test.totals.of") is sources.get("test.totals.of")


def test_a_name_that_is_unknown_is_not_public(sources: Sources) -> None:
    """A client may still have a subscription of an earlier release."""
    assert not sources.is_public("test.gone")


def test_a_source_can_be_added(sources: Sources) -> None:
    """Its channels have names like those of projections."""
    board = Board()
    sources.add("test.board", board)
    assert sources.get("test.board") is board
    assert not sources.is_public("test.board")
    assert sources.unpublished() == ["test.board"]
    assert sources.resolve("projection.test.board.all", None, None) == ("test.board", "all")


def test_the_longest_name_that_fits_a_channel_is_meant(sources: Sources, system: ProjectionSystem) -> None:
    """Names and keys may both have dots."""
    system.register(Longer())
    assert sources.resolve("projection.test.totals.of.a", None, None) == ("test.totals.of", "a")
    assert sources.resolve("projection.test.totals.off.a", None, None) == ("test.totals", "off.a")
    assert sources.resolve(None, "test.totals", "of.a") == ("test.totals", "of.a")


@pytest.mark.parametrize(
    ("channel", "projection", "key"),
    [
        (None, None, None),
        ("projection.", None, None),
        ("test.totals.a", None, None),
        ("x projection.test.totals.a", None, None),
        ("projection.test.totals", None, None),
        ("projection.test.other.a", None, None),
        (None, "test.other", "a"),
        (None, "test.totals", None),
    ],
)
def test_a_channel_without_a_source_is_refused(
    sources: Sources, channel: str | None, projection: str | None, key: str | None
) -> None:
    """Also one that names a projection and no key."""
    with pytest.raises(UnknownProjection):
        sources.resolve(channel, projection, key)


@pytest.mark.parametrize("key", ["", "a\n", "x" * 513])
def test_a_malformed_key_is_refused(sources: Sources, key: str) -> None:
    """The rules are those of every key."""
    with pytest.raises(InvalidKey):
        sources.resolve(None, "test.totals", key)


def test_the_key_is_a_plain_str(sources: Sources) -> None:
    """JSON encoders want no subclass."""
    assert type(sources.resolve("projection.test.totals.a", None, None)[1]) is str


def test_a_projection_reads_its_row(sources: Sources, system: ProjectionSystem) -> None:
    """On a reader's thread."""
    system.store.write("test.totals", "a", {"total": 7, "amounts": [7]})
    row = sources.get("test.totals").submit_read("a", None).result(DEADLINE)
    assert row is not None
    assert row.version == 1
