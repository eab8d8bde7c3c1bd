"""The settings of a ProjectionSystem: their types, defaults and bounds, and the check of all settings."""

from __future__ import annotations

import difflib
import functools
import sys
import warnings
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, fields
from typing import Annotated, Any, NoReturn, get_args, get_type_hints

import msgspec
from msgspec import Meta

from ..store import ProjectionError

# A description ends the sentence "the setting x must be …". A title does so for a value that is no number.
Count = Annotated[int, Meta(ge=1, title="a number", description="a whole number of at least 1")]
Seconds = Annotated[
    float,
    Meta(ge=0, le=sys.float_info.max, title="a number", description="a number of seconds of at least 0"),
]
Switch = Annotated[bool, Meta(description="True or False")]
Text = Annotated[str, Meta(description="a string")]
NonEmptyText = Annotated[str, Meta(min_length=1, description="a string that is not empty")]


class InvalidSetting(ProjectionError):
    """A setting has a value that is not allowed.

    ``setting`` is the name of the setting, ``problem`` the message without that name.
    """

    def __init__(self, setting: str, problem: str) -> None:
        super().__init__(f"the setting {setting} {problem}")
        self.setting = setting
        self.problem = problem


class CheckedSettings:
    """Base of the dataclasses of settings: msgspec converts each value to the type of its field."""

    __slots__ = ()

    def __post_init__(self) -> None:
        for field in fields(self):  # type: ignore[arg-type]  # every subclass is a dataclass
            value = _converted(type(self), field.name, getattr(self, field.name), is_secret=not field.repr)
            object.__setattr__(self, field.name, value)


