"""One row harms one row: locked, refused or forbidden, its key waits or fails, and the others go on."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from contextlib import closing
from time import monotonic
from typing import Any

import peewee
import psycopg2
import pytest
from keyfold.actors import ApplyError, ProjectionRuntime, ProjectionSystem, Receipt
from keyfold.store import StoreError
from playhouse.db_url import connect
from support.counting import Added, Total, Totals
from support.parking import DEADLINE

GOES_ON = 5.0
"""Seconds within which the others go on; the locks are held for as long as the test likes."""

Session = Callable[[], Any]


@pytest.fixture
def session(postgres_url: str) -> Iterator[Session]:
    """Open sessions on the test's database, as psql would; their transactions end with the test."""
    opened: list[Any] = []

    def open_session() -> Any:
        opened.append(psycopg2.connect(postgres_url))
        return opened[-1]

    yield open_session
    for connection in opened:
        connection.close()


@pytest.fixture
def on_postgres(postgres_url: str) -> Iterator[ProjectionSystem]:
    """A system on PostgreSQL."""
    with ProjectionSystem(postgres_url, close_timeout=5) as system:
        yield system


def begin(system: ProjectionSystem, *keys: str) -> ProjectionRuntime[Added, Total]:
    totals = system.register(Totals())
    for key in keys:
        totals.apply_event(Added(key), DEADLINE)
    return totals


def lock(connection: Any, *keys: str) -> None:
    cursor = connection.cursor()
    cursor.execute("SELECT key FROM projection_snapshots WHERE key = ANY(%s) FOR UPDATE", (list(keys),))
    assert len(cursor.fetchall()) == len(keys)


def execute(system: ProjectionSystem, *statements: str) -> None:
    with system.store.database.connection_context():
        for sql in statements:
            system.store.database.execute_sql(sql)


def dispatch(system: ProjectionSystem, *keys: str) -> list[Receipt]:
    return [system.bus.dispatch(Added(key)) for key in keys]


def versions(receipts: list[Receipt], timeout: float) -> list[int]:
    deadline = monotonic() + timeout
    return [receipt.result(max(0.0, deadline - monotonic()))[0].version for receipt in receipts]


def waiting(system: ProjectionSystem) -> Any:
    return system.stats()["writer"]["waiting"]


def wait_until(reached: Callable[[], bool]) -> None:
    deadline = monotonic() + DEADLINE
    while not reached():
        assert monotonic() < deadline, "it never came to that"
        threading.Event().wait(0.01)


def test_the_others_go_on_while_a_row_is_locked(
    on_postgres: ProjectionSystem, session: Session, caplog: pytest.LogCaptureFixture
) -> None:
    """Again and again; the locked one is committed, in order, once the lock ends; it is logged once."""
    totals = begin(on_postgres, "a", "b", "c")
    blocker = session()
    lock(blocker, "a")
    [locked] = dispatch(on_postgres, "a")
    for version in range(2, 7):
        assert versions(dispatch(on_postgres, "b", "c"), GOES_ON) == [version] * 2
    more = dispatch(on_postgres, "a", "a")
    assert not locked.done()
    facts = on_postgres.stats()["writer"]
    assert facts["waiting"] == 1
    assert facts["waiting_reason"].startswith("row (test.totals, a): ")
    assert facts["trouble"] is None
    assert totals.read_required("a").total == 1
    blocker.rollback()
    assert versions([locked, *more], GOES_ON) == [2, 3, 4]
    wait_until(lambda: waiting(on_postgres) == 0)
    assert on_postgres.stats()["writer"]["waiting_reason"] is None
    assert caplog.text.count("key 'a' waits") == 1


def test_several_locked_rows_each_wait_for_themselves(
    on_postgres: ProjectionSystem, session: Session
) -> None:
    """Two of many, locked by two sessions; the one that is free again does not wait for the other."""
    keys = [f"k{n}" for n in range(30)]
    begin(on_postgres, *keys)
    one, other = session(), session()
    lock(one, "k7")
    lock(other, "k23")
    receipts = dict(zip(keys, dispatch(on_postgres, *keys), strict=True))
    first, second = receipts.pop("k7"), receipts.pop("k23")
    assert versions(list(receipts.values()), GOES_ON) == [2] * 28
    assert not first.done()
    assert not second.done()
    one.rollback()
    assert versions([first], GOES_ON) == [2]
    assert versions(dispatch(on_postgres, "k0"), GOES_ON) == [3]
    assert not second.done()
    other.rollback()
    assert versions([second], GOES_ON) == [2]


