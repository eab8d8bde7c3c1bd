"""Background jobs: in order, on one thread, at most a thousand at once."""

from __future__ import annotations

import queue

import pytest
from keyfold.web.live.background_jobs import BackgroundJobs
from support.parking import DEADLINE, Parking


def test_jobs_run_in_order_and_an_error_ends_nothing(caplog: pytest.LogCaptureFixture) -> None:
    """Not even SystemExit, which is logged like all others."""
    jobs, done = BackgroundJobs("test-jobs"), queue.SimpleQueue[int]()

    def leave() -> None:
        raise SystemExit

    jobs.run(lambda: done.put(1))
    jobs.run(leave)
    jobs.run(lambda: done.put(2))
    assert [done.get(timeout=DEADLINE) for _ in range(2)] == [1, 2]
    assert "raised" in caplog.text
    jobs.close()


def test_over_a_thousand_that_wait_are_dropped_and_counted() -> None:
    """The caller never waits."""
    jobs, parking, ran = BackgroundJobs("test-jobs"), Parking(), queue.SimpleQueue[int]()
    jobs.run(parking.park)
    parking.wait_for_arrival()
    for number in range(1_003):
        jobs.run(lambda number=number: ran.put(number))  # type: ignore[misc]
    assert jobs.dropped == 3
    parking.release()
    assert [ran.get(timeout=DEADLINE) for _ in range(1_000)] == list(range(1_000))
    jobs.close()


def test_after_the_end_nothing_runs() -> None:
    """Neither a new job nor one that waited."""
    jobs, parking, ran = BackgroundJobs("test-jobs"), Parking(), queue.SimpleQueue[int]()
    jobs.run(parking.park)
    parking.wait_for_arrival()
    jobs.run(lambda: ran.put(1))
    jobs.close()
    jobs.run(lambda: ran.put(2))
    parking.release()
    assert jobs._thread is not None
    assert jobs._thread.join(float("inf"))
    assert ran.empty()
    assert jobs.dropped == 0
