"""The backplane without a Redis that answers: its format, its bounds, and its trouble."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from keyfold.actors import ProjectionError
from keyfold.web.live.backplane import backplane as module
from keyfold.web.live.backplane.backplane import Backplane, connect
from msgspec import msgpack
from support.parking import wait_until


@pytest.fixture
def unreachable() -> Iterator[Backplane]:
    """A backplane whose Redis refuses connections."""
    backplane = Backplane("redis://127.0.0.1:1/0", "k:", received=lambda *_: None, confirmed=lambda _: None)
    yield backplane
    backplane.close(3.0)


def test_a_url_that_is_none_names_the_config_key() -> None:
    """The error is raised before any connection is made."""
    with pytest.raises(ProjectionError, match="KEYFOLD_REDIS is not a URL of Redis"):
        connect("http://localhost")


@pytest.mark.parametrize("data", [b"", b"\xc1", msgpack.encode([]), msgpack.encode("text")])
def test_a_message_that_cannot_be_decoded_has_no_content(data: bytes) -> None:
    """Neither bytes that are no MessagePack nor an empty list raise an error."""
    assert module._decode(data) == (None, None)


def test_details_follow_the_message() -> None:
    """They travel beside the origin, and a message without details has the same content before them."""
    assert module._decode(msgpack.encode(["o", 0, "e"])) == ("o", [0, "e"])
    assert module._decode(msgpack.encode([["o", "x", "y"], 0, "e"])) == ("o", [0, "e", "x", "y"])


def test_a_message_that_cannot_be_sent_counts_as_dropped(unreachable: Backplane) -> None:
    """The trouble is named, and nothing counts as published."""
    unreachable.publish("c", [1])
    wait_until(lambda: unreachable.stats()["dropped"] == 1)
    wait_until(lambda: unreachable.stats()["trouble"] is not None)
    assert unreachable.stats()["published"] == 0


def test_the_messages_that_wait_are_bounded(unreachable: Backplane, monkeypatch: pytest.MonkeyPatch) -> None:
    """Over the bound the oldest goes, however fast messages come."""
    monkeypatch.setattr(module, "_MAX_MESSAGES", 5)
    for number in range(50):
        unreachable.publish("c", [number])
        assert unreachable.stats()["waiting"] <= 5


def test_a_channel_that_is_unwatched_is_not_counted(unreachable: Backplane) -> None:
    """Two calls for one channel count once."""
    unreachable.watch("c")
    unreachable.watch("c")
    assert unreachable.stats()["watched"] == 1
    unreachable.unwatch("c")
    assert unreachable.stats()["watched"] == 0
