"""The private parts of Pykka that PooledActor fills or calls. A new Pykka that moves one fails here."""

from __future__ import annotations

import inspect

import pykka
import pytest
from keyfold.actors.pool.pooled_actor import PooledActor
from pykka import messages
from pykka._envelope import Envelope


@pytest.mark.parametrize("hook", ["_create_actor_inbox", "_create_future", "_start_actor_loop"])
def test_the_hooks_for_new_actor_types_exist_and_are_filled(hook: str) -> None:
    """Pykka's three abstract hooks are still its seam for new actor types, and no other was added."""
    assert pykka.Actor.__abstractmethods__ == {
        "_create_actor_inbox",
        "_create_future",
        "_start_actor_loop",
    }
    assert hook in vars(PooledActor)


@pytest.mark.parametrize(
    ("method", "parameters"),
    [
        ("_actor_loop_setup", ["self"]),
        ("_handle_receive", ["self", "message"]),
        ("_handle_failure", ["self", "exception_type", "exception_value", "traceback"]),
        ("_stop", ["self"]),
        ("on_start", ["self"]),
        ("on_stop", ["self"]),
        ("on_failure", ["self", "exception_type", "exception_value", "traceback"]),
        ("on_receive", ["self", "message"]),
    ],
)
def test_the_methods_that_are_called_or_overridden_keep_their_shape(
    method: str, parameters: list[str]
) -> None:
    """PooledActor calls or overrides each of these; a changed signature must be noticed."""
    assert list(inspect.signature(getattr(pykka.Actor, method)).parameters) == parameters


def test_an_actor_ref_reads_just_what_a_pooled_actor_offers() -> None:
    """ActorRef copies urn, inbox and stopped flag from the actor, and asks the flag and the inbox only."""
    source = inspect.getsource(pykka.ActorRef.__init__)
    assert {"actor.actor_urn", "actor.actor_inbox", "actor.actor_stopped"} <= set(
        source.replace("\n", " ").split()
    )
    assert "self.actor_stopped.is_set()" in inspect.getsource(pykka.ActorRef.is_alive)
    assert "self.actor_inbox.put(" in inspect.getsource(pykka.ActorRef.tell)


def test_the_envelope_and_the_stop_message_are_where_they_were() -> None:
    """An envelope has a message and a reply_to; stop is the private message _ActorStop."""
    assert Envelope.__slots__ == ["message", "reply_to"]
    assert messages._ActorStop() is not None
