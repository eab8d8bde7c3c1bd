"""An app without Flask: a plain WSGI function beside Keyfold's routes.

Run it with ``gunicorn --threads 8 -c python:keyfold.web.gunicorn --chdir examples plain_wsgi:app``. After a
POST to /sold/pen, ``/ws/projection/shop.sales/pen`` and ``/projection/shop.sales/pen`` show one more piece.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from keyfold import InvalidKey, MailboxFull, Projection, ProjectionSystem, create_app

StartResponse = Callable[[str, list[tuple[str, str]]], object]


@dataclass
class Sold:
    """One piece of an article was sold."""

    article: str


@dataclass
class Sales:
    """The number of pieces sold."""

    pieces: int = 0


class SalesOfArticle(Projection[Sold, Sales]):
    """One key per article."""

    name = "shop.sales"
    public = True

    def key(self, event: Sold) -> str:
        return event.article

    def apply(self, state: Sales, event: Sold) -> dict[str, int]:  # noqa: ARG002
        state.pieces += 1
        return {"pieces": state.pieces}


system = ProjectionSystem(
    os.environ.get("KEYFOLD_DATABASE", f"sqlite:///{Path(__file__).parent / 'plain_wsgi.db'}")
)
system.register(SalesOfArticle())
live = create_app(system)


def app(environ: dict[str, Any], start_response: StartResponse) -> Iterable[bytes]:
    """Serve /sold/…, and leave all other paths to Keyfold."""
    path = environ["PATH_INFO"].encode("latin-1").decode(errors="replace")
    if not path.startswith("/sold/"):
        return live(environ, start_response)  # type: ignore[arg-type]
    status, text = "405 Method Not Allowed", "POST to this\n"
    if environ["REQUEST_METHOD"] == "POST":
        status, text = sell(path.removeprefix("/sold/"))
    start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
    return [text.encode()]


def sell(article: str) -> tuple[str, str]:
    """Dispatch, wait for the commit, and return status and text."""
    try:
        [applied] = system.bus.dispatch(Sold(article)).result(timeout=5)
    except InvalidKey as error:
        return "400 Bad Request", f"{error}\n"
    except MailboxFull:
        return "503 Service Unavailable", "too many sales at once; try again\n"
    return "200 OK", f"{applied.delta['pieces']}\n"
