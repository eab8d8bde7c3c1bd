"""An exception of the app's own code stops no actor: it is logged, counted, and told to the Receipts."""

from __future__ import annotations

from typing import Any

import pytest
from keyfold.actors.broadcaster import Committed
from keyfold.actors.key_actor.publishing import Publisher
from keyfold.actors.upkeep.counters import Counters
from keyfold.store import Position
from support.counting import RecordingBroadcaster

COMMITTED = Committed("test.totals", "a", "e", 1, [b"{}", b"{}"])


class Failing:
    """A broadcaster and an observer that fail."""

    def __init__(self) -> None:
        self.invalidated: list[str] = []

    def __getattr__(self, name: str) -> Any:
        def fail(*_arguments: object) -> None:
            raise SystemExit(name)

        return fail

    def invalidate(self, _projection: str, key: str) -> None:
        """Note the key."""
        self.invalidated.append(key)


def test_the_broadcast_comes_before_the_hooks_and_the_others_go_on() -> None:
    """A hook that raises harms neither the next one nor the Receipts."""
    order: list[str] = []
    counters = Counters()

    def fail(_key: str, _state: object) -> None:
        raise SystemExit

    broadcaster = RecordingBroadcaster(lambda _committed: order.append("broadcast"))
    hooks = [fail, lambda key, state: order.append(f"hook {key} {state}")]
    publisher = Publisher("test.totals", broadcaster, hooks, [], counters)
    assert publisher.publish(COMMITTED, 7) is None
    assert order == ["broadcast", "hook a 7"]
    assert counters["hook_errors"] == 1


def test_a_broadcast_that_fails_invalidates_the_key_and_names_the_version(
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The change is committed: subscribers have to read the row."""
    broadcaster: Any = Failing()
    counters = Counters()
    publisher = Publisher("test.totals", broadcaster, [], [], counters)
    failure = publisher.publish(COMMITTED, None)
    assert failure is not None
    assert (failure.key, failure.version, str(failure.__cause__)) == ("a", 3, "publish")
    replaced = publisher.publish_replacement("b", Position("f", 9), b"{}")
    assert replaced is not None
    assert replaced.version == 9
    assert broadcaster.invalidated == ["a", "b"]
    assert counters["broadcast_errors"] == 2
    assert "committed but was not broadcast" in caplog.text


def test_an_observer_that_fails_is_logged(caplog: pytest.LogCaptureFixture) -> None:
    """SystemExit too."""
    observer: Any = Failing()
    publisher = Publisher("test.totals", None, [], [observer], Counters())
    publisher.notify_applied(COMMITTED, 0.1)
    publisher.notify_failed(ValueError(), object())  # type: ignore[arg-type]
    assert caplog.text.count("raised") == 2
