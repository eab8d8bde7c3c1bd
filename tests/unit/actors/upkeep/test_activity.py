"""The numbers of the last minute, and the busiest keys."""

from __future__ import annotations

from keyfold.actors.upkeep.activity import SECONDS, Activity


class Clock:
    """Stands still until the test moves it."""

    now = 1_000.0

    def __call__(self) -> float:
        return self.now


def test_the_rate_is_of_the_last_ten_full_seconds() -> None:
    """The second under way would make it look too low; older seconds do not count."""
    clock = Clock()
    activity = Activity(clock)
    for _ in range(30):
        activity.committed("a", 5, 0.01)
        clock.now += 1
    stats = activity.stats()
    assert stats["events_per_second"] == 5.0
    assert (len(stats["recent"]), sum(stats["recent"])) == (SECONDS, 150)
    clock.now += SECONDS
    assert activity.stats()["events_per_second"] == 0.0


def test_quantiles_are_of_commits_and_sizes() -> None:
    """In events, milliseconds and bytes."""
    activity = Activity(Clock())
    for number in range(1, 101):
        activity.committed("a", number, number / 1_000)
        activity.encoded(10 * number)
    stats = activity.stats()
    assert (stats["commit_events_p50"], stats["commit_ms_p95"], stats["snapshot_bytes_p95"]) == (
        51,
        96.0,
        960,
    )


def test_the_busiest_keys_stay_known_among_many_quiet_ones() -> None:
    """The map is bounded, and drops the quiet half."""
    activity = Activity(Clock())
    activity.committed("busy", 1_000, 0.01)
    for number in range(1_000):
        activity.committed(f"quiet {number}", 1, 0.01)
    activity.committed("busy", 1, 0.01)
    assert activity.busiest(1) == [("busy", 1_001)]
    assert len(activity.busiest(10_000)) <= 256
