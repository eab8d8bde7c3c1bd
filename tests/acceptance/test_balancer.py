"""The nginx configuration of docs/many_processes.md, in front of two gunicorns that have no Redis."""

from __future__ import annotations

import json
import re
import subprocess
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

from support.gunicorns import gunicorn
from support.parking import DEADLINE
from support.postgres import free_port
from support.serving import Site

PAGE = Path(__file__).parents[2] / "docs" / "many_processes.md"
AROUND = """
daemon off; pid {here}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 256; }}
http {{
access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy; fastcgi_temp_path {here}/fastcgi;
uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
{inner}
}}
"""


@contextmanager
def nginx(directory: Path, inner: str) -> Iterator[None]:
    """Run a real nginx with this inside of its http block."""
    here = directory / "nginx"
    here.mkdir()
    (here / "nginx.conf").write_text(AROUND.format(here=here, inner=inner))
    command = ["nginx", "-p", str(here), "-c", str(here / "nginx.conf"), "-e", "stderr"]
    process = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    try:
        yield
    finally:
        process.terminate()
        process.communicate(timeout=DEADLINE)


def answer(site: Site) -> None:
    """Wait until the site answers."""
    deadline, tick = monotonic() + DEADLINE, Event()
    while monotonic() < deadline:
        try:
            site.request("/facts")
        except OSError:
            tick.wait(0.02)
        else:
            return
    raise AssertionError


def test_each_key_has_one_process_and_its_sockets_are_there(database_url: str, tmp_path: Path) -> None:
    """Every delta reaches its watcher at once, though nothing travels between the processes."""
    [inner] = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = json.dumps({"KEYFOLD_HEARTBEAT_SECONDS": 3600})
    with ExitStack() as stack:
        for number in (1, 2):
            (tmp_path / str(number)).mkdir()
            server = stack.enter_context(
                gunicorn(tmp_path / str(number), "--threads", "4", DATABASE=database_url, CONFIG=config)
            )
            inner = inner.replace(f"10.0.0.{number}:8000", f"127.0.0.1:{server.site.port}")
        site = Site(free_port())
        stack.enter_context(
            nginx(tmp_path, inner.replace("listen 80", f"listen {site.port}").replace("/orders/", "/add/"))
        )
        answer(site)
        pids: dict[str, set[int]] = {f"key {n}": set() for n in range(12)}
        watchers = {
            key: stack.enter_context(
                closing(
                    site.watch(
                        "test.totals", key, suppress_origin=False, origin=f"http://127.0.0.1:{site.port}"
                    )
                )
            )
            for key in pids
        }
        for watcher in watchers.values():
            assert watcher.next()["version"] == 0
        for _ in range(3):
            for key, seen in pids.items():
                seen.add(json.loads(site.post(f"/add/{key.replace(' ', '%20')}"))["pid"])
        for watcher in watchers.values():
            assert [watcher.next()["type"] for _ in range(3)] == ["delta"] * 3
        assert all(len(seen) == 1 for seen in pids.values())
        assert len(set().union(*pids.values())) == 2
