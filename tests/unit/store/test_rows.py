"""Positions, commits and their ids."""

from __future__ import annotations

from datetime import UTC, datetime

import pytest
from keyfold.store.rows import Head, Position, as_utc, differ, new_commit_id, new_epoch


@pytest.mark.parametrize(
    ("committed", "row", "is_gone"),
    [
        (Head("e", 5, "a"), Head("e", 5, "a"), False),
        (Head("e", 5, "a"), Head("e", 6, "b"), False),
        (Head("e", 5, "a"), Head("e", 4, "b"), True),
        (Head("e", 5, "a"), Head("e", 5, "b"), True),
        (Head("e", 5, None), Head("e", 5, "b"), False),
        (Head("e", 5, "a"), Head("e", 5, None), False),
        (Head("e", 5, "a"), Head("f", 1, "b"), False),
        (Head.end_of("e"), Head("e", 2**62, "a"), True),
        (Head.end_of("e"), Head("f", 1, "a"), False),
    ],
)
def test_a_commit_is_gone_if_its_row_is_behind_it_or_has_another_one(
    committed: Head, row: Head, *, is_gone: bool
) -> None:
    """Within one epoch; an id that is not known fits any."""
    assert committed.is_gone_from(row) is is_gone


def test_ids_differ_only_if_both_are_known() -> None:
    """Rows of older releases have none."""
    assert differ("a", "b")
    assert not differ("a", "a")
    assert not differ(None, "a")
    assert not differ("a", None)


def test_a_position_reads_as_epoch_and_version() -> None:
    """An epoch has no colon, so that the text has one meaning."""
    epoch = new_epoch()
    assert str(Position(epoch, 7)).split(":") == [epoch, "7"]
    assert new_epoch() != epoch


def test_commit_ids_are_short_and_unique() -> None:
    """For the column of 32 characters."""
    ids = {new_commit_id() for _ in range(1_000)}
    assert len(ids) == 1_000
    assert all(len(one) <= 24 for one in ids)


@pytest.mark.parametrize(
    "moment",
    [
        "2024-01-02T03:04:05+00:00",
        "2024-01-02T04:04:05+01:00",
        "2024-01-02 03:04:05",
        datetime.fromisoformat("2024-01-02T03:04:05"),
        datetime.fromisoformat("2024-01-01T22:04:05-05:00"),
    ],
)
def test_moments_of_both_databases_become_utc(moment: datetime | str) -> None:
    """Text of SQLite, datetimes of psycopg2; without a zone they are in UTC."""
    assert as_utc(moment) == datetime(2024, 1, 2, 3, 4, 5, tzinfo=UTC)
    assert as_utc(moment).tzinfo is UTC
