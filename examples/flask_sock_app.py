"""An app with Flask-Sock handlers of its own: two give their socket to Keyfold's hub, one keeps it.

Run it: ``gunicorn --threads 8 -c python:keyfold.web.gunicorn --chdir examples flask_sock_app:app``. POST
/adjust/north/apple/3 changes the stock. ``/live/north`` is a WebSocket of one warehouse,
``/compare/north/south`` one of two, and ``/calculator`` one that a thread of its own answers.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask
from flask_sock import Sock
from keyfold import Keyfold, Projection


@dataclass
class StockAdjusted:
    """Pieces of an article came to a warehouse, or left it."""

    warehouse: str
    sku: str
    by: int


@dataclass
class Stock:
    """The pieces of each article."""

    totals: dict[str, int] = field(default_factory=dict)


class WarehouseStock(Projection[StockAdjusted, Stock]):
    """One key per warehouse."""

    name = "inventory.warehouse"
    public = True

    def key(self, event: StockAdjusted) -> str:
        """Return the warehouse."""
        return event.warehouse

    def apply(self, state: Stock, event: StockAdjusted) -> dict[str, Any]:
        """Add the pieces."""
        state.totals[event.sku] = state.totals.get(event.sku, 0) + event.by
        return {"sku": event.sku, "total": state.totals[event.sku]}


sock = Sock()
keyfold = Keyfold(sock=sock)
keyfold.register(WarehouseStock())
app = Flask(__name__)
app.config["KEYFOLD_DATABASE"] = os.environ.get(
    "KEYFOLD_DATABASE", f"sqlite:///{Path(__file__).parent / 'flask_sock_app.db'}"
)
app.config["SOCK_SERVER_OPTIONS"] = {"subprotocols": ["stock.v1"]}
keyfold.init_app(app)


@app.post("/adjust/<warehouse>/<sku>/<int(signed=True):by>")
def adjust(warehouse: str, sku: str, by: int) -> dict[str, int]:
    """Dispatch an event, and answer when it is committed."""
    [applied] = keyfold.bus.dispatch(StockAdjusted(warehouse, sku, by)).result(timeout=5)
    return {"version": applied.version}


@sock.route("/live/<warehouse>")  # type: ignore[untyped-decorator]
def live(ws: Any, warehouse: str) -> None:
    """Greet the client, then give its socket to the hub: snapshot and deltas of the warehouse."""
    ws.send(f"welcome to {warehouse}")
    keyfold.serve(ws, "inventory.warehouse", warehouse)


@sock.route("/compare/<one>/<other>")  # type: ignore[untyped-decorator]
def compare(ws: Any, one: str, other: str) -> None:
    """Give the socket to the hub with two subscriptions; the client may add more."""
    keyfold.serve(ws, ("inventory.warehouse", one), ("inventory.warehouse", other))


@sock.route("/calculator")  # type: ignore[untyped-decorator]
def calculator(ws: Any) -> None:
    """Keep the socket, as any Flask-Sock handler: add up the numbers of each message."""
    while True:
        ws.send(str(sum(int(number) for number in ws.receive().split("+"))))


sock.init_app(app)
