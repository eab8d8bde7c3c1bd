"""Which pages may use their user's cookies here."""

from __future__ import annotations

from collections.abc import Callable

import pytest
from flask import Flask
from hypothesis import given
from hypothesis import strategies as st
from keyfold.web.access.origin import Origin, parse_origin
from werkzeug.middleware.proxy_fix import ProxyFix


@pytest.mark.parametrize(
    ("text", "origin"),
    [
        ("https://shop.example", Origin("https", "shop.example", 443)),
        ("HTTPS://Shop.Example:8443", Origin("https", "shop.example", 8443)),
        ("http://shop.example:80", Origin("http", "shop.example", 80)),
        ("http://localhost:5000", Origin("http", "localhost", 5000)),
        ("http://my_shop", Origin("http", "my_shop", 80)),
        ("http://[::1]:5000", Origin("http", "::1", 5000)),
        ("http://[0:0:0:0:0:0:0:1]", Origin("http", "::1", 80)),
        ("https://bücher.example", Origin("https", "xn--bcher-kva.example", 443)),
        ("https://xn--bcher-kva.example", Origin("https", "xn--bcher-kva.example", 443)),
    ],
)
def test_an_origin_is_compared_in_one_form(text: str, origin: Origin) -> None:
    """Case, default port, punycode and the spelling of an IPv6 address make no difference."""
    assert parse_origin(text) == origin


NO_ORIGINS = [
    "", "null", "garbage", "shop.example", "//shop.example", "http://", "https://shop.example/",
    "https://shop.example/page", "https://evil@shop.example", "https://shop.example#@evil.example",
    "https://evil.example\\\\@shop.example", "https://evil.example\\@shop.example", "https://shop.example?x",
    "ftp://shop.example", "ws://shop.example", "wss://shop.example", "file://shop.example",
    "https:shop.example", "https://shop.example:", "https://shop.example:0", "https://shop.example:65536",
    "https://shop.example:1e3",
    "https://shop.example:٤٤٣", "https://[shop.example]", "https://[::1", "https://::1", "https://[::1%eth0]",
    "https://shop.example, https://evil.example", "https://shop.example https://evil.example", "https://-",
    "https://shop.example\n", " https://shop.example", "https://%73hop.example", "https://*.example",
]  # fmt: skip


@pytest.mark.parametrize("text", NO_ORIGINS)
def test_other_texts_are_no_origins(text: str) -> None:
    """No browser sends them."""
    assert parse_origin(text) is None


@given(st.text(st.sampled_from("htps:/.@#?[]\\ %a1é-"), max_size=20), st.booleans())
def test_an_origin_written_down_is_the_same_again(text: str, begun: bool) -> None:  # noqa: FBT001
    """Any text is either an origin that can be written in one way, or none. It never raises."""
    origin = parse_origin(f"https://{text}" if begun else text)
    if origin is not None:
        host = f"[{origin.host}]" if ":" in origin.host else origin.host
        assert parse_origin(f"{origin.scheme}://{host}:{origin.port}") == origin


def told(app: Flask, origin: str, base: str, **environ: str) -> str | None:
    """Return the origin that the answer lets read, or None."""
    client = app.test_client()
    headers = {"Origin": origin}
    answer = client.get(
        "/projection/test.totals/a", base_url=base, headers=headers, environ_overrides=environ
    )
    return answer.headers.get("Access-Control-Allow-Origin")


@pytest.mark.parametrize(
    ("base", "origin", "admitted"),
    [
        ("https://shop.example", "https://shop.example", True),
        ("https://shop.example", "http://shop.example", False),
        ("https://shop.example:8443", "https://shop.example:8443", True),
        ("https://shop.example:8443", "http://shop.example:8443", False),
        ("https://shop.example:8443", "https://shop.example", False),
        ("http://shop.example", "http://shop.example", True),
        ("http://shop.example", "https://shop.example", True),  # a proxy may hide TLS
        ("http://shop.example:8443", "https://shop.example:8443", True),
        ("http://shop.example:8443", "https://shop.example", False),
        ("http://shop.example", "http://evil.example", False),
        ("https://[::1]:5000", "https://[::1]:5000", True),
        ("https://[::1]:5000", "http://[::1]:5000", False),
        ("http://shop.example", "https://friend.example", True),
        ("https://shop.example", "https://friend.example", True),
        ("https://shop.example", "http://friend.example", False),
        ("https://shop.example", "https://bücher.example", True),
        ("https://shop.example", "https://xn--bcher-kva.example", True),
    ],
)
def test_the_scheme_counts_where_it_is_known(
    make_app: Callable[..., Flask], base: str, origin: str, *, admitted: bool
) -> None:
    """A page over http is another origin than the same over https: it may have been changed on its way."""
    app = make_app(KEYFOLD_ALLOWED_ORIGINS=["https://friend.example", "https://bücher.example"])
    given = origin.encode().decode("latin-1")
    assert told(app, given, base) == (given if admitted and given.isascii() else None)


def test_a_proxy_that_tells_the_scheme_is_believed(make_app: Callable[..., Flask]) -> None:
    """With ProxyFix the request is known to be one over https."""
    app = make_app()
    app.wsgi_app = ProxyFix(app.wsgi_app, x_proto=1)  # type: ignore[method-assign]
    for origin, admitted in (("https://shop.example", True), ("http://shop.example", False)):
        found = told(app, origin, "http://shop.example", HTTP_X_FORWARDED_PROTO="https")
        assert found == (origin if admitted else None)


@pytest.mark.parametrize("text", [text for text in NO_ORIGINS if text.isascii() and "\n" not in text])
def test_a_text_that_is_not_an_origin_is_never_reflected(make_app: Callable[..., Flask], text: str) -> None:
    """Not even where its host is ours."""
    assert told(make_app(), text, "https://shop.example") is None
