"""Keys that halt, dead letters that are retried or skipped, and rows of other schema versions."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any, ClassVar, Literal

import pytest
from keyfold.actors import (
    ApplyError,
    InvalidEvent,
    InvalidProjection,
    Position,
    Projection,
    ProjectionRuntime,
    ProjectionSystem,
    StoreError,
    VersionConflict,
)
from keyfold.actors.errors import LetterNotFound
from keyfold.actors.key_actor.commands import Recalled, Retry
from support.counting import RecordingBroadcaster
from support.parking import DEADLINE, Parking

MakeSystem = Callable[..., ProjectionSystem]


@dataclass
class Paid:
    """Something that may be against the rules."""

    account: str
    amount: int


@dataclass
class Balance:
    """What is left, and the payments in order."""

    left: int = 0
    payments: list[int] = field(default_factory=list)


class Rules:
    """What is allowed at the moment: the bug that an operator mends."""

    def __init__(self) -> None:
        self.forbidden: set[int] = set()
        self.park: Parking | None = None


class Accounts(Projection[Paid, Balance]):
    """Halts."""

    name = "test.accounts"
    on_error: ClassVar[Literal["dead_letter", "halt"]] = "halt"

    def __init__(self, rules: Rules) -> None:
        self.rules = rules

    def key(self, event: Paid) -> str:
        return event.account

    def apply(self, state: Balance, event: Paid) -> dict[str, int]:
        state.left += event.amount
        state.payments.append(event.amount)
        if event.amount in self.rules.forbidden:
            msg = f"{event.amount} is forbidden"
            raise ValueError(msg)
        return {"left": state.left}


class Careless(Accounts):
    """Does not halt."""

    name = "test.careless"
    on_error = "dead_letter"


Accounted = ProjectionRuntime[Paid, Balance]


@pytest.fixture
def rules() -> Rules:
    """What Accounts may fold."""
    return Rules()


@pytest.fixture
def accounts(system: ProjectionSystem, rules: Rules) -> Accounted:
    """Accounts, registered."""
    return system.register(Accounts(rules))


def pay(runtime: Accounted, *amounts: int, account: str = "a") -> list[BaseException | None]:
    """Dispatch all at once, and return the outcome of each."""
    receipts = [runtime.accept(Paid(account, amount)) for amount in amounts]
    return [receipt.exception(DEADLINE) for receipt in receipts]


def kinds(errors: list[BaseException | None]) -> list[str]:
    return [type(error).__name__ for error in errors]


def payments(runtime: Accounted, account: str = "a") -> list[int]:
    balance = runtime.read(account)
    return [] if balance is None else balance.payments


def parked(runtime: Accounted, account: str = "a") -> list[int]:
    letters = runtime.dead_letters.find(account, parked=True)
    return [json.loads(letter.event)["amount"] for letter in letters]


def test_a_poison_event_parks_its_key_and_what_follows_and_no_other_key(
    accounts: Accounted, rules: Rules
) -> None:
    """The events before it are committed, those behind it wait in order; other keys go on."""
    rules.forbidden = {13}
    assert kinds(pay(accounts, 1, 2, 13, 3, 4)) == [
        "NoneType",
        "NoneType",
        "ApplyError",
        "KeyHalted",
        "KeyHalted",
    ]
    assert kinds(pay(accounts, 5)) == ["KeyHalted"]
    assert pay(accounts, 7, account="b") == [None]
    assert (payments(accounts), parked(accounts)) == ([1, 2], [13, 3, 4, 5])
    assert payments(accounts, "b") == [7]
    [head, *behind] = accounts.dead_letters.find("a")
    assert "13 is forbidden" in head.error
    assert "ValueError" in head.traceback
    assert all("is halted at" in letter.error for letter in behind)


def test_the_first_event_of_a_key_may_halt_it(accounts: Accounted, rules: Rules) -> None:
    """There is no row to halt: a tombstone is made, which readers take for nothing."""
    rules.forbidden = {13}
    assert kinds(pay(accounts, 13, 1)) == ["ApplyError", "KeyHalted"]
    assert accounts.snapshot("a") is None
    rules.forbidden.clear()
    assert accounts.dead_letters.resume("a") == 2
    assert payments(accounts) == [13, 1]
    snapshot = accounts.snapshot("a")
    assert snapshot is not None
    assert snapshot.version == 2
    assert pay(accounts, 2) == [None]


def test_resume_folds_head_first_up_to_what_still_fails(
    accounts: Accounted, rules: Rules, broadcaster: RecordingBroadcaster
) -> None:
    """Good ones are committed and shown, the bad one and the rest stay; then the key goes on."""
    rules.forbidden = {13, 14}
    pay(accounts, 1, 13, 2, 14, 3)
    rules.forbidden = {14}
    with pytest.raises(ApplyError, match="14 is forbidden"):
        accounts.dead_letters.resume("a")
    assert (payments(accounts), parked(accounts)) == ([1, 13, 2], [14, 3])
    assert kinds(pay(accounts, 4)) == ["KeyHalted"]
    rules.forbidden.clear()
    assert accounts.dead_letters.resume("a") == 3
    assert (payments(accounts), parked(accounts)) == ([1, 13, 2, 14, 3, 4], [])
    assert pay(accounts, 5) == [None]
    shown = [(turn.base_version, turn.version) for turn in broadcaster.published]
    assert [start for start, _ in shown] == [0, *[end for _, end in shown[:-1]]]
    assert shown[-1][1] == 7
    with pytest.raises(LetterNotFound, match="is not halted"):
        accounts.dead_letters.resume("a")


def test_retry_and_skip_go_head_first(accounts: Accounted, rules: Rules) -> None:
    """Nothing overtakes: a letter behind the head can neither be retried nor skipped."""
    rules.forbidden = {13}
    pay(accounts, 13, 1, 2)
    head, second, third = accounts.dead_letters.find("a")
    for act in (accounts.dead_letters.retry, accounts.dead_letters.skip):
        with pytest.raises(LetterNotFound, match=f"behind {head.id}"):
            act(second.id)
    with pytest.raises(ApplyError):
        accounts.dead_letters.retry(head.id)
    accounts.dead_letters.skip(head.id)
    [applied] = accounts.dead_letters.retry(second.id)
    assert (applied.version, applied.delta) == (1, {"left": 1})
    assert kinds(pay(accounts, 3)) == ["KeyHalted"]
    accounts.dead_letters.retry(third.id)
    accounts.dead_letters.retry(accounts.dead_letters.find("a")[0].id)
    assert payments(accounts) == [1, 2, 3]
    assert pay(accounts, 4) == [None]


def test_skip_is_a_compare_and_set_on_the_position(accounts: Accounted, rules: Rules) -> None:
    """An operator who looked at an old page removes nothing; a second click neither."""
    rules.forbidden = {13}
    pay(accounts, 1, 13, 2)
    [head, _] = accounts.dead_letters.find("a")
    snapshot = accounts.snapshot("a")
    assert snapshot is not None
    with pytest.raises(VersionConflict):
        accounts.dead_letters.skip(head.id, position=Position(snapshot.epoch, 2))
    assert parked(accounts) == [13, 2]
    accounts.dead_letters.skip(head.id, position=Position(snapshot.epoch, 1))
    with pytest.raises(LetterNotFound, match="no dead letter"):
        accounts.dead_letters.skip(head.id, position=Position(snapshot.epoch, 1))
    assert parked(accounts) == [2]


def test_a_halt_outlives_the_process_and_holds_for_all_of_them(make_system: MakeSystem, rules: Rules) -> None:
    """It stands in the row: another system with the key in memory parks too, and so does the next start."""
    first, second = (make_system().register(Accounts(rules)) for _ in range(2))
    pay(first, 1)
    pay(second, 2)
    rules.forbidden = {13}
    pay(first, 13)
    assert kinds(pay(second, 3)) == ["KeyHalted"]
    assert parked(second) == [13, 3]
    third = make_system().register(Accounts(rules))
    assert kinds(pay(third, 4)) == ["KeyHalted"]
    rules.forbidden.clear()
    assert second.dead_letters.resume("a") == 3
    for runtime in (first, second, third):
        assert pay(runtime, 9) == [None]
    assert payments(first) == [1, 2, 13, 3, 4, 9, 9, 9]


def test_an_event_that_a_stale_state_refused_is_folded_on_the_fresh_one(make_system: MakeSystem) -> None:
    """The halt is version-checked: the commit of another process may have made the event legal."""

    class Withdrawals(Projection[Paid, Balance]):
        name = "test.withdrawals"
        on_error = "halt"

        def key(self, event: Paid) -> str:
            return event.account

        def apply(self, state: Balance, event: Paid) -> int:
            if state.left + event.amount < 0:
                msg = "overdrawn"
                raise ValueError(msg)
            state.left += event.amount
            return state.left

    first, second = (make_system().register(Withdrawals()) for _ in range(2))
    first.apply_event(Paid("a", 1), DEADLINE)
    second.apply_event(Paid("a", 10), DEADLINE)
    [applied] = first.apply_event(Paid("a", -5), DEADLINE)
    assert applied.delta == 6
    assert first.dead_letters.find() == []


@pytest.mark.parametrize("by", ["rebuild", "wipe"])
def test_a_replaced_key_stays_halted_while_events_are_parked(
    accounts: Accounted, rules: Rules, by: str
) -> None:
    """Nobody has decided about them yet. Once they are skipped, the key goes on."""
    rules.forbidden = {13}
    pay(accounts, 1, 13)
    if by == "rebuild":
        accounts.rebuild("a", [Paid("a", 8)])
    else:
        accounts.wipe("a")
    assert kinds(pay(accounts, 2)) == ["KeyHalted"]
    for letter in accounts.dead_letters.find("a"):
        accounts.dead_letters.skip(letter.id)
    assert pay(accounts, 3) == [None]
    assert payments(accounts) == ([8, 3] if by == "rebuild" else [3])


def test_an_ordinary_dead_letter_is_retried_once(system: ProjectionSystem, rules: Rules) -> None:
    """It is folded on the present state, and removed in the same commit; a letter that fails again stays."""
    careless = system.register(Careless(rules))
    rules.forbidden = {13}
    pay(careless, 1, 13, 2)
    [letter] = careless.dead_letters.find("a")
    with pytest.raises(ApplyError):
        careless.dead_letters.retry(letter.id)
    assert payments(careless) == [1, 2]
    rules.forbidden.clear()
    [applied] = careless.dead_letters.retry(letter.id)
    assert applied.version == 3
    assert payments(careless) == [1, 2, 13]
    with pytest.raises(LetterNotFound):
        careless.dead_letters.retry(letter.id)
    assert payments(careless) == [1, 2, 13]


def test_of_two_processes_that_retry_one_letter_one_folds_it(make_system: MakeSystem, rules: Rules) -> None:
    """The removal and the new state are one commit over one position."""
    first, second = (make_system().register(Careless(rules)) for _ in range(2))
    rules.forbidden = {13}
    pay(first, 1, 13)
    pay(second, 2)  # both have the key in memory now
    [letter] = first.dead_letters.find()
    rules.forbidden.clear()
    first.dead_letters.retry(letter.id)
    with pytest.raises(LetterNotFound):
        second.dead_letters.retry(letter.id)
    assert payments(first) == [1, 2, 13]


def test_an_ordinary_letter_does_not_overtake_a_halt(accounts: Accounted, rules: Rules) -> None:
    """Also if the key halts between the question and the actor's turn."""
    rules.forbidden = {13}
    pay(accounts, 1, 13, 2)
    letter = Recalled(accounts.dead_letters.find("a")[1].id, Paid("a", 2))
    command = Retry((letter,), parked=False)
    accounts.running().command("a", command)
    assert isinstance(command.done.exception(DEADLINE), LetterNotFound)
    assert (payments(accounts), parked(accounts)) == ([1], [13, 2])


