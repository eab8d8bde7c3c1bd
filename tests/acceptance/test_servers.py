"""The same messages on every server: gunicorn's workers, Werkzeug, gevent, eventlet, TLS; 501 on others."""

from __future__ import annotations

import http.client
import json
import socket
import ssl
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import trustme
import websocket
from support.gunicorns import ENVIRONMENT, SHOP, gunicorn
from support.parking import DEADLINE, wait_until
from support.raw_client import PING, PONG, RawClient, client_frame, handshake, head_of
from support.serving import Site

GUNICORN = {
    "gthread": ["--worker-class", "gthread", "--threads", "4"],
    "sync": ["--worker-class", "sync"],
    "gevent": ["--worker-class", "gevent"],
    "gthread-tls": ["--threads", "4", "--certfile", "cert.pem", "--keyfile", "key.pem"],
}
WITH_SOCKETS = [*GUNICORN, "werkzeug", "werkzeug-tls", "pywsgi", "eventlet"]
WITHOUT = ["waitress", "cheroot"]


@contextmanager
def serving(kind: str, directory: Path) -> Iterator[Site]:
    """Run the shop on a server of this kind."""
    if kind.endswith("-tls"):
        authority = trustme.CA()
        certificate = authority.issue_cert("127.0.0.1")
        certificate.private_key_pem.write_to_path(directory / "key.pem")
        certificate.cert_chain_pems[0].write_to_path(directory / "cert.pem")
        authority.cert_pem.write_to_path(directory / "ca.pem")
    database = f"sqlite:///{directory}/shop.db"
    if kind in GUNICORN:
        with gunicorn(directory, *GUNICORN[kind], DATABASE=database) as server:
            yield tls(server.site, kind, directory)
        return
    (directory / "shop.py").write_text(SHOP)
    process = subprocess.Popen(
        [sys.executable, "-m", "support.other_servers", kind],
        env={**ENVIRONMENT, "DATABASE": database}, cwd=directory, text=True,
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    try:
        assert process.stdout is not None
        yield tls(Site(int(process.stdout.readline())), kind, directory)
        process.communicate(timeout=DEADLINE)
        assert process.returncode == 0
    finally:
        if process.poll() is None:
            process.kill()
            process.communicate()


def tls(site: Site, kind: str, directory: Path) -> Site:
    """Make a site one of TLS if it is."""
    if kind.endswith("-tls"):
        site.context = ssl.create_default_context(cafile=str(directory / "ca.pem"))
    return site


def add(site: Site, key: str) -> int:
    """Dispatch an event and return the version."""
    version: int = json.loads(site.post(f"/add/{key}"))["version"]
    return version


class Stream:
    """Reads the events of a stream, over HTTP or HTTPS."""

    def __init__(self, site: Site, path: str, **headers: str) -> None:
        if site.context is None:
            self.connection = http.client.HTTPConnection("127.0.0.1", site.port, timeout=DEADLINE)
        else:
            self.connection = http.client.HTTPSConnection(
                "127.0.0.1", site.port, timeout=DEADLINE, context=site.context
            )
        self.connection.request("GET", path, headers=headers)
        self.answer = self.connection.getresponse()
        assert self.answer.status == 200

    def next(self) -> tuple[str, dict[str, Any]]:
        """Return id and data of the next event."""
        found: dict[str, str] = {}
        while True:
            line = self.answer.readline().decode().rstrip("\n")
            if not line and "data" in found:
                return found["id"], json.loads(found["data"])
            name, _, value = line.partition(": ")
            found[name] = value

    def close(self) -> None:
        """Hang up."""
        self.answer.close()
        self.connection.close()


@pytest.mark.parametrize("kind", WITH_SOCKETS)
def test_sockets_and_streams(kind: str, tmp_path: Path) -> None:
    """Snapshot, deltas, resume, many channels, ping; a stream beside them; the places are free in the end."""
    with serving(kind, tmp_path) as site:
        watcher = site.watch("test.totals", "a")
        assert watcher.next()["version"] == 0
        assert [add(site, "a"), watcher.next()["version"]] == [1, 1]
        watcher.socket.ping("x")
        watcher.send(type="ping")
        assert watcher.next() == {"type": "pong"}
        watcher.close()
        assert add(site, "a") == 2
        assert watcher.position is not None
        again = site.watch("test.totals", "a", since="{}:{}".format(*watcher.position))
        assert [again.next()["type"], json.loads(again.socket.recv())["version"]] == ["resumed", 2]
        many = site.watch_many()
        for key in "abc":
            many.send(type="subscribe", channel=f"projection.test.totals.{key}")
        frames = [many.next_of_many()["type"] for _ in range(6)]
        assert sorted(frames) == ["snapshot"] * 3 + ["subscribed"] * 3
        stream = Stream(site, "/sse/projection/test.totals/b")
        assert stream.next()[1]["type"] == "snapshot"
        assert add(site, "b") == 1
        assert many.next_of_many()["data"] == {"total": 1}
        identity, frame = stream.next()
        assert frame["data"] == {"total": 1}
        stream.close()
        stream = Stream(site, "/sse/projection/test.totals/b", **{"Last-Event-ID": identity})
        assert stream.next()[1]["type"] == "resumed"
        stream.close()
        again.close()
        many.close()
        # A stream behind a server is known to be gone only when it can't be written.
        assert any(add(site, "b") and open_sockets(site) == 0 for _ in range(1000))


@pytest.mark.parametrize("kind", WITH_SOCKETS)
def test_a_flask_sock_handler_gives_its_socket_to_the_hub(kind: str, tmp_path: Path) -> None:
    """At once, and after a talk with its client. Another handler keeps its own. Refusals are close codes."""
    with serving(kind, tmp_path) as site:
        watcher = site._open("/own/test.totals/a", {})
        assert watcher.next()["version"] == 0
        assert [add(site, "a"), watcher.next()["version"]] == [1, 1]
        talker = site._open("/own/test.totals/a?hello", {})
        for text in ("kim", *['{"type":"ping"}'] * 20):
            talker.socket.send(text)
        assert talker.socket.recv() == "hello kim"
        frames = [talker.next()["type"] for _ in range(21)]
        assert sorted(frames) == ["pong"] * 20 + ["snapshot"]
        assert add(site, "a") == talker.next()["version"] == watcher.next()["version"] == 2
        refused = site._open("/own/test.absent/a", {})
        assert refused.close_code() == 4404
        if kind != "sync":  # it has one thread, which the handler keeps
            echo = site._open("/echo", {})
            echo.socket.send("once")
            assert echo.socket.recv() == "once"
            assert open_sockets(site) == 2
            echo.close()
        for one in (watcher, talker, refused):
            one.close()
        until(lambda: open_sockets(site) == 0)


def until(condition: Callable[[], bool]) -> None:
    """Ask a server again and again, at most a hundred times."""
    assert any(condition() for _ in range(100))


def open_sockets(site: Site) -> int:
    """Return how many connections the hub has."""
    count: int = json.loads(site.request("/facts")[2])["sockets"]["open"]
    return count


@pytest.mark.parametrize("kind", WITHOUT)
def test_a_server_that_gives_no_socket_streams(kind: str, tmp_path: Path) -> None:
    """501 names the URL of the stream, which works."""
    with serving(kind, tmp_path) as site:
        with pytest.raises(
            websocket.WebSocketBadStatusException, match=r"501.*/sse/projection/test.totals/a"
        ):
            site.watch("test.totals", "a")
        stream = Stream(site, "/sse/projection/test.totals/a")
        assert stream.next()[1]["version"] == 0
        assert [add(site, "a"), stream.next()[1]["version"]] == [1, 1]
        stream.close()


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_two_hundred_open_sockets_and_http_answers(kind: str, tmp_path: Path) -> None:
    """On four threads, or on the one of the sync worker; no thread is a socket's."""
    with serving(kind, tmp_path) as site:
        assert add(site, "a") == 1
        before = json.loads(site.request("/facts")[2])["threads"]
        watchers = [site.watch("test.totals", "a") for _ in range(200)]
        for watcher in watchers:
            assert watcher.next()["version"] == 1
        for version in range(2, 12):
            assert add(site, "a") == version
        for watcher in watchers:
            assert [watcher.next()["version"] for _ in range(10)] == list(range(2, 12))
        facts = json.loads(site.request("/facts")[2])
        assert facts["sockets"]["open"] == 200
        assert facts["threads"] <= before + 6  # the reactor, the readers, and gunicorn's own four
        for watcher in watchers:
            watcher.close()


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_a_stop_tells_every_socket(kind: str, tmp_path: Path) -> None:
    """SIGTERM: 1001, and the process ends by itself."""
    with gunicorn(tmp_path, *GUNICORN[kind], DATABASE=f"sqlite:///{tmp_path}/shop.db") as server:
        watchers = [server.site.watch("test.totals", "a") for _ in range(20)]
        for watcher in watchers:
            watcher.next()
        assert server.stop() == 0
        assert [watcher.close_code() for watcher in watchers] == [1001] * 20
        for watcher in watchers:
            watcher.close()
        assert "Traceback" not in "".join(server.log)


@pytest.mark.parametrize("kind", ["gthread", "sync", "gevent"])
def test_a_frame_in_the_packet_of_the_handshake_is_answered(kind: str, tmp_path: Path) -> None:
    """gunicorn has read it with the request; and its log has a line for a socket, as for any request."""
    log = tmp_path / "access.log"
    options = [*GUNICORN[kind], "--access-logfile", str(log), "--access-logformat", "%(r)s -> %(s)s"]
    with gunicorn(tmp_path, *options, DATABASE=f"sqlite:///{tmp_path}/shop.db") as server:
        with socket.create_connection(("127.0.0.1", server.site.port), DEADLINE) as sock:
            sock.sendall(handshake("/ws/projection/test.totals/a") + client_frame(PING, b"early"))
            assert head_of(sock).split()[1] == "101"
            client = RawClient(sock)
            frames = [client.frame() for _ in range(2)]
            assert (PONG, b"early") in frames
        wait_until(lambda: "GET /ws/projection/test.totals/a HTTP/1.1 -> 101" in log.read_text())
    assert "Traceback" not in "".join(server.log)
