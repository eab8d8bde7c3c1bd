"""A process that may open few files: connections beyond them are refused, and those that are open stay."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import websocket
from support.gunicorns import gunicorn
from support.serving import Site, Watcher

from .test_servers import GUNICORN, Stream

MOST = 160


def limited(limit: int) -> tuple[str, ...]:
    """Return the prefix of a command that is to run with a limit of open files."""
    return ("sh", "-c", f'ulimit -n {limit}; exec "$@"', "sh")


def crowd(site: Site) -> list[Watcher | Stream]:
    """Open sockets, and now and then a stream, until one is refused."""
    open_ones: list[Watcher | Stream] = []

    def open_one() -> Watcher | Stream:
        if len(open_ones) % 10 == 5:
            return Stream(site, "/sse/projection/test.totals/a")
        return site.watch("test.totals", "a")

    with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
        open_ones.extend(open_one() for _ in range(MOST))
    return open_ones


@pytest.mark.parametrize("kind", ["gthread", "sync"])
def test_the_descriptors_of_a_process_are_a_limit_of_its_sockets(kind: str, tmp_path: Path) -> None:
    """The next ones get 429, however many try; the worker lives, says so at its start, and loses nobody."""
    options = [*GUNICORN[kind], "-c", "python:keyfold.web.gunicorn"]
    database = f"sqlite:///{tmp_path}/shop.db"
    with gunicorn(tmp_path, *options, prefix=limited(MOST), DATABASE=database) as server:
        site = server.site
        first = json.loads(site.post("/add/a"))
        # The hook runs after the worker has said that it boots, and before it answers.
        [line] = [line for line in server.log if "KEYFOLD_MAX_SOCKETS" in line]
        assert "takes 96 connections, not the 10000" in line
        assert f"may open {MOST} files only" in line
        warned = [line for line in server.log if "lower --worker-connections" in line]
        assert len(warned) == (kind == "gthread")
        everybody = crowd(site)
        assert len(everybody) == json.loads(site.request("/facts")[2])["sockets"]["limit"] == 96
        for _ in range(20):
            with pytest.raises(websocket.WebSocketBadStatusException, match="429"):
                site.watch("test.totals", "a")
        for watcher in everybody:
            assert (watcher.next() if isinstance(watcher, Watcher) else watcher.next()[1])["version"] == 1
        again = json.loads(site.post("/add/a"))
        assert again == {"version": 2, "pid": first["pid"]}
        for watcher in everybody:
            assert (watcher.next() if isinstance(watcher, Watcher) else watcher.next()[1])["version"] == 2
        for watcher in everybody:
            watcher.close()


def test_carried_connections_need_more_of_them(tmp_path: Path) -> None:
    """Three descriptors each with gevent: the limit says so, in the log at the start as well."""
    database = f"sqlite:///{tmp_path}/shop.db"
    options = [*GUNICORN["gevent"], "-c", "python:keyfold.web.gunicorn", "--graceful-timeout", "1"]
    with gunicorn(tmp_path, *options, prefix=limited(MOST), DATABASE=database) as server:
        first = json.loads(server.site.post("/add/a"))
        [line] = [line for line in server.log if "KEYFOLD_MAX_SOCKETS" in line]
        assert "takes 32 connections, not the 10000" in line
        assert "each connection needs 3; raise the limit of open files to 34286" in line
        everybody = crowd(server.site)
        assert len(everybody) == json.loads(server.site.request("/facts")[2])["sockets"]["limit"] == 32
        for watcher in everybody:
            assert (watcher.next() if isinstance(watcher, Watcher) else watcher.next()[1])["version"] == 1
        assert json.loads(server.site.post("/add/a")) == {"version": 2, "pid": first["pid"]}
        for watcher in everybody:
            watcher.close()


def test_the_log_says_that_gunicorn_takes_fewer_connections(tmp_path: Path) -> None:
    """With gevent each socket is one of them for as long as it is open."""
    options = [*GUNICORN["gevent"], "-c", "python:keyfold.web.gunicorn", "--worker-connections", "20"]
    with gunicorn(tmp_path, *options, DATABASE=f"sqlite:///{tmp_path}/shop.db") as server:
        server.site.request("/facts")
        [line] = [line for line in server.log if "raise --worker-connections" in line]
        assert "accepts 20 connections at once" in line
