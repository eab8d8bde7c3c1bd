"""docs/live.md names every close code, counter and message that there is."""

from __future__ import annotations

import re
from pathlib import Path

from keyfold.actors import ProjectionSystem
from keyfold.web.live.connections import connection
from keyfold.web.live.hub import Hub
from keyfold.web.live.protocol import messages
from keyfold.web.settings import WebSettings

DOCS = Path(__file__).parents[2] / "docs"
PAGE = (DOCS / "live.md").read_text()


def test_every_close_code_and_counter_is_explained() -> None:
    """Each one that an operator or a client may meet."""
    codes = [
        value
        for value in vars(connection).values()
        if isinstance(value, int) and 1000 <= value < 5000 and value != 4096
    ]
    assert len(codes) >= 6
    for code in codes:
        assert str(code) in PAGE
    for counter in set(Hub(WebSettings(), ProjectionSystem("sqlite://")).stats()) - {
        "open",
        "channels",
        "subscriptions",
        "buffering",
        "ring_bytes",
        "projections",
    }:
        assert f"`{counter}`" in PAGE, counter


def test_every_message_is_listed() -> None:
    """By its type."""
    source = Path(str(messages.__file__)).read_text()
    for kind in re.findall(r'"type":\s*"(\w+)"', source):
        assert f"`{kind}`" in PAGE, kind
