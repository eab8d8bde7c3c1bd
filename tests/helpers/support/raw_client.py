"""A WebSocket client that can break every rule, and connections without HTTP for it."""

from __future__ import annotations

import os
import socket
import struct

from keyfold.web.live.connections.client_identity import ClientIdentity
from keyfold.web.live.connections.connection_limits import ConnectionLimits
from keyfold.web.live.connections.websocket import WebSocketConnection
from keyfold.web.live.hub import Hub
from wsproto.frame_protocol import Opcode

from .parking import DEADLINE

CONTINUATION, TEXT, BINARY, CLOSE, PING, PONG = 0, 1, 2, 8, 9, 10


def client_frame(
    opcode: int,
    payload: bytes = b"",
    *,
    final: bool = True,
    reserved: int = 0,
    masked: bool = True,
    length: int | None = None,
) -> bytes:
    """Return a client's frame, with any error that is asked for. ``length`` may be wrong."""
    first = (0x80 if final else 0) | reserved << 4 | opcode
    size = len(payload) if length is None else length
    mask_bit = 0x80 if masked else 0
    if size <= 125:
        head = struct.pack("!BB", first, mask_bit | size)
    elif size <= 0xFFFF:
        head = struct.pack("!BBH", first, mask_bit | 126, size)
    else:
        head = struct.pack("!BBQ", first, mask_bit | 127, size)
    if not masked:
        return head + payload
    mask = os.urandom(4)
    return head + mask + bytes(byte ^ mask[slot % 4] for slot, byte in enumerate(payload))


def handshake(path: str = "/ws/projection/test.totals/a", **headers: str) -> bytes:
    """Return the request of a WebSocket handshake."""
    given = {
        "Host": "127.0.0.1",
        "Upgrade": "websocket",
        "Connection": "Upgrade",
        "Sec-WebSocket-Key": "dGhlIHNhbXBsZSBub25jZQ==",
        "Sec-WebSocket-Version": "13",
        **{name.replace("_", "-"): value for name, value in headers.items()},
    }
    lines = [f"GET {path} HTTP/1.1", *(f"{name}: {value}" for name, value in given.items())]
    return "\r\n".join([*lines, "", ""]).encode()


def head_of(sock: socket.socket) -> str:
    """Read the head of an answer, and nothing behind it."""
    head = b""
    while not head.endswith(b"\r\n\r\n"):
        byte = sock.recv(1)
        assert byte, head
        head += byte
    return head.decode()


class RawClient:
    """Sends bytes, and takes a server's frames apart."""

    def __init__(self, sock: socket.socket) -> None:
        self.sock = sock
        sock.settimeout(DEADLINE)
        self._buffer = b""

    def send(self, *frames: bytes) -> None:
        """Send frames in one go."""
        self.sock.sendall(b"".join(frames))

    def frame(self) -> tuple[int, bytes]:
        """Return opcode and payload of the next frame. Raises EOFError at the end."""
        first, second = self._take(2)
        assert first & 0x70 == 0
        assert first & 0x80, "the server does not fragment"
        assert not second & 0x80, "a server must not mask"
        length = second
        if second == 126:
            [length] = struct.unpack("!H", self._take(2))
        elif second == 127:
            [length] = struct.unpack("!Q", self._take(8))
        return first & 0x0F, self._take(length)

    def close_code(self) -> int:
        """Read on to the server's close and then to the end, and return the code; 1005 for none."""
        opcode, payload = self.frame()
        while opcode != CLOSE:
            opcode, payload = self.frame()
        assert self.sock.recv(1) == b"", "nothing comes after a close"
        if payload:
            payload[2:].decode()
            return int.from_bytes(payload[:2], "big")
        return 1005

    def _take(self, count: int) -> bytes:
        while len(self._buffer) < count:
            data = self.sock.recv(65536)
            if not data:
                raise EOFError
            self._buffer += data
        taken, self._buffer = self._buffer[:count], self._buffer[count:]
        return taken

    def close(self) -> None:
        """Close the socket without a close frame."""
        self.sock.close()


class Echo(WebSocketConnection):
    """Echoes each message, by the library's own frame handling."""

    __slots__ = ()

    max_message_bytes = 20_000_000

    @property
    def _max_allowance(self) -> float:
        return 1e9

    def message(self, opcode: Opcode, payload: bytes) -> None:
        frame = bytearray(client_frame(opcode, payload, masked=False))
        self.push(bytes(frame))


def echo_client(hub: Hub) -> RawClient:
    """Return a client of an Echo connection of this hub."""
    ours, theirs = socket.socketpair()
    slot = ConnectionLimits(hub.settings).enter("test", None)
    identity = ClientIdentity("test", None, lambda _name, _key, _ticket: None)
    hub.adopt(Echo(theirs, hub, identity, slot, many=True))
    return RawClient(ours)
