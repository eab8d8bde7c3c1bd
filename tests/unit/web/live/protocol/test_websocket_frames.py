"""The hub's frames against RFC 6455: the cases of the Autobahn test suite (which needs Python 2), by hand.

The numbers are those of its case groups. An echo answers, by the library's own frame handling.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator

import pytest
from keyfold.actors import ProjectionSystem
from keyfold.web.live.hub import Hub
from keyfold.web.settings import WebSettings
from support.raw_client import (
    BINARY,
    CLOSE,
    CONTINUATION,
    PING,
    PONG,
    TEXT,
    RawClient,
    client_frame,
    echo_client,
)

KOSME = "κόσμε".encode()


@pytest.fixture
def hub() -> Iterator[Hub]:
    hub = Hub(WebSettings(), ProjectionSystem("sqlite://", tuning={"report_seconds": 0}))
    yield hub
    hub.close()


@pytest.fixture
def client(hub: Hub) -> Iterator[RawClient]:
    client = echo_client(hub)
    yield client
    client.close()


def close_with(code: int | None = None, reason: bytes = b"") -> bytes:
    payload = b"" if code is None else struct.pack("!H", code) + reason
    return client_frame(CLOSE, payload)


@pytest.mark.parametrize("size", [0, 1, 125, 126, 127, 128, 65535, 65536, 1_000_000])
@pytest.mark.parametrize("opcode", [TEXT, BINARY])
def test_1_and_9_messages_of_every_length(client: RawClient, opcode: int, size: int) -> None:
    """7, 16 and 64 bits of length come and go."""
    client.send(client_frame(opcode, b"*" * size))
    assert client.frame() == (opcode, b"*" * size)


@pytest.mark.parametrize("chop", [1, 7, 997])
def test_1_frames_in_small_pieces(client: RawClient, chop: int) -> None:
    """TCP keeps no borders."""
    whole = client_frame(TEXT, KOSME * 200) + client_frame(PING, b"p")
    for start in range(0, len(whole), chop):
        client.send(whole[start : start + chop])
    assert client.frame() == (TEXT, KOSME * 200)
    assert client.frame() == (PONG, b"p")


@pytest.mark.parametrize("payload", [b"", b"Hello", b"\x00\xff\xfe\xfd", b"\xfe" * 125])
def test_2_pings_are_answered_with_their_payload(client: RawClient, payload: bytes) -> None:
    """Up to 125 bytes."""
    client.send(client_frame(PING, payload))
    assert client.frame() == (PONG, payload)


def test_2_many_pings_in_one_go_and_pongs_unasked(client: RawClient) -> None:
    """In order; a pong that nobody asked for is ignored."""
    client.send(client_frame(PONG, b"unasked"), *(client_frame(PING, b"%d" % n) for n in range(10)))
    assert [client.frame() for _ in range(10)] == [(PONG, b"%d" % n) for n in range(10)]


@pytest.mark.parametrize(
    "bad",
    [
        pytest.param(client_frame(PING, b"x" * 126), id="2-ping-too-long"),
        *(
            pytest.param(client_frame(TEXT, b"x", reserved=bits), id=f"3-reserved-{bits}")
            for bits in range(1, 8)
        ),
        pytest.param(client_frame(PING, b"x", reserved=4), id="3-reserved-ping"),
        pytest.param(client_frame(CLOSE, b"", reserved=1), id="3-reserved-close"),
        *(
            pytest.param(client_frame(code, b""), id=f"4-opcode-{code}")
            for code in (3, 4, 5, 6, 7, 11, 12, 13, 14, 15)
        ),
        pytest.param(client_frame(PING, b"", final=False), id="5-ping-in-fragments"),
        pytest.param(client_frame(PONG, b"", final=False), id="5-pong-in-fragments"),
        pytest.param(client_frame(CLOSE, b"", final=False), id="5-close-in-fragments"),
        pytest.param(client_frame(CONTINUATION, b"x"), id="5-continuation-of-nothing"),
        pytest.param(
            client_frame(CONTINUATION, b"x", final=False), id="5-continuation-of-nothing-unfinished"
        ),
        pytest.param(
            client_frame(TEXT, b"x", final=False) + client_frame(TEXT, b"y"), id="5-text-inside-a-text"
        ),
        pytest.param(
            client_frame(TEXT, b"x", final=False) + client_frame(BINARY, b"y"), id="5-binary-inside-a-text"
        ),
        pytest.param(client_frame(TEXT, b"x", masked=False), id="rfc-5.1-unmasked"),
        pytest.param(b"\x81\xfe\x00\x05mask.....", id="rfc-5.2-length-not-minimal-16"),
        pytest.param(b"\x81\xff" + struct.pack("!Q", 5) + b"mask.....", id="rfc-5.2-length-not-minimal-64"),
        pytest.param(b"\x81\xff" + struct.pack("!Q", 1 << 63) + b"mask", id="rfc-5.2-length-of-64-bits"),
        pytest.param(client_frame(CLOSE, b"\x03"), id="7-close-of-one-byte"),
        pytest.param(client_frame(CLOSE, b"x" * 126), id="7-close-too-long"),
        *(
            pytest.param(close_with(code), id=f"7-close-code-{code}")
            for code in (0, 999, 1004, 1005, 1006, 1016, 1100, 2000, 2999, 5000, 65535)
        ),
    ],
)  # fmt: skip
def test_2_to_7_a_broken_rule_ends_the_connection_with_1002(client: RawClient, bad: bytes) -> None:
    """The frames before it are answered, the frames after it are not."""
    client.send(client_frame(TEXT, b"before"), bad, client_frame(TEXT, b"after"))
    assert client.frame() == (TEXT, b"before")
    assert client.close_code() == 1002


def test_5_fragments_with_control_frames_between_them(client: RawClient) -> None:
    """The ping is answered at once, the message when it is whole; empty fragments count for nothing."""
    client.send(client_frame(TEXT, b"one ", final=False), client_frame(PING, b"now"))
    assert client.frame() == (PONG, b"now")
    client.send(
        client_frame(CONTINUATION, b"", final=False),
        client_frame(CONTINUATION, KOSME[:1], final=False),
        client_frame(PONG),
        client_frame(CONTINUATION, KOSME[1:]),
    )
    assert client.frame() == (TEXT, b"one " + KOSME)
    client.send(client_frame(BINARY, b"\xff", final=False), client_frame(CONTINUATION, b"\xfe"))
    assert client.frame() == (BINARY, b"\xff\xfe")


@pytest.mark.parametrize(
    "text",
    [
        b"\xce\xba\xe1\xbd\xb9\xcf\x83\xce\xbc\xce\xb5", b"\x00", b"\xc2\x80", b"\xe0\xa0\x80",
        b"\xf0\x90\x80\x80", b"\x7f", b"\xdf\xbf", b"\xef\xbf\xbf", b"\xf4\x8f\xbf\xbf", b"\xed\x9f\xbf",
        b"\xee\x80\x80", b"\xef\xbf\xbd", b"\xf0\x9f\xbf\xbe",
    ],
)  # fmt: skip
def test_6_valid_utf8_comes_back(client: RawClient, text: bytes) -> None:
    """Also cut between any two of its bytes."""
    for cut in range(len(text) + 1):
        client.send(client_frame(TEXT, text[:cut], final=False), client_frame(CONTINUATION, text[cut:]))
        assert client.frame() == (TEXT, text)


@pytest.mark.parametrize(
    "text",
    [
        KOSME + b"\xed\xa0\x80edited", b"\xf4\x90\x80\x80", b"\x80", b"\xbf", b"\xc0\xaf", b"\xe0\x80\xaf",
        b"\xf0\x80\x80\xaf", b"\xf8\x88\x80\x80\x80", b"\xfe", b"\xff", b"\xed\xa0\x80", b"\xed\xaf\xbf",
        b"\xed\xbe\x80", b"\xce", b"\xf0\x90\x80", b"\xc1\xbf",
    ],
)  # fmt: skip
@pytest.mark.parametrize("fragmented", [False, True])
def test_6_bad_utf8_ends_the_connection_with_1007(
    client: RawClient, text: bytes, *, fragmented: bool
) -> None:
    """Surrogates, overlong forms, too large, cut off."""
    if fragmented:
        client.send(
            *(
                client_frame(TEXT if n == 0 else CONTINUATION, text[n : n + 1], final=False)
                for n in range(len(text))
            )
        )
        client.send(client_frame(CONTINUATION))
    else:
        client.send(client_frame(TEXT, text))
    assert client.close_code() == 1007


def test_6_bad_utf8_fails_fast(client: RawClient) -> None:
    """6.4: before the message is complete."""
    client.send(client_frame(TEXT, KOSME + b"\xf4\x90", final=False))
    assert client.close_code() == 1007


@pytest.mark.parametrize(
    "code", [1000, 1001, 1002, 1003, 1007, 1008, 1009, 1010, 1011, 3000, 3999, 4000, 4999]
)
def test_7_a_close_is_answered_with_its_code(client: RawClient, code: int) -> None:
    """And nothing after it."""
    client.send(close_with(code, KOSME), client_frame(TEXT, b"after"), client_frame(PING))
    assert client.close_code() == code


def test_7_a_close_without_a_code_and_the_longest_reason(hub: Hub) -> None:
    """1005 stands for none, and is never sent."""
    for frame, code in ((close_with(), 1005), (close_with(1000, b"*" * 123), 1000)):
        client = echo_client(hub)
        client.send(frame)
        assert client.close_code() == code
        client.close()


def test_7_a_close_in_the_middle_of_a_message(client: RawClient) -> None:
    """The fragment is forgotten."""
    client.send(client_frame(TEXT, b"fragment", final=False), close_with(1000))
    assert client.close_code() == 1000


def test_7_a_close_whose_reason_is_no_utf8(client: RawClient) -> None:
    """1007, as for a message."""
    client.send(close_with(1000, b"\xce\xba\xed\xa0\x80"))
    assert client.close_code() == 1007