def test_a_database_of_the_apps_own_has_no_time_out_for_locks_and_needs_none(
    postgres_url: str, session: Session
) -> None:
    """The others go on here as well."""
    database = connect(postgres_url)
    with ProjectionSystem(database, close_timeout=5) as system:
        begin(system, "a", "b")
        blocker = session()
        lock(blocker, "a")
        [locked] = dispatch(system, "a")
        assert versions(dispatch(system, "b"), GOES_ON) == [2]
        assert not locked.done()
        blocker.rollback()
        assert versions([locked], GOES_ON) == [2]


def test_a_locked_row_keeps_no_other_key_from_being_loaded_and_no_letter_from_being_kept(
    on_postgres: ProjectionSystem, session: Session
) -> None:
    """New keys, reads, and a poison event, while a row is locked."""
    totals = begin(on_postgres, "a", "b")
    blocker = session()
    lock(blocker, "a")
    [locked] = dispatch(on_postgres, "a")

    def fail(_state: Total) -> None:
        raise ValueError

    poisoned = on_postgres.bus.dispatch(Added("b", 1, fail))
    assert versions(dispatch(on_postgres, "new"), GOES_ON) == [1]
    assert isinstance(poisoned.exception(GOES_ON), ApplyError)
    assert totals.read_required("new").total == 1
    blocker.rollback()
    assert versions([locked], GOES_ON) == [2]


def test_a_new_key_that_another_session_is_about_to_insert_waits_alone(
    on_postgres: ProjectionSystem, session: Session
) -> None:
    """Nobody sees that row yet, so it is found by halving; once it is there, the event is folded on it."""
    keys = [f"k{n}" for n in range(20)]
    begin(on_postgres, "other")
    inserting = session()
    inserting.cursor().execute(
        "INSERT INTO projection_snapshots (projection_name, key, state, epoch, version, updated_at) "
        "VALUES ('test.totals', 'k11', '{\"total\": 5, \"amounts\": [5]}', 'e', 1, now())"
    )
    receipts = dict(zip(keys, dispatch(on_postgres, *keys), strict=True))
    held = receipts.pop("k11")
    assert versions(list(receipts.values()), GOES_ON) == [1] * 19
    assert versions(dispatch(on_postgres, "other"), GOES_ON) == [2]
    assert not held.done()
    inserting.commit()
    assert versions([held], GOES_ON) == [2]
    assert on_postgres.runtime("test.totals").read_required("k11").amounts == [5, 1]


def test_a_trigger_that_raises_fails_its_key_alone(make_system: Callable[..., ProjectionSystem]) -> None:
    """A rule of the app's in the database: the guilty event is a dead letter, the others go on."""
    system = make_system(close_timeout=5)
    totals = begin(system, "bad", "good")
    if isinstance(system.store.database, peewee.SqliteDatabase):
        execute(
            system,
            "CREATE TRIGGER rule BEFORE UPDATE ON projection_snapshots WHEN NEW.key = 'bad' "
            "BEGIN SELECT RAISE(ABORT, 'not this one'); END",
        )
    else:
        execute(
            system,
            "CREATE FUNCTION rule() RETURNS trigger LANGUAGE plpgsql AS $$ BEGIN "
            "IF NEW.key = 'bad' THEN RAISE EXCEPTION 'not this one'; END IF; RETURN NEW; END $$",
            "CREATE TRIGGER rule BEFORE UPDATE ON projection_snapshots FOR EACH ROW EXECUTE FUNCTION rule()",
        )
    [bad, good] = dispatch(system, "bad", "good")
    assert good.result(GOES_ON)[0].version == 2
    error = bad.exception(GOES_ON)
    assert isinstance(error, ApplyError)
    assert "not this one" in str(error.__cause__ or error)
    execute(
        system,
        "DROP TRIGGER rule"
        + ("" if "sqlite" in str(type(system.store.database)).lower() else " ON projection_snapshots"),
    )
    assert versions(dispatch(system, "bad"), GOES_ON) == [2]
    assert totals.read_required("bad").total == 2


