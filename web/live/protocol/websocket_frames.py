"""WebSocket frames (RFC 6455). The hub's frames are built here; wsproto parses those of clients."""

from __future__ import annotations

import struct
from collections.abc import Iterator
from typing import Any, NamedTuple, Protocol, cast

from wsproto.frame_protocol import CloseReason, FrameProtocol, Opcode, ParseFailed

_FINAL = 0x80
_MAX_IN_ONE_BYTE = 125
_MAX_IN_TWO_BYTES = 0xFFFF
_TWO_BYTES, _EIGHT_BYTES = 126, 127
_MIN_FRAGMENT_BYTES = 8
"""A message may have as many fragments as fill the size limit with this many bytes each."""
_MAX_REASON_BYTES = _MAX_IN_ONE_BYTE - 2


class Incoming(NamedTuple):
    """A whole message or control frame of a client. ``code`` is the code of a close frame, else 0."""

    opcode: Opcode
    payload: bytes
    code: int = 0


def text_frame(payload: bytes) -> bytes:
    """Return the frame of a text message. Servers do not mask, so all clients can get the same bytes."""
    return _frame(Opcode.TEXT, payload)


def payload_of(frame: bytes) -> bytes:
    """Return the payload of a frame that ``text_frame`` made."""
    return frame[{_TWO_BYTES: 4, _EIGHT_BYTES: 10}.get(frame[1], 2) :]


def pong_frame(payload: bytes) -> bytes:
    """Return the frame that answers a ping."""
    return _frame(Opcode.PONG, payload)


def close_frame(code: int, reason: str) -> bytes:
    """Return the frame that closes a connection. ``code`` 1005 stands for a frame without a code."""
    if code == CloseReason.NO_STATUS_RCVD:
        return _frame(Opcode.CLOSE, b"")
    text = reason.encode()[:_MAX_REASON_BYTES].decode(errors="ignore")
    return _frame(Opcode.CLOSE, struct.pack("!H", code) + text.encode())


def _frame(opcode: Opcode, payload: bytes) -> bytes:
    length, first = len(payload), _FINAL | opcode
    if length <= _MAX_IN_ONE_BYTE:
        return bytes((first, length)) + payload
    if length <= _MAX_IN_TWO_BYTES:
        return struct.pack("!BBH", first, _TWO_BYTES, length) + payload
    return struct.pack("!BBQ", first, _EIGHT_BYTES, length) + payload


PING = _frame(Opcode.PING, b"")


class ProtocolViolation(Exception):
    """A client broke RFC 6455. ``code`` is the code to close the connection with."""

    def __init__(self, code: int, reason: str) -> None:
        super().__init__(reason)
        self.code = code


class MessageReader(Protocol):
    """Takes the messages of a client out of its bytes. Called on the reactor's thread."""

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield the messages and control frames that ``data`` completes. Raises ProtocolViolation."""


class FrameReader:
    """Assembles the messages of one client. ``max_bytes`` is the size limit of a message."""

    __slots__ = ("_fragments", "_max_bytes", "_message", "_parser")

    def __init__(self, max_bytes: int) -> None:
        self._parser = FrameProtocol(client=False, extensions=[])
        self._message = bytearray()
        self._fragments = 0
        self._max_bytes = max_bytes

    def feed(self, data: bytes) -> Iterator[Incoming]:
        """Yield the messages and control frames that ``data`` completes. Raises ProtocolViolation."""
        self._parser.receive_bytes(data)
        try:
            for frame in self._parser.received_frames():
                if frame.opcode is Opcode.CLOSE:
                    code, _reason = cast("tuple[int, str]", frame.payload)
                    yield Incoming(frame.opcode, b"", code)
                elif frame.opcode.iscontrol():
                    yield Incoming(frame.opcode, bytes(cast("bytes", frame.payload)))
                else:
                    part: Any = frame.payload
                    self._message += part.encode() if isinstance(part, str) else bytes(part)
                    self._fragments += frame.frame_finished
                    # Fragments are counted too: empty ones have no size, and would keep the thread busy.
                    if (
                        len(self._message) > self._max_bytes
                        or self._fragments > self._max_bytes // _MIN_FRAGMENT_BYTES
                    ):
                        msg = f"a message of more than {self._max_bytes} bytes"
                        raise ProtocolViolation(CloseReason.MESSAGE_TOO_BIG, msg)
                    if frame.message_finished:
                        whole, self._message, self._fragments = bytes(self._message), bytearray(), 0
                        yield Incoming(frame.opcode, whole)
        except ParseFailed as error:
            raise ProtocolViolation(error.code, str(error)) from None
