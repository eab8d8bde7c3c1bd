"""One line per minute."""

from __future__ import annotations

from keyfold.web.live.log_throttle import LogThrottle


def test_one_line_per_minute_is_due() -> None:
    """The minute begins with the line, not with the events between."""
    times = [0.0, 1.0, 59.9, 60.0, 119.9, 500.0, 501.0]
    clock = iter(times)
    throttle = LogThrottle(lambda: next(clock))
    assert [time for time in times if throttle.is_due()] == [0.0, 60.0, 500.0]