def test_a_letter_of_a_key_without_a_row_can_be_skipped(system: ProjectionSystem, rules: Rules) -> None:
    """The poison was the key's first event, and left nothing."""
    careless = system.register(Careless(rules))
    rules.forbidden = {13}
    pay(careless, 13)
    [letter] = careless.dead_letters.find()
    careless.dead_letters.skip(letter.id)
    assert careless.dead_letters.find() == []


def test_a_letter_that_is_no_event_any_more_is_named(system: ProjectionSystem, rules: Rules) -> None:
    """The class is gone, or its fields: it stays, and the message says which it is."""
    careless = system.register(Careless(rules))
    rules.forbidden = {13}
    pay(careless, 13)
    [letter] = careless.dead_letters.find()
    database = system.store.database
    for column, value, message in (
        ("event", '{"amount": 13}', "does not decode"),
        ("event_type", "shop.Gone", "shop.Gone is no event of it"),
    ):
        with database.connection_context():
            database.execute_sql(f"UPDATE projection_dead_letters SET {column} = {database.param}", (value,))
        with pytest.raises(InvalidEvent, match=message):
            careless.dead_letters.retry(letter.id)
    assert len(careless.dead_letters.find()) == 1


def test_a_state_that_cannot_be_encoded_halts_at_the_guilty_event(system: ProjectionSystem) -> None:
    """The batch is halved until it stands alone; nothing overtakes it."""

    class Collector(Projection[Paid, Balance]):
        name = "test.collector"
        on_error = "halt"

        def key(self, event: Paid) -> str:
            return event.account

        def apply(self, state: Balance, event: Paid) -> int:
            state.payments.append(object() if event.amount == 13 else event.amount)  # type: ignore[arg-type]
            return event.amount

    collector = system.register(Collector())
    assert kinds(pay(collector, 1, 2, 13, 3)) == ["NoneType", "NoneType", "ApplyError", "KeyHalted"]
    assert (payments(collector), parked(collector)) == ([1, 2], [13, 3])


