"""How long an admin cookie is valid, and which requests come from an operator."""

from __future__ import annotations

from typing import Any

import pytest
from flask import Request
from keyfold.web.access.admin import (
    ADMIN_COOKIE,
    COOKIE_SECONDS,
    CSRF_COOKIE,
    LOGIN_SECONDS,
    AdminAccess,
    AdminCookies,
)
from keyfold.web.access.origin import AllowedOrigins
from werkzeug.exceptions import Forbidden
from werkzeug.test import EnvironBuilder


class Clock:
    """Shows the time that a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_cookie_that_is_not_renewed_ends_after_an_hour() -> None:
    """A copy of a cookie is soon worth nothing, also after its operator has signed out."""
    clock = Clock()
    cookies = AdminCookies("token", clock)
    given = cookies.issue()
    clock.now += COOKIE_SECONDS
    assert cookies.is_valid(given)
    clock.now += 1
    assert not cookies.is_valid(given)
    assert cookies.renew(given) is None


def test_a_page_that_is_used_keeps_its_operator_signed_in_for_half_a_day() -> None:
    """After that, the token has to be entered again."""
    clock = Clock()
    cookies = AdminCookies("token", clock)
    begun, given = clock.now, cookies.issue()
    while clock.now - begun <= LOGIN_SECONDS:
        assert cookies.is_valid(given)
        given = cookies.renew(given) or given
        clock.now += 600
    assert cookies.renew(given) is None
    assert not cookies.is_valid(given)
    assert not cookies.is_valid(given, until_login_ends=True)


def test_a_connection_goes_on_with_the_cookie_that_it_was_opened_with() -> None:
    """It cannot show a newer one; the end of its login ends it."""
    clock = Clock()
    cookies = AdminCookies("token", clock)
    given = cookies.issue()
    clock.now += LOGIN_SECONDS - 1
    assert cookies.is_valid(given, until_login_ends=True)
    assert not cookies.is_valid(given)


def test_a_new_cookie_is_not_renewed() -> None:
    """A page that asks every two seconds does not get a cookie each time."""
    cookies = AdminCookies("token", Clock())
    assert cookies.renew(cookies.issue()) is None


def test_other_texts_are_not_valid_cookies() -> None:
    """Signed with another token, of another shape, or missing; without a token no cookie is valid."""
    cookies, others = AdminCookies("token"), AdminCookies("another")
    shapeless = cookies._serializer.dumps("operator")  # type: ignore[union-attr]
    for given in (others.issue(), str(shapeless), "x", "", None):
        assert not cookies.is_valid(given)
        assert not AdminCookies(None).is_valid(given)


def _request(**headers: str) -> Request:
    named = [(name.replace("_", "-"), value) for name, value in headers.items()]
    builder = EnvironBuilder(method="POST", headers=named)
    return Request(builder.get_environ())


def _admin(admin_token: str | None = "admin", metrics_token: str | None = None) -> AdminAccess:
    return AdminAccess(admin_token, metrics_token, AllowedOrigins(()))


def test_an_operator_shows_the_token_or_a_cookie_signed_with_it() -> None:
    """No token, an empty one and another scheme of authorization are refused."""
    admin = _admin()
    admin.check(_request(Authorization="Bearer admin"))
    admin.check(_request(Cookie=f"{ADMIN_COOKIE}={admin.issue_cookie()}"))
    for headers in (
        {},
        {"Authorization": "Bearer "},
        {"Authorization": "Bearer Admin"},
        {"Authorization": "Basic admin"},
    ):
        with pytest.raises(Forbidden):
            admin.check(_request(**headers))
    assert not _admin(None).is_admin(_request(Authorization="Bearer "))


@pytest.mark.parametrize("answer", [1, "yes", None, False])
def test_only_true_authorizes_an_operator(answer: object) -> None:
    """A truthy value may be a mistake, so it refuses; an error refuses as well."""

    def fails(_request: Request) -> bool:
        raise ZeroDivisionError

    def is_admin(authorize_admin: Any) -> bool:
        return AdminAccess(None, None, AllowedOrigins(()), authorize_admin).is_admin(_request())

    assert is_admin(lambda _request: True)
    assert not is_admin(lambda _request: answer)
    assert not is_admin(fails)


def test_the_metrics_token_opens_the_metrics_and_nothing_else() -> None:
    """Operators may read the metrics too."""
    admin = _admin(metrics_token="scraper")
    scraper = _request(Authorization="Bearer scraper")
    admin.check_metrics(scraper)
    admin.check_metrics(_request(Authorization="Bearer admin"))
    assert not admin.is_admin(scraper)
    with pytest.raises(Forbidden):
        admin.check_metrics(_request())


def test_a_post_repeats_the_csrf_token_of_its_cookie() -> None:
    """A request with the bearer token needs none, as no browser sends that by itself."""
    admin = _admin()
    first = admin.csrf_token(_request())
    again = _request(Cookie=f"{CSRF_COOKIE}={first}")
    assert (admin.csrf_token(again), admin.csrf_token(_request()) == first) == (first, False)
    admin.check_csrf(_request(Cookie=f"{CSRF_COOKIE}={first}", X_Keyfold_CSRF=first))
    admin.check_csrf(_request(Authorization="Bearer admin"))
    for headers in (
        {"Cookie": f"{CSRF_COOKIE}={first}"},
        {"X_Keyfold_CSRF": first},
        {"Cookie": f"{CSRF_COOKIE}=", "X_Keyfold_CSRF": ""},
        {"Cookie": f"{CSRF_COOKIE}={first}", "X_Keyfold_CSRF": first, "Origin": "https://evil.example"},
    ):
        with pytest.raises(Forbidden):
            admin.check_csrf(_request(**headers))
