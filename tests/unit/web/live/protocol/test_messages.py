"""The messages of the hub."""

from __future__ import annotations

import json

import pytest
from keyfold.store import Position
from keyfold.web.live.protocol.messages import (
    are_delta_messages,
    delta_messages,
    error_message,
    parse_position,
)

CHANNEL = "projection.x.a"


def test_each_delta_is_one_version() -> None:
    """Its message names the version before it."""
    found = [json.loads(message) for message in delta_messages(CHANNEL, "added", "e", 4, [b"1", b"[2]"])]
    assert [(one["prev"], one["version"], one["data"]) for one in found] == [(4, 5, 1), (5, 6, [2])]
    assert {(one["type"], one["channel"], one["event"], one["epoch"]) for one in found} == {
        ("delta", CHANNEL, "added", "e")
    }


def test_only_delta_messages_of_the_same_commit_are_recognised() -> None:
    """Of this channel, epoch and version, and JSON throughout."""
    payloads = delta_messages(CHANNEL, "added", "e", 4, [b"1", b"2"])
    assert are_delta_messages(CHANNEL, "e", 4, payloads)
    assert not are_delta_messages("projection.x.b", "e", 4, payloads)
    assert not are_delta_messages(CHANNEL, "f", 4, payloads)
    assert not are_delta_messages(CHANNEL, "e", 5, payloads)
    assert not are_delta_messages(CHANNEL, "e", 4, payloads[::-1])
    assert not are_delta_messages(CHANNEL, "e", 4, [payloads[0] + b"}"])
    assert not are_delta_messages(CHANNEL, "e", 4, delta_messages(CHANNEL, "added", "e", 4, [b'"\xff"']))


def test_an_error_names_its_channel_if_it_has_one() -> None:
    """Otherwise the key is absent."""
    assert json.loads(error_message("limit", "text")) == {"type": "error", "code": "limit", "message": "text"}
    assert json.loads(error_message("limit", "text", ""))["channel"] == ""


@pytest.mark.parametrize(
    ("text", "position"),
    [("e-1_x:0", Position("e-1_x", 0)), (":0", Position("", 0)), ("e:12", Position("e", 12))],
)
def test_a_position_is_read(text: str, position: Position) -> None:
    """Also that of a key without a row."""
    assert parse_position(text) == position


@pytest.mark.parametrize(
    "text", ["", "e", "e:", "e:-1", "e:1 ", "e:1\n", "é:1", "e:" + "1" * 19, "e" * 65 + ":1"]
)
def test_another_text_is_no_position(text: str) -> None:
    """Its beginning is quoted."""
    with pytest.raises(ValueError, match="a position is 'epoch:version'"):
        parse_position(text)
