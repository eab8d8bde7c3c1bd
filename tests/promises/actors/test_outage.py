"""Promise 10: the database goes away, in the middle of a commit too, and accepted events are written once."""

from __future__ import annotations

import threading
from concurrent.futures import ThreadPoolExecutor
from time import monotonic

import pytest
from keyfold.actors import MailboxFull, ProjectionSystem, Receipt
from keyfold.store import StoreError, StoreUnavailable
from support.counting import Added, Totals, park_in
from support.parking import DEADLINE, Parking
from support.postgres import PostgresServer
from support.tcp_proxy import TcpProxy


def test_postgres_killed_under_load_and_started_again_loses_and_doubles_nothing(
    postgres_server: PostgresServer,
) -> None:
    """Every event whose dispatch returned is in its row exactly once; meanwhile dispatch pushes back."""
    with ProjectionSystem(
        postgres_server.url, mailbox_limit=50, dispatch_timeout=0.05, close_timeout=DEADLINE
    ) as system:
        totals = system.register(Totals())
        for key in range(4):
            system.bus.dispatch(Added(f"key {key}", 0)).result(DEADLINE)
        accepted: list[list[Receipt]] = [[] for _ in range(4)]
        refusals = threading.Semaphore(0)
        stop = threading.Event()

        def load(number: int) -> None:
            while not stop.is_set():
                try:
                    accepted[number].append(system.bus.dispatch(Added(f"key {number}")))
                except MailboxFull:
                    refusals.release()

        with ThreadPoolExecutor(4) as pool:
            running = [pool.submit(load, number) for number in range(4)]
            for _ in range(2):
                postgres_server.kill()
                for _ in range(4):
                    assert refusals.acquire(timeout=DEADLINE), "dispatch did not push back"
                trouble = system.stats()["writer"]["trouble"]
                assert trouble
                assert "PostgreSQL" in trouble
                postgres_server.start()
                before = sum(len(receipts) for receipts in accepted)
                accepted[0][-1].result(DEADLINE)
                assert sum(len(receipts) for receipts in accepted) >= before
            stop.set()
            for one in running:
                one.result(DEADLINE)
        assert system.settle(DEADLINE)
        for number, receipts in enumerate(accepted):
            versions = [receipt.result(DEADLINE)[0].version for receipt in receipts]
            assert versions == list(range(2, len(receipts) + 2))
            assert totals.read_required(f"key {number}").total == len(receipts)
        assert system.stats()["writer"]["trouble"] is None


def test_dispatch_says_that_the_database_is_in_trouble(postgres_server: PostgresServer) -> None:
    """MailboxFull names the cause, within the timeout and never later."""
    with ProjectionSystem(postgres_server.url, mailbox_limit=1, dispatch_timeout=0.2) as system:
        system.register(Totals())
        system.bus.dispatch(Added("a")).result(DEADLINE)
        postgres_server.kill()
        refused: MailboxFull | None = None
        receipts = []
        while refused is None:
            started = monotonic()
            try:
                receipts.append(system.bus.dispatch(Added("a")))
            except MailboxFull as error:
                refused = error
            assert monotonic() - started < 5
        assert "the database is in trouble: " in str(refused)
        postgres_server.start()
        assert [receipt.result(DEADLINE)[0].version for receipt in receipts] == [
            n + 2 for n in range(len(receipts))
        ]


@pytest.mark.parametrize("server_had_committed", [True, False])
def test_a_commit_whose_answer_is_lost_counts_once(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy, *, server_had_committed: bool
) -> None:
    """The proxy swallows the reply to COMMIT, or the COMMIT itself, and cuts the line."""
    with ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port)) as system:
        totals = system.register(Totals())
        system.bus.dispatch(Added("a", 1)).result(DEADLINE)
        if server_had_committed:
            postgres_proxy.swallow_reply_to(b"COMMIT")
        else:
            postgres_proxy.cut_before(b"COMMIT")
        [applied] = system.bus.dispatch(Added("a", 10)).result(DEADLINE)
        assert postgres_proxy.swallowed.is_set()
        assert applied.version == 2
        assert system.bus.dispatch(Added("a", 100)).result(DEADLINE)[0].version == 3
        assert totals.read_required("a").amounts == [1, 10, 100]
        assert system.stats()["projections"]["test.totals"]["conflicts"] == 0


