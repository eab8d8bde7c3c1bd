"""At the end of a process, and in a forked one: accepted events are committed, and no wait is in vain."""

from __future__ import annotations

import os
import signal
import subprocess
import threading
from collections.abc import Callable
from time import monotonic

import pytest
from keyfold.actors import ProjectionRuntime, ProjectionSystem, receipt
from support.counting import Added, Total, Totals
from support.parking import DEADLINE, Parking
from support.postgres import PostgresServer
from support.programs import output_of, python
from support.tcp_proxy import TcpProxy

MakeSystem = Callable[..., ProjectionSystem]
Runtime = ProjectionRuntime[Added, Total]


def test_a_process_ends_though_postgresql_is_frozen(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """Within close_timeout.

    concurrent.futures would join the readers' threads before close() could free them.
    """
    process = python(
        """
system.settings = __import__("dataclasses").replace(system.settings, close_timeout=2.0)
system.bus.dispatch(Added("a")).result(20)
for read in [system.submit_read("test.totals", "a") for _ in range(4)]:
    read.result(20)
print("ready", flush=True)
sys.stdin.readline()
reads = [system.submit_read("test.totals", "a") for _ in range(3)]
system.bus.dispatch(Added("a"))
""",
        postgres_server.url_of("postgres", postgres_proxy.port),
        stdin=subprocess.PIPE,
    )
    try:
        assert process.stdout is not None
        assert process.stdin is not None
        assert process.stdout.readline() == "ready\n"
        postgres_proxy.freeze()
        started = monotonic()
        process.stdin.write("\n")
        process.stdin.close()
        process.wait(DEADLINE)
        assert monotonic() - started < DEADLINE / 2
    finally:
        process.kill()
        process.wait(DEADLINE)
        process.stdout.close()  # type: ignore[union-attr]
        process.stderr.close()  # type: ignore[union-attr]


def test_a_first_dispatch_at_exit_is_refused_and_a_late_read_too(sqlite_url: str) -> None:
    """By Closed, which says why.

    A thread that was started then would end with the process, and its events too.
    """
    program = """
import atexit
from keyfold.actors import Closed
def late(what):
    try:
        what()
    except Closed as error:
        print("refused:", error)
other = ProjectionSystem(sys.argv[1])
other.register(Totals())
atexit.register(late, lambda: other.bus.dispatch(Added("b")))
atexit.register(late, lambda: other.runtime("test.totals").read("a"))
atexit.register(late, lambda: totals.read("a"))
atexit.register(late, lambda: system.bus.dispatch(Added("a")))
system.bus.dispatch(Added("a"))
"""
    lines = output_of(python(program, sqlite_url)).splitlines()
    assert [line.split(":")[0] for line in lines] == ["refused"] * 4
    with ProjectionSystem(sqlite_url) as system:
        assert system.register(Totals()).read_required("a").total == 1


def test_a_process_that_ends_by_itself_takes_its_report_along(database_url: str) -> None:
    """Without a close() in the program; old rows are removed by the reports of others."""
    program = """
system.bus.dispatch(Added("a")).result(20)
system._engine.sweep(0.0)
system.reporter.report()
system.reporter._under_way.result(20)
"""
    for _ in range(2):
        output_of(python(program, database_url))
    with ProjectionSystem(database_url, tuning={"report_seconds": 0}) as system:
        assert system.ask(system.reporter.others) == []
        sql = "SELECT count(*) FROM projection_processes"
        assert system.ask(lambda: system.store.database.execute_sql(sql).fetchone()) == (0,)


def test_a_report_under_way_does_not_come_back_after_the_farewell(
    make_system: MakeSystem, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It runs on one reader's thread, the farewell perhaps on another."""
    system = make_system()
    system.register(Totals()).apply_event(Added("a"), DEADLINE)
    reporter, parking, left = system.reporter, Parking(), threading.Event()
    reporter.on_report(lambda _stats: parking.park())
    leave = reporter._processes.leave

    def leave_and_tell(process: str) -> None:
        leave(process)
        left.set()

    monkeypatch.setattr(reporter._processes, "leave", leave_and_tell)
    reporter._due = 0.001
    reporter.report()
    parking.wait_for_arrival()
    closing = threading.Thread(target=system.close)
    closing.start()
    left.wait(0.2)  # a farewell that does not wait is over long before
    parking.release()
    closing.join(DEADLINE)
    assert left.is_set()
    sql = "SELECT count(*) FROM projection_processes"
    with make_system(tuning={"report_seconds": 0}) as other:
        assert other.ask(lambda: other.store.database.execute_sql(sql).fetchone()) == (0,)


def in_child(work: Callable[[], bool]) -> bool:
    """Fork, and return the result of work in the child."""
    pid = os.fork()
    if pid == 0:
        passed = False
        try:
            passed = work()
        finally:
            os._exit(0 if passed else 1)
    killer = threading.Timer(DEADLINE, os.kill, (pid, signal.SIGKILL))
    killer.start()
    _, status = os.waitpid(pid, 0)
    killer.cancel()
    return status == 0


def test_a_child_waits_for_receipts_whoever_held_the_lock_at_the_fork(
    make_system: MakeSystem,
) -> None:
    """Another thread of the parent does not exist in the child, and never lets go."""
    system = make_system()
    totals = system.register(Totals())
    totals.apply_event(Added("a"), DEADLINE)
    with receipt._callbacks_lock:
        assert in_child(lambda: totals.apply_event(Added("a"), DEADLINE)[0].version == 2)


def test_a_child_forked_in_a_hook_may_wait_for_receipts(make_system: MakeSystem) -> None:
    """The thread that forked was a dispatcher's, and is the child's main thread."""
    system = make_system()
    totals = system.register(Totals())
    outcomes: list[bool] = []

    def hook(_key: str, _state: Total) -> None:
        if not outcomes:
            outcomes.append(False)
            outcomes[0] = in_child(lambda: totals.apply_event(Added("b"), DEADLINE)[0].version == 1)

    totals.on_applied(hook)
    totals.apply_event(Added("a"), DEADLINE)
    assert outcomes == [True]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_handler_that_closes_loses_nothing_whenever_the_signal_comes(
    database_url: str, number: signal.Signals
) -> None:
    """Thirty times in the middle of a loop that dispatches: each Receipt ends, and agrees with the row."""
    program = f"""
import random, signal
from keyfold.actors import Closed
def handler(*_):
    system.close(20)
    raise SystemExit
receipts = []
signal.signal({int(number)}, handler)
threading.Timer(random.uniform(0.05, 0.3), lambda: os.kill(os.getpid(), {int(number)})).start()
try:
    while True:
        receipts.append(system.bus.dispatch(Added("a")))
except (SystemExit, Closed):
    system.close(20)
open_ones = [receipt for receipt in receipts if not receipt.done()]
failed = [receipt for receipt in receipts if receipt.done() and receipt.exception()]
print(len(receipts) - len(failed), len(open_ones), len(failed), system.stats()["in_flight"])
"""
    committed, interrupted = 0, 0
    for _ in range(5):
        confirmed, left, failed, in_flight = map(int, output_of(python(program, database_url)).split())
        assert (left, failed, in_flight) == (0, 0, 0)
        committed += confirmed
        interrupted += 1
    with ProjectionSystem(database_url) as system:
        total = system.register(Totals()).read_required("a").total
    # A dispatch that was interrupted may have been accepted; its Receipt never came.
    assert committed <= total <= committed + interrupted
