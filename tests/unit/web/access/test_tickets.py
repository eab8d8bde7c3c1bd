"""A process remembers the tickets that it has redeemed."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
from flask import Flask
from keyfold.web.access.tickets import Tickets
from support.parking import DEADLINE
from werkzeug.exceptions import Unauthorized


class _Watched(dict[str, float]):
    """Counts the entries that are read."""

    looks = 0

    def __getitem__(self, key: str) -> float:
        self.looks += 1
        return super().__getitem__(key)

    def __iter__(self) -> Iterator[str]:
        for key in super().__iter__():
            self.looks += 1
            yield key

    def items(self) -> Any:
        self.looks += len(self)
        return super().items()


def test_redeeming_one_does_not_look_through_all() -> None:
    """Expired tickets are forgotten, oldest first, and no other entry is read."""
    now = 0.0
    tickets = Tickets("s" * 30, 30, lambda: now)
    tickets._redeemed = watched = _Watched()
    made = [tickets.issue("test.totals", "a", "kim") for _ in range(200)]
    for number, ticket in enumerate(made[:-1]):
        now = number * 0.1
        assert tickets.redeem(ticket, "test.totals", "a") == "kim"
    assert watched.looks <= 2 * len(made)
    for ticket in (made[0], made[100], made[198]):
        with pytest.raises(Unauthorized, match="used"):
            tickets.redeem(ticket, "test.totals", "a")
    assert len(watched) == 199
    now += 31
    tickets.redeem(made[199], "test.totals", "a")
    assert len(watched) == 11 + 1


def test_two_first_requests_at_once_redeem_one_ticket_once(
    make_app: Callable[..., Flask], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The memory of redeemed tickets is made at the first use, and two requests may be first."""
    app, both = make_app(), threading.Barrier(2)
    app.secret_key = secret = "s" * 30
    access = app.extensions["keyfold"].access

    class Slow(Tickets):
        def __init__(self, *arguments: Any) -> None:
            both.wait(DEADLINE)
            super().__init__(*arguments)

    monkeypatch.setattr("keyfold.web.access.read.Tickets", Slow)
    ticket = Tickets(secret, 30).issue("test.totals", "a", "kim")

    def redeem() -> str | None:
        try:
            user: str | None = access._redeem(app, ticket, "test.totals", "a")
        except Unauthorized:
            return None
        return user

    with ThreadPoolExecutor(2) as pool:
        answers = [pool.submit(redeem) for _ in range(2)]
        assert sorted(str(answer.result(DEADLINE)) for answer in answers) == ["None", "kim"]
