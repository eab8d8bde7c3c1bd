"""Several processes: one database, forks, a real gunicorn, and the end of a process."""

from __future__ import annotations

import json
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from keyfold.actors import ProjectionSystem
from support.counting import Totals
from support.gunicorns import gunicorn
from support.programs import output_of, python


def test_a_process_killed_in_the_middle_has_lost_nothing_that_it_reported(database_url: str) -> None:
    """Events that a Receipt had confirmed before SIGKILL are in the row."""
    process = python(
        'while True: print(system.bus.dispatch(Added("a")).result(60)[0].version, flush=True)', database_url
    )
    assert process.stdout is not None
    reported = [int(process.stdout.readline()) for _ in range(20)]
    process.kill()
    # Not communicate(), which would miss the data in readline's buffer.
    reported += [int(line) for line in process.stdout.read().split("\n")[:-1]]
    process.communicate(timeout=60)
    with ProjectionSystem(database_url) as system:
        snapshot = system.register(Totals()).snapshot("a")
    assert snapshot is not None
    assert snapshot.version in (reported[-1], reported[-1] + 1)
    assert snapshot.state.total == snapshot.version


def test_the_end_of_a_process_commits_what_was_accepted(database_url: str) -> None:
    """Promise 11 without a close: the interpreter's exit does it."""
    output_of(python('for n in range(2000): system.bus.dispatch(Added(f"key {n % 7}"))', database_url))
    with ProjectionSystem(database_url) as system:
        totals = system.register(Totals())
        assert sum(totals.read_required(f"key {n}").total for n in range(7)) == 2000


def test_a_forked_child_starts_afresh_and_the_parent_goes_on(database_url: str) -> None:
    """Threads, locks and connections of the parent are not the child's, though the system was in use."""
    program = """
system.bus.dispatch(Added("a")).result(60)
totals.read("a")
children = []
for _ in range(3):
    child = os.fork()
    if child == 0:
        for _ in range(50):
            system.bus.dispatch(Added("a")).result(60)
        totals.read_required("a")
        system.close()
        os._exit(0)
    children.append(child)
for _ in range(50):
    system.bus.dispatch(Added("a")).result(60)
print(*[os.waitpid(child, 0)[1] for child in children])
snapshot = totals.snapshot("a")
print(snapshot.state.total, snapshot.version)
system.close()
"""
    assert output_of(python(program, database_url)).split() == ["0", "0", "0", "201", "201"]


@pytest.mark.parametrize("preload", [False, True], ids=["plain", "preload"])
def test_gunicorn_workers_share_one_database(database_url: str, tmp_path: Path, *, preload: bool) -> None:
    """gthread, two workers, with and without --preload (where the master had used the system): exact totals,
    a socket that gets its snapshot, and an end in good order."""
    options = ["--threads", "4", "--worker-class", "gthread", *["--preload"] * preload]
    eager = {"EAGER": "1"} if preload else {}
    with gunicorn(tmp_path, *options, workers=2, DATABASE=database_url, **eager) as server:
        with ThreadPoolExecutor(4) as pool:
            answers = list(pool.map(lambda _: server.site.post("/add/a"), range(200)))
        versions = sorted(json.loads(answer)["version"] for answer in answers)
        first = 2 if preload else 1
        assert versions == list(range(first, first + 200))
        watcher = server.site.watch("test.totals", "a")
        assert watcher.next()["state"]["total"] == 200
        watcher.close()
        assert server.stop() == 0, server.log


def test_a_full_disk_is_named_and_what_was_accepted_is_written_when_there_is_room(sqlite_url: str) -> None:
    """Promise 10 with a file that may not grow: turns wait, the stats say why, nothing is lost or doubled."""
    program = """
import resource
receipts = [system.bus.dispatch(Added("a"))]
receipts[0].result(60)
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, resource.RLIM_INFINITY))
def grow(state):
    state.amounts.extend(range(5000))
trouble = None
while not trouble:
    receipts.append(system.bus.dispatch(Added("a", 1, grow)))
    try:
        receipts[-1].result(0.2)
    except TimeoutError:
        trouble = system.stats()["writer"]["trouble"]
print(trouble)
resource.setrlimit(resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
versions = [receipt.result(60)[0].version for receipt in receipts]
print(versions == list(range(1, len(receipts) + 1)), totals.read_required("a").total == len(receipts))
system.close()
"""
    trouble, verdict = output_of(python(program, sqlite_url)).splitlines()
    assert "keyfold.db can't be used at the moment" in trouble
    assert verdict == "True True"
