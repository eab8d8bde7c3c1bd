"""A projection, its runtime and its events, as a user would write them. Checked, never run.

The checkers are mypy and pyright, both strict. A line that has to be wrong has an ignore comment; an
unnecessary ignore comment is an error too.
"""

# pyright: reportUnnecessaryTypeIgnoreComment=error
from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import assert_type

from keyfold.actors import (
    Applied,
    EventBus,
    Projection,
    ProjectionRuntime,
    ProjectionSystem,
    Receipt,
    Snapshot,
)
from keyfold.store import Position


@dataclass
class StockAdjusted:
    """So much more, or less."""

    warehouse: str
    sku: str
    by: int


@dataclass
class StockCounted:
    """So much is there."""

    warehouse: str
    sku: str
    count: int


@dataclass
class Stock:
    """The stock of a warehouse."""

    totals: dict[str, int] = field(default_factory=dict)


class WarehouseStock(Projection[StockAdjusted | StockCounted, Stock]):
    """One key an event, a union of events."""

    name = "inventory.warehouse"
    public = True

    def key(self, event: StockAdjusted | StockCounted) -> str:
        """The warehouse."""
        return event.warehouse

    def apply(self, state: Stock, event: StockAdjusted | StockCounted) -> dict[str, int]:
        """Count."""
        before = state.totals.get(event.sku, 0)
        state.totals[event.sku] = event.count if isinstance(event, StockCounted) else before + event.by
        return {event.sku: state.totals[event.sku]}


class StockOfSku(Projection[StockAdjusted, Stock]):
    """Several keys an event, an event that may not concern it."""

    name = "inventory.sku"
    schema_version = 2

    def keys(self, event: StockAdjusted) -> Iterable[str]:
        """All that it is about."""
        return (event.sku, "all")

    def apply(self, state: Stock, event: StockAdjusted) -> None:
        """No delta to tell."""
        state.totals[event.warehouse] = event.by

    def history(self, key: str) -> Iterable[StockAdjusted]:
        """For a rebuild."""
        return [StockAdjusted("north", key, 1)]


class WrongKey(Projection[StockAdjusted, Stock]):
    """A key is a str."""

    def key(self, event: StockAdjusted) -> int:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Not that."""
        return event.by

    def apply(self, state: Stock, event: StockCounted) -> None:  # type: ignore[override]  # pyright: ignore[reportIncompatibleMethodOverride]
        """Of another event."""


def use(system: ProjectionSystem) -> None:
    """Results have the types of the projection's state and delta."""
    stock = system.register(WarehouseStock())
    assert_type(stock, ProjectionRuntime[StockAdjusted | StockCounted, Stock])
    assert_type(stock.read("north"), Stock | None)
    assert_type(stock.read_required("north"), Stock)
    assert_type(stock.rebuild("north", [StockCounted("north", "apple", 3)]), Stock)
    snapshot = stock.snapshot("north")
    assert_type(snapshot, Snapshot[Stock] | None)
    if snapshot is not None:
        assert_type(snapshot.state, Stock)
        assert_type(snapshot.version, int)
    assert_type(system.bus, EventBus)
    receipt = system.bus.dispatch(StockAdjusted("north", "apple", 3))
    assert_type(receipt, Receipt)
    assert_type(receipt.result(timeout=1), tuple[Applied, ...])
    [applied] = receipt.result()
    assert_type(applied.version, int)
    stock.read(7)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]
    stock.apply_event("no event")  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def listen(bus: EventBus) -> None:
    """Listeners take the event that they ask for."""

    @bus.on(StockAdjusted, priority=10)
    def adjusted(event: StockAdjusted) -> None:
        assert_type(event.by, int)

    def counted(event: StockCounted) -> None:
        assert_type(event.count, int)

    bus.listen(StockCounted, counted)
    bus.listen(StockAdjusted, counted)  # type: ignore[arg-type]  # pyright: ignore[reportArgumentType]


def keep(system: ProjectionSystem) -> None:
    """A value of one's own."""
    position = system.store.write("inventory.closed", "north", {"until": 7})
    assert_type(position, Position)
    system.store.write("inventory.closed", "north", {"until": 8}, expected=position)
