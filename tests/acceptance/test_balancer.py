"""The nginx configuration of docs/many_processes.md, in front of two gunicorns that have no Redis."""

from __future__ import annotations

import json
import re
from contextlib import ExitStack, closing
from pathlib import Path

from support.gunicorns import gunicorn
from support.nginx import answer, nginx
from support.postgres import free_port
from support.serving import Site

PAGE = Path(__file__).parents[2] / "docs" / "many_processes.md"


def test_each_key_has_one_process_and_its_sockets_are_there(database_url: str, tmp_path: Path) -> None:
    """Every delta reaches its watcher at once, though nothing travels between the processes."""
    [inner] = re.findall(r"```nginx\n(.*?)```", PAGE.read_text(), re.DOTALL)
    config = json.dumps({"KEYFOLD_TUNING": {"heartbeat_seconds": 3600}})
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
