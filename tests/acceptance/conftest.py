"""One browser for all tests that need one."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from support.browsing import Browser, chromium


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    """A headless Chromium."""
    with chromium() as driver:
        yield driver
