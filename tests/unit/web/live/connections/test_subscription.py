"""A subscription's key, and the right that it is live by."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

from keyfold.web.live.connections.subscription import Subscription, TicketGrant


class Channel(SimpleNamespace):
    """Notes the subscriptions that leave."""

    def leave(self, subscription: Subscription) -> None:
        self.left.append(subscription)


CONNECTION: Any = None


def test_it_has_the_key_of_its_channel_or_of_the_request() -> None:
    """Before its check it has no channel."""
    channel: Any = Channel(name="test.totals", key="a", left=[])
    assert Subscription(CONNECTION, channel, None, row_key=("test.totals", "b")).row_key == (
        "test.totals",
        "a",
    )
    assert Subscription(CONNECTION, None, None, row_key=("test.totals", "b")).row_key == ("test.totals", "b")


def test_a_ticket_is_a_right_only_after_its_check() -> None:
    """The text of a ticket, which the client has sent, grants nothing."""
    assert Subscription(CONNECTION, None, None, opened_by="a ticket").ticket_grant is None
    grant = TicketGrant("kim", 30.0)
    assert Subscription(CONNECTION, None, None, opened_by=grant).ticket_grant is grant


def test_it_leaves_its_channel_if_it_has_one() -> None:
    """Leaving without a channel is no error: the check may still be under way."""
    channel: Any = Channel(name="test.totals", key="a", left=[])
    subscription = Subscription(CONNECTION, channel, None)
    subscription.leave()
    Subscription(CONNECTION, None, None).leave()
    assert channel.left == [subscription]
