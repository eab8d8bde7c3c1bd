"""No dispatcher thread waits for work that only dispatcher threads can do."""

from __future__ import annotations

from collections.abc import Callable

from keyfold.actors import MailboxFull, ProjectionRuntime, ProjectionSystem, Receipt
from keyfold.actors.errors import WouldDeadlock
from support.counting import Added, Total, Totals
from support.parking import DEADLINE

Runtime = ProjectionRuntime[Added, Total]


def test_an_event_may_be_dispatched_in_a_hook(system: ProjectionSystem, totals: Runtime) -> None:
    """A saga in one line: the second event follows the commit of the first."""
    followed: list[Receipt] = []

    def follow(key: str, state: Total) -> None:
        if state.total < 3:
            followed.append(system.bus.dispatch(Added(key)))

    totals.on_applied(follow)
    system.bus.dispatch(Added("a")).result(DEADLINE)
    assert system.settle(DEADLINE)
    assert totals.read_required("a").total == 3
    assert [receipt.result(0)[0].version for receipt in followed] == [2, 3]


def test_waiting_for_a_receipt_in_apply_is_an_error_and_no_deadlock(
    system: ProjectionSystem, totals: Runtime
) -> None:
    """It would wait for the very thread that it stands on."""

    def wait(_state: Total) -> None:
        system.bus.dispatch(Added("b")).result(DEADLINE)

    error = system.bus.dispatch(Added("a", 1, wait)).exception(DEADLINE)
    assert error is not None
    assert isinstance(error.__cause__, WouldDeadlock)


def test_rebuilding_in_a_hook_is_an_error_and_no_deadlock(system: ProjectionSystem, totals: Runtime) -> None:
    """The same for a call that waits for an actor."""
    caught: list[Exception] = []

    def wipe(key: str, _state: Total) -> None:
        try:
            totals.wipe(key)
        except WouldDeadlock as error:
            caught.append(error)

    totals.on_applied(wipe)
    system.bus.dispatch(Added("a")).result(DEADLINE)
    assert len(caught) == 1


def test_a_full_mailbox_refuses_a_dispatcher_thread_at_once(
    make_system: Callable[..., ProjectionSystem],
) -> None:
    """Promise 9: a pool thread never waits for room, however long dispatch_timeout is."""
    system = make_system(mailbox_limit=1, dispatch_timeout=1e6)
    system.register(Totals())

    def flood(_state: Total) -> None:
        for _ in range(3):
            system.bus.dispatch(Added("a"))

    error = system.bus.dispatch(Added("a", 1, flood)).exception(DEADLINE)
    assert error is not None
    assert isinstance(error.__cause__, MailboxFull)