@pytest.mark.parametrize("bad", ["an object that has no JSON", "a NUL that PostgreSQL refuses"])
def test_resume_folds_up_to_the_event_whose_state_cannot_be_stored(postgres_url: str, bad: str) -> None:
    """It is sought among the others, and alone is in the way."""

    class Notes(Projection[Paid, list[Any]]):
        name = "test.notes"
        on_error: ClassVar[Literal["dead_letter", "halt"]] = "halt"
        forbidden = 13

        def key(self, event: Paid) -> str:
            return event.account

        def apply(self, state: list[Any], event: Paid) -> int:
            if event.amount == self.forbidden:
                msg = "forbidden"
                raise ValueError(msg)
            guilty = object() if bad.startswith("an object") else "\x00"
            state.append(guilty if event.amount == 14 else event.amount)
            return event.amount

    with ProjectionSystem(postgres_url) as system:
        notes = system.register(Notes())
        receipts = [notes.accept(Paid("a", amount)) for amount in (1, 13, 2, 3, 14, 4)]
        for receipt in receipts:
            receipt.exception(DEADLINE)
        notes.projection.forbidden = 0  # type: ignore[attr-defined]
        with pytest.raises((ApplyError, StoreError)):
            notes.dead_letters.resume("a")
        assert notes.read("a") == [1, 13, 2, 3]
        [head, _] = notes.dead_letters.find("a")
        assert json.loads(head.event)["amount"] == 14
        notes.dead_letters.skip(head.id)
        assert notes.dead_letters.resume("a") == 1
        assert notes.read("a") == [1, 13, 2, 3, 4]