@dataclass(frozen=True, slots=True, kw_only=True)
class SystemTuning(CheckedSettings):
    """The tuning keys of a ProjectionSystem. Their names may change from one release to the next."""

    dispatcher_threads: Count = 2
    """Threads that fold events. More than four only add contention for the interpreter lock."""
    turn_seconds: Seconds = 0.01
    """Seconds after which the turn of an actor ends early."""
    read_timeout: Seconds = 10.0
    """Seconds that a read waits for the database before it raises StoreUnavailable."""
    report_seconds: Seconds = 5.0
    """Seconds between the reports that a process writes to the database for the others. 0 disables them."""
    health_seconds: Seconds = 10.0
    """Seconds that one step of a thread, or the wait of an event, may take before health checks fail."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings(SystemTuning):
    """The settings of a ProjectionSystem.

    In Flask each is the config key ``KEYFOLD_`` + its name in capitals; the tuning keys are keys of
    ``KEYFOLD_TUNING``. The page *Configuration* lists all of them.

    Raises:
        ProjectionError: A value has the wrong type or is out of range; the message names the setting.
    """

    idle_seconds: Seconds = 60.0
    """Seconds without a turn after which an actor is retired."""
    max_live_actors: Count = 100_000
    """Above this number the least recently used actors are retired; an eighth above it dispatch waits."""
    mailbox_limit: Count = 10_000
    """Events of one key that may wait to be folded. At the limit dispatch waits."""
    in_flight_limit: Count = 100_000
    """Events of all keys that are accepted but not yet committed. At the limit dispatch waits."""
    dispatch_timeout: Seconds = 1.0
    """Seconds that dispatch waits for room before it raises MailboxFull."""
    event_bytes: Count = 1_048_576
    """Bytes of JSON that one event may have. Dispatch refuses a larger event with InvalidEvent."""
    turn_limit: Count = 4_096
    """Events that an actor folds in one turn, before it saves and another actor gets the thread."""
    commit_limit: Count = 512
    """Rows that are written in one transaction."""
    close_timeout: Seconds = 10.0
    """Seconds that close() and the end of the process wait for the remaining commits."""
    auto_migrate: Switch = True
    """Create or update the tables at the first use. False: the app runs the migrations itself."""


def field_names(settings: type[CheckedSettings]) -> frozenset[str]:
    """Return the names of the settings in a class, those that it inherits included."""
    return frozenset(field.name for field in fields(settings))  # type: ignore[arg-type]  # as above


def make_settings(given: Mapping[str, Any], tuning: object, *, stacklevel: int) -> Settings:
    """Return the Settings of keywords and a tuning mapping, as ``ProjectionSystem`` takes them."""
    tunable = field_names(SystemTuning)
    stable = field_names(Settings) - tunable
    merged = merge_tuning(given, tuning, stable=stable, tunable=tunable, stacklevel=stacklevel + 1)
    return Settings(**merged)


def merge_tuning(
    given: Mapping[str, Any],
    tuning: object,
    *,
    stable: frozenset[str],
    tunable: frozenset[str],
    prefix: str = "",
    stacklevel: int = 2,
) -> dict[str, Any]:
    """Return the settings and the tuning keys in one dict, by name.

    A tuning key that is given as a setting, as in releases before ``tuning``, is taken with a FutureWarning.

    Args:
        given: The settings, by name.
        tuning: The mapping that the user gave for the tuning keys, or None. It is checked here.
        stable: The names of the settings that may not be in the mapping.
        tunable: The names of the tuning keys.
        prefix: The start of the config keys by which the user gives the settings. Empty: they are keywords.
        stacklevel: The frame to which the warning points: 1 is the caller of this function.

    Raises:
        ProjectionError: The tuning is no mapping, has an unknown key, or repeats a setting.
    """
    mapping = f"{prefix}TUNING" if prefix else "tuning"
    if tuning is None:
        tuning = {}
    if not isinstance(tuning, Mapping):
        _fail(f"{spelled('tuning', prefix)} must be a dict of tuning keys, not {tuning!r}")
    for key in tuning:
        if key in stable:
            _fail(f"{mapping} has the key {key!r}, a setting of its own: give {spelled(key, prefix)} instead")
        if key not in tunable:
            _fail(f"{mapping} has the unknown key {key!r}; {_hint(key, tunable)}")
        if key in given:
            _fail(f"{spelled(key, prefix)} is given twice: keep {key!r} in {mapping}, remove the other one")
    for name in given:
        if name in tunable:
            text = (
                f"{spelled(name, prefix)} has moved: give {mapping} = {{{name!r}: {given[name]!r}}} instead. "
                "The next release of Keyfold ends with an error here."
            )
            warnings.warn(text, FutureWarning, stacklevel=stacklevel + 1)
    return {**given, **tuning}


def spelled(name: str, prefix: str = "") -> str:
    """Return the words by which a message names a setting: a config key with this prefix, or a keyword."""
    return f"the config key {prefix}{name.upper()}" if prefix else f"the setting {name}"


def _hint(key: object, known: Iterable[str]) -> str:
    near = difflib.get_close_matches(str(key).lower().removeprefix("keyfold_"), known)
    if near:
        return f"did you mean {' or '.join(map(repr, near))}?"
    return f"the tuning keys are {', '.join(sorted(known))}"


_type_hints = functools.cache(functools.partial(get_type_hints, include_extras=True))


def _converted(owner: type, name: str, value: object, *, is_secret: bool) -> Any:
    expected_type = _type_hints(owner)[name]
    if isinstance(value, float):  # a NumPy float is one, but msgspec takes no subclass
        value = float(value)
    elif isinstance(value, str):
        value = str.__str__(value)  # str() of an Enum's member would be the member's name
    try:
        return msgspec.convert(value, expected_type)
    except msgspec.ValidationError:
        meta = _meta(expected_type)
        is_number = isinstance(value, (int, float)) and not isinstance(value, bool)
        expected = meta.description if is_number or meta.title is None else meta.title
        shown = f"a value of type {type(value).__name__}" if is_secret else repr(value)
        raise InvalidSetting(name, f"must be {expected}, not {shown}") from None


def _meta(annotated: Any) -> Meta:
    """Return the description of a type; of a union like ``NonEmptyText | None``, that of its member."""
    for part in (annotated, *get_args(annotated)):
        for meta in getattr(part, "__metadata__", ()):
            if isinstance(meta, Meta):
                return meta
    msg = f"{annotated} has no msgspec.Meta"
    raise TypeError(msg)


def _fail(message: str) -> NoReturn:
    raise ProjectionError(message)
