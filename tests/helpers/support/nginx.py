"""A real nginx in a process of its own."""

from __future__ import annotations

import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from threading import Event
from time import monotonic

from .parking import DEADLINE
from .serving import Site

AROUND = """
daemon off; pid {here}/nginx.pid; error_log stderr; worker_processes 1;
events {{ worker_connections 256; }}
http {{
access_log off; client_body_temp_path {here}/body; proxy_temp_path {here}/proxy;
fastcgi_temp_path {here}/fastcgi; uwsgi_temp_path {here}/uwsgi; scgi_temp_path {here}/scgi;
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
