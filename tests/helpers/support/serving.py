"""A Flask app on a real port of this process, and clients for it."""

from __future__ import annotations

import json
import socket
import ssl
import threading
import urllib.error
import urllib.parse
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import websocket
from flask import Flask
from werkzeug.serving import WSGIRequestHandler, make_server

from .parking import DEADLINE


class _Quiet(WSGIRequestHandler):
    def log_request(self, code: int | str = "-", size: int | str = "-") -> None:
        return


class Site:
    """The address of a server, and requests to it."""

    def __init__(self, port: int) -> None:
        self.port = port
        self.context: ssl.SSLContext | None = None
        """For a server with TLS: the context that trusts it."""

    def post(self, path: str) -> str:
        """Return the text of an empty POST."""
        request = urllib.request.Request(self._url("http", path), method="POST")
        with urllib.request.urlopen(request, timeout=DEADLINE, context=self.context) as answer:
            text: str = answer.read().decode()
            return text

    def send(self, path: str, body: Any = None) -> tuple[int, str]:
        """Return status and text of a POST of JSON."""
        request = urllib.request.Request(self._url("http", path), method="POST")
        if body is not None:
            request.data = json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE, context=self.context) as answer:
                return answer.status, answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, error.read().decode()

    def _url(self, scheme: str, path: str) -> str:
        return f"{scheme}{'s' if self.context else ''}://127.0.0.1:{self.port}{path}"

    def request(self, path: str, **headers: str) -> tuple[int, dict[str, str], str]:
        """Return status, headers and text of a GET."""
        request = urllib.request.Request(self._url("http", path), headers=headers)
        try:
            with urllib.request.urlopen(request, timeout=DEADLINE, context=self.context) as answer:
                return answer.status, dict(answer.headers), answer.read().decode()
        except urllib.error.HTTPError as error:
            with error:
                return error.code, dict(error.headers), error.read().decode()

    def watch(self, name: str, key: str, **options: Any) -> Watcher:
        """Open the socket of a key. ``since`` and ``ticket`` go into the query."""
        query = {word: options.pop(word, None) for word in ("since", "ticket")}
        text = urllib.parse.urlencode({word: value for word, value in query.items() if value is not None})
        return self._open(f"/ws/projection/{name}/{urllib.parse.quote(key, safe='')}?{text}", options)

    def watch_many(self, **options: Any) -> Watcher:
        """Open a socket for many channels."""
        return self._open("/ws/projection", options)

    def _open(self, path: str, options: dict[str, Any]) -> Watcher:
        options.setdefault("suppress_origin", True)
        url = self._url("ws", path)
        client = websocket.WebSocket(
            sockopt=options.pop("sockopt", None),
            enable_multithread=options.pop("enable_multithread", False),
            sslopt={"context": self.context} if self.context else None,
        )
        client.settimeout(DEADLINE)
        try:
            client.connect(url, **options)
        except BaseException:
            client.shutdown()
            raise
        return Watcher(client)


class Watcher:
    """A client that checks the order of the messages as it reads them."""

    def __init__(self, socket: websocket.WebSocket) -> None:
        self.socket = socket
        self.position: tuple[str, int] | None = None
        self.positions: dict[str, tuple[str, int]] = {}

    def next(self) -> dict[str, Any]:
        """Return the next message; a delta must follow the last one."""
        frame: dict[str, Any] = json.loads(self.socket.recv())
        if frame["type"] == "snapshot":
            self.position = frame["epoch"], frame["version"]
        elif frame["type"] == "delta":
            assert self.position is not None, "a delta before the first snapshot"
            assert frame["version"] == frame["prev"] + 1
            assert self.position in ((frame["epoch"], frame["prev"]), ("", 0))
            self.position = frame["epoch"], frame["version"]
        return frame

    def next_of_many(self) -> dict[str, Any]:
        """Return the next message of any channel; the deltas of each channel must be contiguous."""
        frame: dict[str, Any] = json.loads(self.socket.recv())
        channel = frame.get("channel", "")
        if frame["type"] == "delta":
            assert self.positions[channel] in ((frame["epoch"], frame["prev"]), ("", 0))
        if frame["type"] in ("snapshot", "delta"):
            self.positions[channel] = frame["epoch"], frame["version"]
        elif frame["type"] == "resumed":
            self.positions[channel] = frame["epoch"], frame["from"]
        return frame

    def send(self, **message: Any) -> None:
        """Send a frame."""
        self.socket.send(json.dumps(message))

    @property
    def raw(self) -> socket.socket:
        """The TCP socket itself."""
        assert self.socket.sock is not None
        return self.socket.sock

    def close_code(self) -> int:
        """Read on until the server closes, and return its code."""
        while True:
            opcode, data = self.socket.recv_data()
            if opcode == websocket.ABNF.OPCODE_CLOSE:
                return int.from_bytes(data[:2], "big")

    def close(self) -> None:
        """End it."""
        self.socket.close(timeout=1)
        self.socket.shutdown()  # close() leaves it open where the server closed first


@contextmanager
def serve(app: Flask) -> Iterator[Site]:
    """Serve an app by Werkzeug, with one thread per request."""
    server = make_server("127.0.0.1", 0, app, threaded=True, request_handler=_Quiet)
    thread = threading.Thread(target=server.serve_forever, args=(0.01,), name="server", daemon=True)
    thread.start()
    try:
        yield Site(server.port)
    finally:
        server.shutdown()
        thread.join(DEADLINE)
        server.server_close()
