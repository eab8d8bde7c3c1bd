"""Which answer belongs to which message of a group."""

from __future__ import annotations

from datetime import UTC, datetime

from keyfold.store import Position
from keyfold.store.rows import Amendment, Row, Save
from keyfold.store.writing.writer_messages import (
    Amend,
    Answer,
    Conflict,
    Load,
    Loaded,
    Saved,
    Write,
    WriterMessage,
    answers_to,
    size_of,
)


def ignore(_answer: Answer) -> None:
    pass


def load(key: str) -> Load:
    return Load(("stock", key), (), ignore)


def write(key: str) -> Write:
    return Write(Save("stock", key, None, "e", 1, b"12345"), ignore)


def amend(key: str) -> Amend:
    position = Position("e", 1)
    return Amend(Amendment("stock", key, None, was_halted=False, position=position, state=b"1"), ignore)


def test_results_of_saves_and_amendments_go_to_their_own_messages() -> None:
    """The commit reports saves first and amendments next, in whatever order the messages came."""
    group: list[WriterMessage] = [amend("a"), write("b"), load("c"), amend("d"), write("e")]
    answers = answers_to(group, [True, False, False, True], {})
    # By their types: Saved() and Conflict() are equal, as empty tuples are.
    assert [type(answer) for answer in answers] == [Conflict, Saved, Loaded, Saved, Conflict]


def test_a_load_gets_the_row_of_its_own_key() -> None:
    """A key without a row is answered by None."""
    row = Row("e", 1, 1, b"1", datetime.now(UTC))
    answers = answers_to([load("a"), load("b")], [], {("stock", "b"): row})
    assert answers == [Loaded(None), Loaded(row)]


def test_only_the_state_of_a_write_counts_as_bytes() -> None:
    """Loads and amendments add nothing to the size of a transaction."""
    assert [size_of(message) for message in (load("a"), write("a"), amend("a"))] == [0, 5, 0]
