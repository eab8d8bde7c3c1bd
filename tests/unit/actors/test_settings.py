"""The settings of a system: their bounds, the tuning mapping, and the old places of its keys."""

from __future__ import annotations

import dataclasses
import math
import warnings
from enum import Enum, IntEnum
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from keyfold.actors import ProjectionError, ProjectionSystem
from keyfold.actors.settings import InvalidSetting, Settings, SystemTuning, field_names, merge_tuning
from keyfold.web.settings import WebSettings

COUNTS = [1, 2, 10**12]
SECONDS = [0, 0.0, 0.25, 7, 1e9]
WRONG_COUNTS = [0, -1, 1.5, 5.0, math.nan, True, "5", None, [1]]
WRONG_SECONDS = [-1, -0.001, math.nan, math.inf, -math.inf, 10**400, True, "5", None, [1.0]]
ALL = [
    (owner, field.name, field.default)
    for owner in (Settings, WebSettings)
    for field in dataclasses.fields(owner)
]
NUMBERS = [(owner, name, default) for owner, name, default in ALL if type(default) in (int, float)]


class Size(IntEnum):
    SMALL = 3


class Measured(float):
    """As NumPy's float64 is."""


@pytest.mark.parametrize(("owner", "name", "default"), NUMBERS)
def test_every_number_has_a_bound(owner: type[Any], name: str, default: float) -> None:
    """A count is at least 1, a number of seconds at least 0 and finite; another value is named."""
    is_count = type(default) is int
    for value in [default, *(COUNTS if is_count else SECONDS)]:
        assert getattr(owner(**{name: value}), name) == value
    for value in WRONG_COUNTS if is_count else WRONG_SECONDS:
        with pytest.raises(ProjectionError) as caught:
            owner(**{name: value})
        assert f"the setting {name} must be a " in str(caught.value)
        assert repr(value) in str(caught.value)


@pytest.mark.parametrize(("owner", "name", "default"), ALL)
@given(
    value=st.none()
    | st.booleans()
    | st.integers()
    | st.floats()
    | st.text()
    | st.binary()
    | st.lists(st.text())
)
def test_any_value_is_taken_as_it_is_or_refused_by_name(
    owner: type[Any], name: str, default: object, value: Any
) -> None:
    """No value ends in another error, and none becomes another value."""
    try:
        taken = getattr(owner(**{name: value}), name)
    except InvalidSetting as error:
        refused = error
    else:
        assert (
            list(taken) == value
            if isinstance(value, list)
            else taken == (float(value) if isinstance(taken, float) else value)
        )
        return
    assert refused.setting == name
    assert str(refused) == f"projection: the setting {name} {refused.problem}"


def test_numbers_of_other_libraries_are_taken() -> None:
    """They are numbers, if not of the built-in types."""
    settings = Settings(idle_seconds=Measured(2.5), mailbox_limit=Size.SMALL)
    assert (settings.idle_seconds, settings.mailbox_limit) == (2.5, 3)
    assert type(settings.idle_seconds) is float


def test_a_member_of_an_enum_of_texts_is_its_text() -> None:
    """Not its name, which anybody could guess of a token."""

    class Secret(str, Enum):  # noqa: UP042
        TOKEN = "correct-horse"

    found = WebSettings(admin_token=Secret.TOKEN).admin_token
    assert (type(found), found) == (str, "correct-horse")


@pytest.mark.parametrize("value", [0, 1, "True", None])
def test_a_switch_is_true_or_false(value: object) -> None:
    with pytest.raises(ProjectionError, match="auto_migrate must be True or False"):
        Settings(auto_migrate=value)  # type: ignore[arg-type]


def test_settings_are_frozen_values() -> None:
    """Two of the same fields are equal; a field can't be set later."""
    settings = Settings(mailbox_limit=5, turn_seconds=0.5)
    again = Settings(**dataclasses.asdict(settings))
    assert again == settings
    assert again != Settings()
    with pytest.raises(dataclasses.FrozenInstanceError):
        settings.mailbox_limit = 6  # type: ignore[misc]


def test_about_twenty_settings_are_stable() -> None:
    """The others may change, as tuning keys."""
    stable = field_names(Settings) - field_names(SystemTuning)
    assert {"idle_seconds", "max_live_actors", "mailbox_limit", "dispatch_timeout"} <= stable
    assert len(stable) == 10


# -- tuning


def test_tuning_keys_stand_in_a_mapping_of_their_own() -> None:
    with ProjectionSystem("sqlite://", mailbox_limit=7, tuning={"turn_seconds": 0.5}) as system:
        assert (system.settings.mailbox_limit, system.settings.turn_seconds) == (7, 0.5)


def test_the_old_keyword_of_a_tuning_key_works_for_one_release() -> None:
    """With a warning that users see, at the line that gives it, and that names the new place."""
    with pytest.warns(FutureWarning) as caught:
        system = ProjectionSystem("sqlite://", turn_seconds=0.5)
    system.close()
    assert system.settings.turn_seconds == 0.5
    [warning] = caught
    assert "the setting turn_seconds has moved: give tuning = {'turn_seconds': 0.5} instead" in str(
        warning.message
    )
    assert warning.filename == __file__


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (
            {"tuning": {"turn_second": 1}},
            "tuning has the unknown key 'turn_second'; did you mean 'turn_seconds'",
        ),
        ({"tuning": {"KEYFOLD_TURN_SECONDS": 1}}, "did you mean 'turn_seconds'"),
        ({"tuning": {"colour": 1}}, "the tuning keys are dispatcher_threads, health_seconds, "),
        ({"tuning": {5: 1}}, "tuning has the unknown key 5; the tuning keys are"),
        ({"tuning": {"mailbox_limit": 1}}, "a setting of its own: give the setting mailbox_limit instead"),
        ({"tuning": [("turn_seconds", 1)]}, r"the setting tuning must be a dict of tuning keys, not \[\("),
        ({"tuning": {"turn_seconds": 1}, "turn_seconds": 1}, "the setting turn_seconds is given twice"),
        (
            {"tuning": {"turn_seconds": -1}},
            "the setting turn_seconds must be a number of seconds of at least 0",
        ),
    ],
)
def test_a_wrong_tuning_is_an_error_that_names_the_key(settings: dict[str, Any], message: str) -> None:
    with pytest.raises(ProjectionError, match=message):
        ProjectionSystem("sqlite://", **settings)


def test_an_unknown_keyword_is_a_type_error() -> None:
    """As of any function."""
    with pytest.raises(TypeError, match="mailbox_limits"):
        ProjectionSystem("sqlite://", mailbox_limits=5)


@given(
    given_settings=st.dictionaries(st.sampled_from("ab"), st.integers()),
    tuning=st.dictionaries(st.sampled_from("xy"), st.integers()),
)
def test_merged_settings_lose_nothing(given_settings: dict[str, int], tuning: dict[str, int]) -> None:
    """Whatever is given in its place comes out under its name, without a warning."""
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        merged = merge_tuning(given_settings, tuning, stable=frozenset("ab"), tunable=frozenset("xy"))
    assert merged == {**given_settings, **tuning}
