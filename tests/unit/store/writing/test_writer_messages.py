"""Requests to the writer, and which answer belongs to which."""

from __future__ import annotations

from datetime import UTC, datetime

from keyfold.store.rows import Amendment, Position, Row, Save
from keyfold.store.writing.writer_messages import (
    CONFLICT,
    SAVED,
    Amend,
    Load,
    Loaded,
    Write,
    WriterMessage,
    answers_to,
    size_of,
)


def ignore(_answer: object) -> None:
    """Take an answer."""


def write(key: str, state: bytes = b"{}") -> Write:
    return Write(Save("test", key, None, "e", 1, state), ignore)


def amend(key: str) -> Amend:
    return Amend(Amendment("test", key, None, was_halted=False, position=Position("e", 1)), ignore)


def test_each_message_gets_the_answer_of_its_own_row() -> None:
    """Saves come first in the result of a commit, then amendments, whatever the order of the messages."""
    row = Row("e", 3, 1, b"7", datetime.now(UTC))
    group: list[WriterMessage] = [
        amend("a"),
        write("b"),
        Load(("test", "c"), (), ignore),
        write("d"),
        amend("f"),
    ]
    group.append(Load(("test", "none"), (), ignore))
    answers = answers_to(group, [False, True, True, False], {("test", "c"): row})
    assert answers == [SAVED, CONFLICT, Loaded(row), SAVED, CONFLICT, Loaded(None)]


def test_only_states_count_for_the_size_of_a_commit() -> None:
    """A load and an amendment are small."""
    assert size_of(write("a", b"x" * 100)) == 100
    assert size_of(amend("a")) == size_of(Load(("test", "a"), (), ignore)) == 0
