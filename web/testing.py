"""Helpers for the tests of Flask apps: a pytest plugin, and ``settle``.

In ``conftest.py``: ``pytest_plugins = ["keyfold.web.testing"]``.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from flask import Flask

from ..actors.system import all_systems
from .app_registry import EXTENSION, KeyfoldState

_SECONDS = 10.0


@pytest.fixture
def keyfold_config() -> Iterator[dict[str, Any]]:
    """Return the config for the app of one test, with a database in memory of its own.

    Call ``app.config.update(keyfold_config)`` before ``init_app``. The systems that the test has
    made are closed after it.
    """
    before = set(map(id, all_systems()))
    yield {"KEYFOLD_DATABASE": "sqlite://", "KEYFOLD_TUNING": {"report_seconds": 0}}
    for system in all_systems():
        if id(system) not in before:
            system.close()


def settle(app: Flask, timeout: float = _SECONDS) -> None:
    """Wait until all dispatched events are committed and broadcast.

    Args:
        app: The app. Its extension has to be initialised.
        timeout: Seconds to wait.

    Raises:
        AssertionError: Some events are still under way after the timeout; the message counts them.
    """
    state: KeyfoldState = app.extensions[EXTENSION]
    if not state.system.settle(timeout):
        stats = state.system.stats()
        waiting = {name: projection["mailbox_depth"] for name, projection in stats["projections"].items()}
        msg = f"{stats['in_flight']} events are not committed after {timeout} s; in mailboxes: {waiting}"
        raise AssertionError(msg)
