"""Reads are bounded.

Each ends by its deadline, a connection that holds a reader longer is cut, and health says so.
"""

from __future__ import annotations

import threading
from concurrent.futures import Future, ThreadPoolExecutor
from time import monotonic

import pytest
from keyfold.actors import Closed, ProjectionSystem
from keyfold.store import StoreUnavailable
from support.counting import Added, Totals
from support.parking import DEADLINE, Parking, wait_until
from support.postgres import PostgresServer
from support.tcp_proxy import TcpProxy


def test_reads_from_a_frozen_server_end_and_the_readers_are_free_again(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """A server that is frozen, and not dead, answers nothing and closes nothing."""
    url = postgres_server.url_of("postgres", postgres_proxy.port)
    with ProjectionSystem(
        url, tuning={"read_timeout": 0.5, "health_seconds": 0.2, "report_seconds": 0}
    ) as system:
        totals = system.register(Totals())
        totals.apply_event(Added("a"), DEADLINE)
        everyone = range(8)
        with ThreadPoolExecutor(len(everyone)) as pool:
            list(pool.map(lambda _: totals.read("a"), everyone))
            postgres_proxy.freeze()
            started = monotonic()
            reads = [pool.submit(totals.read, "a") for _ in everyone]
            wait_until(
                lambda: any(
                    trouble
                    for name, trouble in system.stats()["loops"].items()
                    if name.startswith("keyfold-reader")
                )
            )
            errors = [read.exception(DEADLINE) for read in reads]
            assert monotonic() - started < DEADLINE / 2
        assert {type(error) for error in errors} == {StoreUnavailable}
        assert "has not answered within 0.5 s" in str(errors[0])
        postgres_proxy.thaw()
        wait_until(lambda: _total(system) == 1)


def _total(system: ProjectionSystem) -> int:
    try:
        return int(system.runtime("test.totals").read_required("a").total)
    except StoreUnavailable:
        return -1


def test_a_read_that_nobody_waits_for_ends_too(system: ProjectionSystem) -> None:
    """A socket's read is told by a callback: it comes at the deadline though both readers are held."""
    parking = Parking()
    held = [system.submit(parking.park, seconds=DEADLINE) for _ in range(2)]
    for _ in held:
        parking.wait_for_arrival()
    ended: list[BaseException | None] = []
    called = threading.Event()
    late = system.submit(lambda: 1, seconds=0.05)

    def end(future: Future[int]) -> None:
        ended.append(future.exception())
        called.set()

    late.add_done_callback(end)
    assert called.wait(DEADLINE)
    assert isinstance(ended[0], StoreUnavailable)
    parking.release()
    assert [future.result(DEADLINE) for future in held] == [None, None]
    assert system.ask(lambda: 2) == 2


def test_a_question_on_a_readers_thread_is_asked_at_once(system: ProjectionSystem) -> None:
    """Two readers that waited for each other would wait until the deadline."""
    answers = [system.submit(lambda: system.ask(lambda: system.ask(lambda: 3))) for _ in range(4)]
    assert [answer.result(DEADLINE) for answer in answers] == [3] * 4


def test_whatever_a_question_raises_is_its_own(system: ProjectionSystem) -> None:
    """A reader's thread survives SystemExit."""
    for _ in range(4):
        with pytest.raises(SystemExit):
            system.submit(_leave).result(DEADLINE)
    assert system.ask(lambda: 1) == 1


def _leave() -> None:
    raise SystemExit


def test_a_close_ends_every_read(system: ProjectionSystem) -> None:
    """Those that wait behind a hanging one as well, within the timeout."""
    parking = Parking()
    held = [system.submit(parking.park) for _ in range(2)]
    for _ in held:
        parking.wait_for_arrival()
    waiting = [system.submit(lambda: 1) for _ in range(5)]
    started = monotonic()
    system.close(1)
    assert monotonic() - started < DEADLINE / 2
    errors = [read.exception(0) for read in held] + [read.exception(0) for read in waiting]
    assert [type(error) for error in errors] == [Closed] * 7
    parking.release()
    with pytest.raises(Closed):
        system.submit(lambda: 1)


def test_reads_that_wait_are_bounded(system: ProjectionSystem, monkeypatch: pytest.MonkeyPatch) -> None:
    """Promise 9: the next one is refused at once."""
    monkeypatch.setattr("keyfold.actors.upkeep.readers._MAX_WAITING", 3)
    parking = Parking()
    reads = [system.submit(parking.park) for _ in range(3)]
    with pytest.raises(StoreUnavailable, match="3 reads wait"):
        system.ask(lambda: 1)
    parking.release()
    for read in reads:
        read.result(DEADLINE)
    assert system.ask(lambda: 1) == 1
