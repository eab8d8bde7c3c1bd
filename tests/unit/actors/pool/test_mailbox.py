"""The mailbox: one wake-up for many messages, none lost, sealed in one step."""

from __future__ import annotations

import threading
from time import monotonic
from typing import Any

import pytest
from keyfold.actors.errors import MailboxSealed
from keyfold.actors.pool.mailbox import Mailbox


class _Submissions:
    """Takes the place of the actor and its dispatcher, and counts the submissions."""

    def __init__(self) -> None:
        self.count = 0
        self.dispatcher = self

    def submit(self, actor: Any) -> None:
        assert actor is self
        self.count += 1


def _mailbox(limit: int = 10) -> tuple[Mailbox, _Submissions]:
    mailbox, submissions = Mailbox(limit), _Submissions()
    mailbox.attach(submissions)  # type: ignore[arg-type]
    return mailbox, submissions


def test_an_idle_actor_is_submitted_once_however_many_messages_arrive() -> None:
    """Otherwise two threads would run one actor at the same time: promise 1 (per-key order)."""
    mailbox, submissions = _mailbox()
    for message in "abc":
        mailbox.put(message)
    mailbox.put_signal("signal")
    assert submissions.count == 1


def test_a_message_that_arrives_during_the_turn_is_not_forgotten_at_its_end() -> None:
    """Going idle looks for new messages under the lock that put takes: no wake-up is lost."""
    mailbox, submissions = _mailbox()
    mailbox.put("a")
    assert mailbox.take(10) == ["a"]
    mailbox.put("late")
    assert mailbox.rest(suspended=False) is True
    assert submissions.count == 1  # the dispatcher that ran the actor submits it again


def test_a_suspended_actor_is_woken_by_signals_only() -> None:
    """While a turn is being saved, events pile up into the next batch."""
    mailbox, submissions = _mailbox()
    mailbox.put("a")
    mailbox.take(10)
    assert mailbox.rest(suspended=True) is False
    mailbox.put("b")
    assert submissions.count == 1
    mailbox.put_signal("saved")
    assert submissions.count == 2
    assert mailbox.take_signals() == ["saved"]
    assert mailbox.rest(suspended=False) is True


def test_the_limit_bounds_messages_but_not_signals() -> None:
    """Promise 9: a mailbox is bounded; the answers that empty it must always get in."""
    mailbox, _ = _mailbox(limit=2)
    mailbox.put("a")
    mailbox.put("b")
    with pytest.raises(BlockingIOError):
        mailbox.put("c")
    mailbox.put_signal("saved")
    assert mailbox.take(10) == ["a", "b"]
    mailbox.put("c")
    assert len(mailbox) == 1


def test_messages_put_back_stand_in_front() -> None:
    """Promise 1: events that are folded again keep their place before those that have arrived since."""
    mailbox, _ = _mailbox()
    for message in "abc":
        mailbox.put(message)
    taken = mailbox.take(2)
    mailbox.put("d")
    mailbox.put_back(taken)
    assert mailbox.take(10) == ["a", "b", "c", "d"]


def test_a_mailbox_that_holds_anything_is_not_sealed() -> None:
    """Promise 7: a message that arrived before the seal is handled by the actor that has it."""
    mailbox, _ = _mailbox()
    mailbox.put("a")
    assert mailbox.seal_if_empty() is False
    mailbox.take(10)
    mailbox.put_signal("hint")
    assert mailbox.seal_if_empty() is False
    mailbox.take_signals()
    assert mailbox.seal_if_empty() is True


def test_a_sealed_mailbox_refuses_loudly() -> None:
    """Promise 7.

    A message that arrives after the seal goes back to the sender, which asks for the next actor.
    """
    mailbox, _ = _mailbox()
    assert mailbox.seal() == []
    with pytest.raises(MailboxSealed):
        mailbox.put("a")
    with pytest.raises(MailboxSealed):
        mailbox.put_signal("a")


@pytest.mark.parametrize("by", ["take", "seal"])
def test_a_sender_that_waits_for_room_is_woken(by: str) -> None:
    """A full mailbox makes a sender wait until there is room, or until the actor has ended."""
    mailbox, _ = _mailbox(limit=1)
    mailbox.put("a")
    woken = threading.Event()

    def wait() -> None:
        if mailbox.wait_for_room(monotonic() + 30):
            woken.set()

    sender = threading.Thread(target=wait)
    sender.start()
    if by == "take":
        mailbox.take(1)
    else:
        mailbox.seal()
    assert woken.wait(10)
    sender.join(10)


def test_waiting_for_room_ends_at_the_deadline() -> None:
    """Nobody waits for ever."""
    mailbox, _ = _mailbox(limit=1)
    mailbox.put("a")
    assert mailbox.wait_for_room(monotonic()) is False


def test_an_actor_that_was_submitted_twice_has_one_turn() -> None:
    """A wake-up may be repeated after an interrupt: two threads must not run one actor at the same time."""
    mailbox, submissions = _mailbox()
    mailbox.put("a")
    mailbox.wake()
    assert submissions.count == 2
    assert [mailbox.begin_turn(), mailbox.begin_turn()] == [True, False]
    assert mailbox.take(10) == ["a"]
    assert mailbox.rest(suspended=False) is False
    assert mailbox.begin_turn() is False  # its second submission comes late


def test_a_message_whose_put_was_interrupted_is_taken_back_alone() -> None:
    """Promise 1: the others stay, in their order, and the actor has its turn."""
    mailbox, submissions = _mailbox()
    first, second = object(), object()
    mailbox.put(first)
    mailbox.put(second)
    mailbox.withdraw(first)
    assert submissions.count == 2
    assert mailbox.take(10) == [second]
    mailbox.withdraw(second)
    assert len(mailbox) == 0


def test_a_turn_that_outlives_a_close_leaves_the_mailbox_sealed() -> None:
    """Its end must not open it again: an event would wait there for ever."""
    mailbox, _ = _mailbox()
    mailbox.put("a")
    assert mailbox.begin_turn() is True
    mailbox.seal()
    assert mailbox.rest(suspended=False) is False
    assert mailbox.offer("late") is False