def test_a_function_that_fails_within_a_trigger_lets_its_key_wait(sqlite_url: str) -> None:
    """SQLite says that the statement can't be done, not that the data is bad: tried again until it can."""
    with ProjectionSystem(sqlite_url, close_timeout=5) as system:
        fails = threading.Event()
        fails.set()

        def rule(key: str) -> int:
            if key == "odd" and fails.is_set():
                raise RuntimeError
            return 1

        database = system.store.database
        assert isinstance(database, peewee.SqliteDatabase)
        database.register_function(rule, "rule")
        begin(system, "odd", "good")
        execute(
            system,
            "CREATE TRIGGER rule BEFORE UPDATE ON projection_snapshots BEGIN SELECT rule(NEW.key); END",
        )
        [odd, good] = dispatch(system, "odd", "good")
        assert versions([good], GOES_ON) == [2]
        assert versions(dispatch(system, "good"), GOES_ON) == [3]
        assert not odd.done()
        fails.clear()
        assert versions([odd], GOES_ON) == [2]


@pytest.fixture
def guarded(_shared_postgres: Any, postgres_url: str) -> Iterator[tuple[ProjectionSystem, Any]]:
    """A system whose role owns no table, and the connection of the role that does."""
    name = postgres_url.rpartition("/")[2]
    role = f"role_{name}"
    owner = psycopg2.connect(postgres_url)
    owner.autocommit = True
    with ProjectionSystem(postgres_url) as system:
        system.store.ensure_tables()
    cursor = owner.cursor()
    cursor.execute(f"CREATE ROLE {role} LOGIN")
    cursor.execute(f"GRANT ALL ON ALL TABLES IN SCHEMA public TO {role}")
    cursor.execute(f"GRANT ALL ON ALL SEQUENCES IN SCHEMA public TO {role}")
    with closing(owner):
        with ProjectionSystem(postgres_url.replace("postgres@", f"{role}@"), close_timeout=5) as system:
            yield system, cursor
        cursor.execute(f"DROP OWNED BY {role}")
        cursor.execute(f"DROP ROLE {role}")


def test_a_row_level_policy_lets_its_key_wait(guarded: tuple[ProjectionSystem, Any]) -> None:
    """The others go on; the key is written when the policy is dropped."""
    system, owner = guarded
    begin(system, "a", "b")
    owner.execute("ALTER TABLE projection_snapshots ENABLE ROW LEVEL SECURITY")
    owner.execute("CREATE POLICY rule ON projection_snapshots USING (true) WITH CHECK (key <> 'a')")
    [forbidden, fine] = dispatch(system, "a", "b")
    assert versions([fine], GOES_ON) == [2]
    assert versions(dispatch(system, "b", "new"), GOES_ON) == [3, 1]
    assert not forbidden.done()
    wait_until(lambda: "row-level security" in (system.stats()["writer"]["waiting_reason"] or ""))
    owner.execute("ALTER TABLE projection_snapshots DISABLE ROW LEVEL SECURITY")
    assert versions([forbidden], GOES_ON) == [2]


def test_a_privilege_that_is_taken_away_and_given_back_loses_nothing(
    guarded: tuple[ProjectionSystem, Any],
) -> None:
    """Everything waits, as trouble says, and everything is written, once and in order."""
    system, owner = guarded
    keys = [f"k{n}" for n in range(50)]
    totals = begin(system, *keys)
    [[role]] = system.store.run(lambda: system.store.database.execute_sql("SELECT current_user").fetchall())
    owner.execute(f"REVOKE UPDATE ON projection_snapshots FROM {role}")
    receipts = [dispatch(system, *keys) for _ in range(3)]
    wait_until(lambda: waiting(system) == len(keys))
    assert "permission denied" in (system.trouble or "")
    owner.execute(f"GRANT UPDATE ON projection_snapshots TO {role}")
    for number, round_ in enumerate(receipts):
        assert versions(round_, DEADLINE) == [number + 2] * len(keys)
    assert [totals.read_required(key).total for key in keys] == [4] * len(keys)
    assert system.trouble == ""
    assert waiting(system) == 0


def test_closing_while_a_row_is_locked_ends_in_time_and_tells_the_receipt(
    on_postgres: ProjectionSystem, session: Session
) -> None:
    """What could be committed is; the Receipt of the locked one raises."""
    begin(on_postgres, "a", "b")
    blocker = session()
    lock(blocker, "a")
    [locked, free] = dispatch(on_postgres, "a", "b")
    wait_until(lambda: waiting(on_postgres) == 1)
    started = monotonic()
    on_postgres.close(timeout=2)
    assert monotonic() - started < 3
    assert free.result(0)[0].version == 2
    with pytest.raises(StoreError):
        locked.result(0)
