"""Errors: their messages and their attributes."""

from __future__ import annotations

from keyfold.store import CommitInDoubt, InvalidKey, ProjectionError, VersionConflict
from keyfold.store.errors import describe


class _Unreadable(Exception):
    def __str__(self) -> str:
        raise SystemExit


def test_an_exception_is_described_by_its_class_and_text() -> None:
    """Also if its class has a broken ``__str__``."""
    assert describe(ValueError("text")) == "ValueError: text"
    assert describe(ValueError()) == "ValueError"
    assert describe(_Unreadable()) == "<_Unreadable whose str() raises>"


def test_the_facts_of_an_error_are_for_a_log_record() -> None:
    """Its plain attributes; a list is none."""
    error = VersionConflict(projection="stock", key="a", expected="e:1")
    assert str(error) == "projection: stock: the row of key 'a' is no longer at e:1"
    assert error.facts == {"projection": "stock", "key": "a", "expected": "e:1"}
    doubt = CommitInDoubt("lost", transaction_number=3, written=[True])
    assert doubt.facts == {"projection": None, "key": None, "transaction_number": 3}
    assert ProjectionError("text").facts == {"projection": None, "key": None}


def test_a_long_key_is_cut_in_the_message_only() -> None:
    """A log line stays readable, and a handler has the whole key."""
    error = InvalidKey("k" * 600, "it is too long", projection="stock")
    assert error.key == "k" * 600
    assert len(str(error)) < 150
    assert InvalidKey(7, "it is no str").key is None