def test_a_lost_commit_of_a_new_key_and_of_a_dead_letter_counts_once(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """Also where the row was inserted, and where a dead letter rode along."""

    def fail(_state: object) -> None:
        raise ValueError

    with ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port)) as system:
        totals = system.register(Totals())
        system.bus.dispatch(Added("other", 1)).result(DEADLINE)
        postgres_proxy.swallow_reply_to(b"COMMIT")
        assert system.bus.dispatch(Added("new", 7)).result(DEADLINE)[0].version == 1
        assert postgres_proxy.swallowed.is_set()
        postgres_proxy.swallow_reply_to(b"COMMIT")
        assert system.bus.dispatch(Added("new", 8, fail)).exception(DEADLINE) is not None
        assert postgres_proxy.swallowed.is_set()
        assert totals.read_required("new").amounts == [7]
        counted = system.store.database.execute_sql("SELECT count(*) FROM projection_dead_letters")
        assert counted.fetchone() == (1,)
        system.store.database.close()


def test_readers_get_a_store_error_and_recover(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """A connection that died costs no error.

    A database that is away raises StoreUnavailable until it is back.
    """
    with ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port)) as system:
        totals = system.register(Totals())
        totals.apply_event(Added("a", 1), DEADLINE)
        everyone = range(8)  # more than there are readers, so that each has a connection to lose
        with ThreadPoolExecutor(len(everyone)) as pool:
            assert [state.total for state in pool.map(lambda _: totals.read_required("a"), everyone)] == [
                1
            ] * 8
        postgres_proxy.cut()
        assert [totals.read_required("a").total for _ in everyone] == [1] * 8
        postgres_proxy.refuse()
        with pytest.raises(StoreUnavailable, match="can't be used at the moment"):
            totals.read("a")
        postgres_proxy.accept()
        assert [totals.read_required("a").total for _ in everyone] == [1] * 8


def test_closing_while_the_database_is_away_ends_in_time_and_tells_the_receipts(
    postgres_server: PostgresServer, caplog: pytest.LogCaptureFixture
) -> None:
    """Promise 11: the number of uncommitted events is logged, and their Receipts raise."""
    system = ProjectionSystem(postgres_server.url)
    system.register(Totals())
    system.bus.dispatch(Added("a")).result(DEADLINE)
    postgres_server.kill()
    receipts = [system.bus.dispatch(Added("a")) for _ in range(5)]
    started = monotonic()
    system.close(timeout=2)
    assert monotonic() - started < 4
    assert "closing with 5 accepted events not committed" in caplog.text
    for receipt in receipts:
        with pytest.raises(StoreError):
            receipt.result(timeout=0)


def test_closing_while_the_database_is_frozen_ends_in_time(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """Promise 11: a server that answers nothing, on a line that stays up, can't hold close for ever."""
    system = ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port))
    system.register(Totals())
    system.bus.dispatch(Added("a")).result(DEADLINE)
    postgres_proxy.freeze()
    receipt = system.bus.dispatch(Added("a"))
    started = monotonic()
    system.close(timeout=1)
    assert monotonic() - started < 4
    with pytest.raises(StoreError):
        receipt.result(timeout=DEADLINE)
    postgres_proxy.thaw()


def test_a_start_without_a_database_accepts_nothing(postgres_server: PostgresServer) -> None:
    """The first dispatch makes the tables: if it can't, it raises, and the next one tries again."""
    postgres_server.kill()
    with ProjectionSystem(postgres_server.url) as system:
        system.register(Totals())
        with pytest.raises(StoreUnavailable, match=r"PostgreSQL postgres on 127\.0\.0\.1"):
            system.bus.dispatch(Added("a"))
        postgres_server.start()
        assert system.bus.dispatch(Added("a")).result(DEADLINE)[0].version == 1


def test_events_wait_in_order_while_the_line_is_frozen(
    postgres_server: PostgresServer, postgres_proxy: TcpProxy
) -> None:
    """Promise 1 through an outage: a pause is only a pause."""
    with ProjectionSystem(postgres_server.url_of("postgres", postgres_proxy.port)) as system:
        totals = system.register(Totals())
        parking = Parking()
        receipts = [system.bus.dispatch(Added("a", 0, park_in(parking)))]
        parking.wait_for_arrival()
        postgres_proxy.freeze()
        parking.release()
        receipts += [system.bus.dispatch(Added("a", n)) for n in range(1, 50)]
        postgres_proxy.thaw()
        assert [receipt.result(DEADLINE)[0].version for receipt in receipts] == list(range(1, 51))
        assert totals.read_required("a").amounts == list(range(50))
