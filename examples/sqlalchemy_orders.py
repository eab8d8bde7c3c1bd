"""An app with SQLAlchemy models of its own: its rows first, then the read model.

The event of a change is kept with the session, and dispatched once the session has committed. A transaction that is rolled back
dispatches nothing; and no event waits inside of one. Run it: ``gunicorn --threads 8 --chdir examples sqlalchemy_orders:app``.
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
    """What somebody ordered."""

    __tablename__ = "orders"
    id: Mapped[int] = mapped_column(primary_key=True)
    lines: Mapped[list[Line]] = relationship(back_populates="order")


class Line(Base):
    """One article of it."""

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
    """An order has one line more."""

    order: int
    article: str
    pieces: int


@dataclass
class OrderBoard:
    """What the page of an order shows."""

    pieces: int = 0
    articles: dict[str, int] = field(default_factory=dict)


class OrderBoards(Projection[LineAdded, OrderBoard]):
    """A key an order."""

    name = "orders.board"
    public = True

    def key(self, event: LineAdded) -> str:
        """The order's number."""
        return str(event.order)

    def apply(self, state: OrderBoard, event: LineAdded) -> dict[str, Any]:
        """Add the line up."""
        state.pieces += event.pieces
        state.articles[event.article] = state.articles.get(event.article, 0) + event.pieces
        return {"article": event.article, "total": state.articles[event.article], "pieces": state.pieces}


keyfold = Keyfold()
keyfold.register(OrderBoards())


# -- events that wait for the commit


def tell(session: Session, happened: object) -> None:
    """Dispatch this once the session has committed."""
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
    """Begin an order."""
    with Sessions.begin() as session:
        made = Order()
        session.add(made)
        session.flush()
        return {"order": made.id}


@app.post("/orders/<int:number>/lines")
def add_line(number: int) -> dict[str, int]:
    """Add a line; what is wrong with it rolls the transaction back, and no page sees anything."""
    asked = request.get_json()
    with Sessions.begin() as session:
        found = session.get(Order, number) or abort(404)
        session.add(Line(order=found, article=asked["article"], pieces=asked["pieces"]))
        tell(session, LineAdded(number, asked["article"], asked["pieces"]))
        session.flush()
        if asked["pieces"] < 1:
            abort(400, "pieces is at least 1")
        return {"lines": len(found.lines)}
