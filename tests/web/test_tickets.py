"""What a process remembers of the tickets that it has redeemed."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import pytest
from keyfold.web.tickets import Tickets
from werkzeug.exceptions import Unauthorized


class _Watched(dict[str, float]):
    """Counts the entries that are looked at."""

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
    """What is too old is forgotten, oldest first, and nothing else is looked at."""
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