# -- schema versions


@dataclass
class Euros:
    """The second shape of a balance."""

    cents: int = 0


class Cents(Projection[Paid, Euros]):
    """What became of Accounts."""

    name = "test.accounts"
    schema_version = 2

    def key(self, event: Paid) -> str:
        return event.account

    def apply(self, state: Euros, event: Paid) -> int:
        state.cents += 100 * event.amount
        return state.cents

    def upgrade(self, state: Any, from_version: int) -> Any:
        assert from_version == 1
        return {"cents": 100 * state["left"]}


def test_a_row_of_an_older_schema_is_upgraded_when_it_is_read(make_system: MakeSystem, rules: Rules) -> None:
    """Readers and actors see the new shape; the next event writes it, and the position goes on."""
    pay(make_system().register(Accounts(rules)), 1, 2)
    system = make_system()
    cents = system.register(Cents())
    assert cents.read("a") == Euros(300)
    raw = system.store.row("test.accounts", "a")
    assert raw is not None
    assert raw.schema_version == 1
    row = system.read_row("test.accounts", "a")
    assert row is not None
    assert (row.state, row.schema_version) == (b'{"cents":300}', 2)
    [applied] = cents.apply_event(Paid("a", 1), DEADLINE)
    assert (applied.version, applied.epoch, applied.delta) == (3, raw.epoch, 400)
    written = system.store.row("test.accounts", "a")
    assert written is not None
    assert written.schema_version == 2


def test_a_row_of_a_newer_schema_is_refused_and_untouched(make_system: MakeSystem, rules: Rules) -> None:
    """An old process in a rolling release neither misreads it nor writes over it, nor halts it.

    The event is kept as a letter, which the new release retries.
    """
    make_system().register(Cents()).apply_event(Paid("a", 1), DEADLINE)
    system = make_system()
    old = system.register(Accounts(rules))
    with pytest.raises(StoreError, match="has schema 2, this process knows 1 at most"):
        old.read("a")
    [error] = pay(old, 5)
    assert isinstance(error, StoreError)
    row = system.store.row("test.accounts", "a")
    assert row is not None
    assert (row.state.replace(b" ", b""), row.version) == (b'{"cents":100}', 1)
    assert parked(old) == []
    [letter] = old.dead_letters.find()
    new = make_system().register(Cents())
    assert new.apply_event(Paid("a", 1), DEADLINE)[0].version == 2
    assert new.dead_letters.retry(letter.id)[0].version == 3
    assert new.read("a") == Euros(700)


def test_an_upgrade_that_raises_is_named(make_system: MakeSystem, rules: Rules) -> None:
    """As a row that does not decode."""

    class Forgotten(Cents):
        upgrade = Projection.upgrade

    pay(make_system().register(Accounts(rules)), 1)
    forgotten = make_system().register(Forgotten())
    with pytest.raises(StoreError, match="Forgotten has no upgrade"):
        forgotten.read("a")


@pytest.mark.parametrize(
    ("attribute", "value", "message"),
    [("on_error", "explode", 'must be "dead_letter" or "halt"'), ("schema_version", 0, "at least 1")],
)
def test_what_a_projection_says_of_itself_is_checked(
    system: ProjectionSystem, rules: Rules, attribute: str, value: object, message: str
) -> None:
    """At registration, by name."""
    projection = Accounts(rules)
    setattr(projection, attribute, value)
    with pytest.raises(InvalidProjection, match=message):
        system.register(projection)
