"""WebSocket frames (RFC 6455): ours are built here, the client's are parsed by wsproto."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import NamedTuple, Protocol, cast

from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

_FINAL = 0x80
_MOST_IN_ONE_BYTE = 125
_MOST_IN_TWO_BYTES = 0xFFFF
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_LEAST_IN_A_FRAGMENT = 8
"""Bytes on average, of a message in as many fragments as it may have."""
_MOST_OF_A_REASON = _MOST_IN_ONE_BYTE - 2


class Incoming(NamedTuple):
    """One whole message or control frame of a client. ``code`` is that of a close, else 0."""

    opcode: Opcode
    payload: bytes
    code: int = 0


def text_frame(payload: bytes) -> bytes:
    """Return the frame of a text message, to be sent to any number of clients (a server masks nothing)."""
    return _frame(Opcode.TEXT, payload)


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame that ``text_frame`` made."""
    return frame[{_TWO_BYTES: 4, _EIGHT_BYTES: 10}.get(frame[1], 2) :]


def pong_frame(payload: bytes) -> bytes:
    """Return the answer to a ping."""
    return _frame(Opcode.PONG, payload)


def close_frame(code: int, reason: str) -> bytes:
    """Return the frame that ends a connection; ``code`` 1005 means none."""
    if code == CloseReason.NO_STATUS_RCVD:
        return _frame(Opcode.CLOSE, b"")
    text = reason.encode()[:_MOST_OF_A_REASON].decode(errors="ignore")
    return _frame(Opcode.CLOSE, struct.pack("!H", code) + text.encode())


def _frame(opcode: Opcode, payload: bytes) -> bytes:
    length, first = len(payload), _FINAL | opcode
    if length <= _MOST_IN_ONE_BYTE:
        return bytes((first, length)) + payload
    if length <= _MOST_IN_TWO_BYTES:
        return struct.pack("!BBH", first, _TWO_BYTES, length) + payload
    return struct.pack("!BBQ", first, _EIGHT_BYTES, length) + payload


PING = _frame(Opcode.PING, b"")


class Broken(Exception):
    """What the client sent is no WebSocket traffic; ``code`` is what to close with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class MessageReader(Protocol):
    """Takes a client's messages out of its bytes."""

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield the messages and control frames that are complete now. Raises Broken."""


class FrameReader:
    """Puts the messages of one client together, none longer than ``most`` bytes."""

    __slots__ = ("_fragments", "_message", "_most", "_parser")

    def __init__(self, most: int) -> None:
        self._parser = FrameProtocol(client=False, extensions=[])
        self._message = bytearray()
        self._fragments = 0
        self._most = most

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield what is complete now. Raises Broken."""
        self._parser.receive_bytes(data)
        try:
            for frame in self._parser.received_frames():
                if frame.opcode is Opcode.CLOSE:
                    code, _reason = cast("tuple[int, str]", frame.payload)
                    yield Incoming(frame.opcode, b"", code)
                elif frame.opcode.iscontrol():
                    yield Incoming(frame.opcode, bytes(cast("bytes", frame.payload)))
                else:
                    part = frame.payload
                    self._message += part.encode() if isinstance(part, str) else bytes(part)  # type: ignore[arg-type]
                    self._fragments += frame.frame_finished
                    # Fragments are counted too: empty ones would keep the thread busy and have no size.
                    if (
                        len(self._message) > self._most
                        or self._fragments > self._most // _LEAST_IN_A_FRAGMENT
                    ):
                        msg = f"a message of more than {self._most} bytes"
                        raise Broken(CloseReason.MESSAGE_TOO_BIG, msg)
                    if frame.message_finished:
                        whole, self._message, self._fragments = bytes(self._message), bytearray(), 0
                        yield Incoming(frame.opcode, whole)
        except ParseFailed as error:
            raise Broken(error.code, str(error)) from None
