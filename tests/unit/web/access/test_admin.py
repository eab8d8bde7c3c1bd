"""How long an operator's browser is let in."""

from __future__ import annotations

from keyfold.web.access.admin import LOGIN_SECONDS, PASS_SECONDS, Passes


class Clock:
    """Shows what a test sets."""

    now = 1_000_000.0

    def __call__(self) -> float:
        return self.now


def test_a_pass_that_nobody_renews_ends_after_an_hour() -> None:
    """A copy of a cookie is soon worth nothing, also after its operator has signed out."""
    clock = Clock()
    passes = Passes("token", clock)
    given = passes.issue()
    clock.now += PASS_SECONDS
    assert passes.is_good(given)
    clock.now += 1
    assert not passes.is_good(given)
    assert passes.renew(given) is None


def test_a_page_that_is_used_keeps_its_operator_signed_in_for_half_a_day() -> None:
    """Not longer: then the token has to be shown again."""
    clock = Clock()
    passes = Passes("token", clock)
    begun, given = clock.now, passes.issue()
    while clock.now - begun <= LOGIN_SECONDS:
        assert passes.is_good(given)
        given = passes.renew(given) or given
        clock.now += 600
    assert passes.renew(given) is None
    assert not passes.is_good(given)
    assert not passes.is_good(given, renewed=True)


def test_a_connection_goes_on_with_the_pass_that_it_came_with() -> None:
    """It has no way to show a newer one; its login ends it."""
    clock = Clock()
    passes = Passes("token", clock)
    given = passes.issue()
    clock.now += LOGIN_SECONDS - 1
    assert passes.is_good(given, renewed=True)
    assert not passes.is_good(given)


def test_a_young_pass_is_not_renewed() -> None:
    """A page that asks every two seconds gets no cookie each time."""
    passes = Passes("token", Clock())
    assert passes.renew(passes.issue()) is None


def test_other_words_are_no_passes() -> None:
    """One that another token has signed, one of another shape, none at all; without a token nothing is one."""
    passes, others = Passes("token"), Passes("another")
    shapeless = passes._serializer.dumps("operator")  # type: ignore[union-attr]
    for given in (others.issue(), str(shapeless), "x", "", None):
        assert not passes.is_good(given)
        assert not Passes(None).is_good(given)
