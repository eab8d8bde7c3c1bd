"""The inbox, the reorder buffer and the recent deltas of a channel."""

from __future__ import annotations

import pytest
from keyfold.store import Position
from keyfold.store.rows import Head
from keyfold.web.live.channels.deltas import (
    NO_COMMIT,
    NOWHERE,
    Deltas,
    Inbox,
    Missed,
    RecentDeltas,
    ReorderBuffer,
)
from keyfold.web.live.settings import LiveSettings


def deltas(base: int, count: int = 1, *, epoch: str = "e", size: int = 1) -> Deltas:
    frames = [b"%d" % version * size for version in range(base + 1, base + count + 1)]
    return Deltas(epoch, base, frames, f"c{base}", f"c{base + count}")


def recent(start: Head = NO_COMMIT, **settings: float) -> RecentDeltas:
    return RecentDeltas(start, LiveSettings(**settings))  # type: ignore[arg-type]


def test_the_first_offer_has_to_schedule_a_take() -> None:
    """Others rely on it, until it has begun."""
    inbox = Inbox()
    assert [inbox.offer(deltas(0)), inbox.offer(deltas(1))] == [True, False]
    assert list(inbox.take()) == [deltas(0), deltas(1)]
    assert inbox.offer(deltas(2))
    taking = inbox.take()
    assert next(taking) == deltas(2)
    assert inbox.offer(deltas(3)), "the take has begun, so another one is needed"
    assert list(taking) == [deltas(3)], "although it takes this one too"


def test_over_four_mebibytes_the_inbox_holds_that_something_was_missed() -> None:
    """Then it takes notices again."""
    inbox = Inbox()
    for version in range(5):
        inbox.offer(deltas(version, size=1_000_000))
    assert list(inbox.take()) == [Missed()]
    inbox.offer(deltas(5))
    assert list(inbox.take()) == [deltas(5)]


def test_early_commits_are_given_back_in_order() -> None:
    """Those that follow the version, and those that are older."""
    buffer = ReorderBuffer()
    for base in (5, 3, 9, 4):
        assert buffer.add(deltas(base), now=1.0)
    assert [early.base_version for early in buffer.take(4)] == [3, 4]
    assert [early.base_version for early in buffer.take()] == [5, 9]
    assert buffer.take() == []


def test_the_reorder_buffer_holds_one_epoch_and_64_commits() -> None:
    """It refuses others."""
    buffer = ReorderBuffer()
    assert buffer.add(deltas(1), now=0.0)
    assert not buffer.add(deltas(2, epoch="other"), now=0.0)
    for base in range(2, 65):
        assert buffer.add(deltas(base), now=0.0)
    assert not buffer.add(deltas(65), now=0.0)


def test_the_oldest_early_commit_decides_how_long_was_waited() -> None:
    """Nothing has waited in an empty buffer."""
    buffer = ReorderBuffer()
    assert not buffer.has_waited(0.0, now=100.0)
    buffer.add(deltas(1), now=10.0)
    buffer.add(deltas(2), now=11.0)
    assert not buffer.has_waited(1.0, now=10.9)
    assert buffer.has_waited(1.0, now=11.0)


def test_recent_deltas_lead_from_each_version_to_the_head() -> None:
    """From the head itself with nothing; from elsewhere not at all."""
    ring = recent(Head("e", 3, "c3"))
    ring.extend(deltas(3, 2), now=0.0)
    assert ring.since(Position("e", 3)) == [b"4", b"5"]
    assert ring.since(Position("e", 4)) == [b"5"]
    assert ring.since(Position("e", 5)) == []
    for elsewhere in (Position("e", 2), Position("e", 6), Position("other", 4), NOWHERE):
        assert ring.since(elsewhere) is None
    assert (ring.commit, ring.size) == (Head("e", 5, "c5"), 2)


def test_a_client_without_a_state_is_resumed_only_with_a_delta() -> None:
    """Without one it would not learn the epoch of a key that was wiped."""
    ring = recent(Head("e", 0))
    assert ring.since(NOWHERE) is None
    ring.extend(deltas(0), now=0.0)
    assert ring.since(NOWHERE) == [b"1"]


@pytest.mark.parametrize(
    ("settings", "later"),
    [({"ring_frames": 2}, 0.0), ({"ring_bytes": 2}, 0.0), ({"ring_seconds": 10.0}, 10.5)],
)
def test_over_a_bound_the_oldest_goes(settings: dict[str, float], later: float) -> None:
    """By number, by bytes, and by age."""
    ring = recent(Head("e", 0, "c0"), **settings)
    ring.extend(deltas(0), now=0.0)
    ring.extend(deltas(1, 2), now=later)
    assert ring.since(Position("e", 0)) is None
    assert ring.since(Position("e", 1)) == [b"2", b"3"]
    ring.clear()
    assert (ring.size, ring.since(Position("e", 3))) == (0, [])


@pytest.mark.parametrize(
    ("commit", "is_contradiction"),
    [
        (Deltas("e", 5, [b"6"], "c5", "c6"), False),
        (Deltas("e", 5, [b"6"], "other", "c6"), True),
        (Deltas("e", 5, [b"6"], None, "c6"), False),
        (Deltas("e", 4, [b"5"], "c4", "c5"), False),
        (Deltas("e", 4, [b"5"], "c4", "other"), True),
        (Deltas("e", 4, [b"5", b"6"], "c4", "c6"), True),
        (Deltas("e", 1, [b"2"], "c1", "other"), False),
    ],
)
def test_a_commit_of_another_history_contradicts(commit: Deltas, *, is_contradiction: bool) -> None:
    """It follows another commit at the head, ends in another one there, or spans it."""
    assert recent(Head("e", 5, "c5")).contradicts(commit) is is_contradiction


def test_a_key_without_a_row_takes_any_epoch() -> None:
    """From version 0 on."""
    ring = recent()
    assert ring.continues("e", 0)
    assert not ring.continues("e", 1)
    ring.extend(deltas(0), now=0.0)
    assert (ring.continues("e", 1), ring.continues("e", 2), ring.continues("other", 0)) == (
        True,
        False,
        False,
    )
