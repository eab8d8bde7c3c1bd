"""For the tests of Flask apps: a pytest plugin, and waiting until all is committed.

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
    """Return config for an app of one test: a database in memory, of its own.

    ``app.config.update(keyfold_config)`` before ``init_app``. Systems made in the test are closed after it.
    """
    before = set(map(id, all_systems()))
    yield {"KEYFOLD_DATABASE": "sqlite://", "KEYFOLD_REPORT_SECONDS": 0}
    for system in all_systems():
        if id(system) not in before:
            system.close()


def settle(app: Flask, timeout: float = _SECONDS) -> None:
    """Wait until everything that was dispatched is committed and broadcast.

    Raises AssertionError after timeout seconds, and says what is still under way.
    """
    kept: KeyfoldState = app.extensions[EXTENSION]
    if not kept.system.settle(timeout):
        stats = kept.system.stats()
        waiting = {name: facts["mailbox_depth"] for name, facts in stats["projections"].items()}
        msg = f"{stats['in_flight']} events are not committed after {timeout} s; in mailboxes: {waiting}"
        raise AssertionError(msg)
