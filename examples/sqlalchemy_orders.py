"""An app with its own SQLAlchemy models: it commits its rows first, and then dispatches to the read model.

Events are collected in the session, and dispatched once the session has committed. A transaction that is
rolled back dispatches nothing, and no transaction waits for an event. Run it with ``gunicorn --threads 8
--chdir examples sqlalchemy_orders:app``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from flask import Flask, abort, request
from keyfold import Keyfold, Projection
from sqlalchemy import ForeignKey, create_engine, event
from sqlalchemy.orm import DeclarativeBase, Mapped, Session, mapped_column, relationship, sessionmaker

HERE = Path(__file__).parent
DATABASE = os.environ.get("DATABASE", f"sqlite:///{HERE / 'orders.db'}")
READ_MODELS = os.environ.get("KEYFOLD_DATABASE", f"sqlite:///{HERE / 'orders_live.db'}")


# -- the app's own models


class Base(DeclarativeBase):
    """The app's tables."""


class Order(Base):
    """An order and its lines."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(back_populates="order")


class Line(Base):
    """One article of an order."""

    __tablename__ = "lines"
    id: Mapped[int] = mapped_column(primary_key=True)
    order_id: Mapped[int] = mapped_column(ForeignKey("orders.id"))
    order: Mapped[Order] = relationship(back_populates="lines")
    article: Mapped[str]
    pieces: Mapped[int]


engine = create_engine(DATABASE)
Sessions = sessionmaker(engine)


# -- the read model


@dataclass
class LineAdded:
    """A line was added to an order."""

    order: int
    article: str
    pieces: int


@dataclass
class OrderBoard:
    """The state that the page of an order shows."""

    pieces: int = 0
    articles: dict[str, int] = field(default_factory=dict)


class OrderBoards(Projection[LineAdded, OrderBoard]):
    """One key per order."""

    name = "orders.board"
    public = True

    def key(self, event: LineAdded) -> str:
        """Return the number of the order."""
        return str(event.order)

    def apply(self, state: OrderBoard, event: LineAdded) -> dict[str, Any]:
        """Add the line to the totals."""
        state.pieces += event.pieces
        state.articles[event.article] = state.articles.get(event.article, 0) + event.pieces
        return {"article": event.article, "total": state.articles[event.article], "pieces": state.pieces}


keyfold = Keyfold()
keyfold.register(OrderBoards())


# -- events that wait for the commit


def dispatch_later(session: Session, happened: object) -> None:
    """Dispatch an event once the session has committed."""
    session.info.setdefault("happened", []).append(happened)


@event.listens_for(Sessions, "after_commit")
def _dispatch(session: Session) -> None:
    for happened in session.info.pop("happened", []):
        keyfold.bus.dispatch(happened)


@event.listens_for(Sessions, "after_rollback")
def _forget(session: Session) -> None:
    session.info.pop("happened", None)


# -- requests

app = Flask(__name__)
app.config["KEYFOLD_DATABASE"] = READ_MODELS
keyfold.init_app(app)
Base.metadata.create_all(engine)


@app.post("/orders")
def order() -> dict[str, int]:
    """Create an order."""
    with Sessions.begin() as session:
        made = Order()
        session.add(made)
        session.flush()
        return {"order": made.id}


@app.post("/orders/<int:number>/lines")
def add_line(number: int) -> dict[str, int]:
    """Add a line. A wrong line rolls the transaction back, and no page sees it."""
    body = request.get_json()
    with Sessions.begin() as session:
        found = session.get(Order, number) or abort(404)
        session.add(Line(order=found, article=body["article"], pieces=body["pieces"]))
        dispatch_later(session, LineAdded(number, body["article"], body["pieces"]))
        session.flush()
        if body["pieces"] < 1:
            abort(400, "pieces is at least 1")
        return {"lines": len(found.lines)}
