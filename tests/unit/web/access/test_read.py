"""The requests that may read a key, and the identity of an admitted connection."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from flask import Flask, Request
from keyfold.web.access.read import Access
from werkzeug.exceptions import BadRequest, Forbidden, NotFound, Unauthorized
from werkzeug.test import EnvironBuilder

PUBLIC, PRIVATE = ("test.totals", "a"), ("test.private", "a")
TOKEN = "let-me-see"  # not a secret


def access_of(app: Flask) -> Access:
    found: Access = app.extensions["keyfold"].access
    return found


def request(path: str = "/", **headers: str) -> Request:
    return Request(
        EnvironBuilder(
            path=path, headers=list(headers.items()), environ_base={"REMOTE_ADDR": "10.0.0.7"}
        ).get_environ()
    )


def test_a_projection_that_is_not_public_is_refused_without_authorize(
    make_app: Callable[..., Flask], caplog: pytest.LogCaptureFixture
) -> None:
    """The log says which callable is missing. An operator may read it."""
    access = access_of(make_app(KEYFOLD_ADMIN_TOKEN=TOKEN))
    access.check_read(request(), *PUBLIC)
    with pytest.raises(Forbidden):
        access.check_read(request(), *PRIVATE)
    assert "no authorize callable is set" in caplog.text
    access.check_read(request(Authorization=f"Bearer {TOKEN}"), *PRIVATE)


@pytest.mark.parametrize("answer", [False, None, 1, "yes", ZeroDivisionError])
def test_only_true_authorizes_a_reader(make_app: Callable[..., Flask], answer: Any) -> None:
    """A truthy value may be a mistake, and an error refuses."""

    def authorize(_request: Request, _name: str, _key: str) -> Any:
        if answer is ZeroDivisionError:
            raise ZeroDivisionError
        return answer

    access = access_of(make_app(authorize=authorize))
    with pytest.raises(Forbidden):
        access.check_read(request(), *PRIVATE)


def test_authorize_decides_by_request_and_row_key(make_app: Callable[..., Flask]) -> None:
    """It is not called for a public projection."""
    asked = []

    def authorize(asking: Request, name: str, key: str) -> bool:
        asked.append((name, key))
        return asking.headers.get("X-Team") == key

    access = access_of(make_app(authorize=authorize))
    access.check_read(request(), *PUBLIC)
    access.check_read(request(**{"X-Team": "a"}), *PRIVATE)
    with pytest.raises(Forbidden):
        access.check_read(request(**{"X-Team": "b"}), *PRIVATE)
    assert asked == [PRIVATE, PRIVATE]


@pytest.mark.parametrize(
    ("row_key", "error"),
    [(("no.such", "a"), NotFound), (("test.totals", ""), BadRequest), (("test.totals", "a\n"), BadRequest)],
)
def test_a_wrong_row_key_is_refused_before_any_check(
    make_app: Callable[..., Flask], row_key: tuple[str, str], error: type[Exception]
) -> None:
    """``authorize`` gets only names that are registered and keys that are well-formed."""
    access = access_of(make_app(authorize=lambda *_: pytest.fail("authorize was called")))
    with pytest.raises(error):
        access.check_read(request(), *row_key)


def test_an_open_connection_is_authorized_with_its_own_request(make_app: Callable[..., Flask]) -> None:
    """A copy: ``authorize`` sees the headers of the handshake, and its present answer counts."""
    allowed = {"kim"}

    def authorize(asking: Request, _name: str, _key: str) -> bool:
        return asking.headers["X-User"] in allowed

    app = make_app(authorize=authorize)
    identity = access_of(app).admit(app, request(**{"X-User": "kim"}), PRIVATE)
    assert (identity.user, identity.by_ticket) == (None, False)
    assert identity.may(*PRIVATE, None) is not None
    assert identity.may("no.such", "a", None) is None
    allowed.clear()
    assert identity.may(*PRIVATE, None) is None


def test_a_connection_to_a_public_key_may_nothing_else(make_app: Callable[..., Flask]) -> None:
    """It is never authorized again, so it keeps no copy of its request."""
    app = make_app(authorize=lambda *_: True)
    identity = access_of(app).admit(app, request(), PUBLIC)
    assert identity.may(*PRIVATE, None) is None


def test_a_ticket_stands_for_authorize(make_app: Callable[..., Flask]) -> None:
    """Once, with the user that it was issued for."""
    app = make_app(authorize=lambda *_: pytest.fail("authorize was called"))
    app.secret_key = "s" * 30
    access = access_of(app)
    ticket = access.ticket(app, *PRIVATE, "kim")
    identity = access.admit(app, request(f"/?ticket={ticket}"), PRIVATE)
    assert (identity.user, identity.by_ticket, identity.may(*PRIVATE, None)) == ("kim", True, None)
    with pytest.raises(Unauthorized, match="has been used"):
        access.admit(app, request(f"/?ticket={ticket}"), PRIVATE)


def test_the_origin_is_checked_first(make_app: Callable[..., Flask]) -> None:
    """A page of another origin is refused even where everybody may read, and learns nothing about names."""
    app = make_app()
    for row_key in (PUBLIC, ("no.such", "a"), None):
        with pytest.raises(Forbidden, match="KEYFOLD_ALLOWED_ORIGINS"):
            access_of(app).admit(app, request(Origin="https://evil.example"), row_key)
