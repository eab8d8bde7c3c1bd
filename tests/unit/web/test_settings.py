"""The settings of the web part, and how a Flask config gives them."""

from __future__ import annotations

import dataclasses
import json
from typing import Any

import pytest
from flask import Flask
from keyfold.actors import ProjectionError, ProjectionSystem
from keyfold.actors.settings import CheckedSettings, Settings, SystemTuning, field_names
from keyfold.web import ConfigError, Keyfold, create_app
from keyfold.web.live.settings import LiveSettings, LiveTuning
from keyfold.web.settings import WebSettings, read_config

DATABASE = {"KEYFOLD_DATABASE": "sqlite://"}
SECRET = "correct-horse"
TUNABLE = field_names(SystemTuning) | field_names(LiveTuning)


def as_config(settings: CheckedSettings) -> dict[str, Any]:
    """Return the config that gives these settings."""
    values = {name: getattr(settings, name) for name in field_names(type(settings))}
    config: dict[str, Any] = {f"KEYFOLD_{name.upper()}": values[name] for name in values.keys() - TUNABLE}
    return {**config, "KEYFOLD_TUNING": {name: values[name] for name in values.keys() & TUNABLE}}


def test_a_config_gives_every_setting() -> None:
    """Each field that differs from its default arrives; keys of others are no concern of Keyfold's."""
    defaults = dataclasses.asdict(WebSettings())
    numbers: dict[str, Any] = {
        name: 2 * value for name, value in defaults.items() if type(value) in (int, float)
    }
    web = WebSettings(
        **numbers, url_prefix="/live", allowed_origins=("https://a.example",), admin_token=SECRET,
    )  # fmt: skip
    database, keywords, found = read_config({**DATABASE, **as_config(web), "OTHER": 1})
    assert (database, found) == ("sqlite://", web)
    assert keywords == {"tuning": {}}
    system = Settings(mailbox_limit=5, auto_migrate=False, turn_seconds=0.5)
    _, keywords, found = read_config({**DATABASE, **as_config(system)})
    assert found == WebSettings()
    with ProjectionSystem("sqlite://", **keywords) as made:
        assert made.settings == system


def test_one_mapping_has_the_tuning_keys_of_both_parts() -> None:
    app = Flask("test")
    app.config.update(DATABASE, KEYFOLD_TUNING={"ring_frames": 9, "turn_seconds": 0.5})
    Keyfold().init_app(app)
    state = app.extensions["keyfold"]
    assert (state.settings.ring_frames, state.system.settings.turn_seconds) == (9, 0.5)
    state.system.close()


def test_the_environment_may_give_single_tuning_keys(monkeypatch: pytest.MonkeyPatch) -> None:
    """As Flask reads nested keys: two underscores lead into the mapping."""
    monkeypatch.setenv("FLASK_KEYFOLD_DATABASE", "sqlite://")
    monkeypatch.setenv("FLASK_KEYFOLD_TUNING__ring_frames", "9")
    monkeypatch.setenv("FLASK_KEYFOLD_ALLOWED_ORIGINS", json.dumps(["https://a.example"]))
    app = Flask("test")
    app.config.from_prefixed_env()
    _, _, settings = read_config(app.config)
    assert (settings.ring_frames, settings.allowed_origins) == (9, ("https://a.example",))


@pytest.mark.parametrize("key", sorted(TUNABLE))
def test_the_old_config_key_works_for_one_release(key: str) -> None:
    """With a warning that names the old key, and the new place."""
    value = getattr(WebSettings() if hasattr(WebSettings, key) else Settings(), key)
    app = Flask("test")
    app.config.update({**DATABASE, f"KEYFOLD_{key.upper()}": value})
    with pytest.warns(FutureWarning) as caught:
        Keyfold().init_app(app)
    app.extensions["keyfold"].system.close()
    [warning] = caught
    text = f"the config key KEYFOLD_{key.upper()} has moved: give KEYFOLD_TUNING = {{{key!r}: {value!r}}}"
    assert str(warning.message).startswith(text)
    assert warning.filename == __file__


def test_create_app_takes_tuning_too() -> None:
    """And the old keyword with a warning."""
    with ProjectionSystem("sqlite://") as system:
        app = create_app(system, url_prefix="/live", tuning={"ring_frames": 9})
        settings = app.extensions["keyfold"].settings
        assert (settings.url_prefix, settings.ring_frames) == ("/live", 9)
    with ProjectionSystem("sqlite://") as system:
        with pytest.warns(FutureWarning, match=r"tuning = \{'ring_frames': 9\}") as caught:
            app = create_app(system, ring_frames=9)
        assert app.extensions["keyfold"].settings.ring_frames == 9
        assert caught[0].filename == __file__


@pytest.mark.parametrize(
    ("config", "message"),
    [
        (
            {"KEYFOLD_TUNING": {"ring_frame": 9}},
            "KEYFOLD_TUNING has the unknown key 'ring_frame'; did you mean",
        ),
        ({"KEYFOLD_TUNING": {"RING_FRAMES": 9}}, "did you mean 'ring_frames'"),
        ({"KEYFOLD_TUNING": {"admin_token": "a"}}, "give the config key KEYFOLD_ADMIN_TOKEN instead"),
        ({"KEYFOLD_TUNING": {"database": "a"}}, "give the config key KEYFOLD_DATABASE instead"),
        ({"KEYFOLD_TUNING": "ring_frames=9"}, "the config key KEYFOLD_TUNING must be a dict of tuning keys"),
        (
            {"KEYFOLD_TUNING": {"ring_frames": 9}, "KEYFOLD_RING_FRAMES": 9},
            "the config key KEYFOLD_RING_FRAMES is given twice: keep 'ring_frames' in KEYFOLD_TUNING",
        ),
        (
            {"KEYFOLD_TUNING": {"ring_frames": 0}},
            r"the config key KEYFOLD_TUNING\['ring_frames'\] must be a whole number of at least 1, not 0",
        ),
        (
            {"KEYFOLD_TUNING": {"turn_seconds": "1"}},
            r"KEYFOLD_TUNING\['turn_seconds'\] must be a number, not '1'",
        ),
        ({"KEYFOLD_RING_FRAME": 9}, r"did you mean KEYFOLD_TUNING\['ring_frames'\]"),
        ({"KEYFOLD_TUNINGS": {}}, "did you mean KEYFOLD_TUNING"),
        ({"KEYFOLD_URL_PREFIX": "/"}, "KEYFOLD_URL_PREFIX must be a path such as '/live'"),
        ({"KEYFOLD_URL_PREFIX": "/live/"}, "KEYFOLD_URL_PREFIX must be a path"),
        ({"KEYFOLD_URL_PREFIX": None}, "KEYFOLD_URL_PREFIX must be a path"),
        ({"KEYFOLD_ALLOWED_ORIGINS": [5]}, "KEYFOLD_ALLOWED_ORIGINS must be a list of origins"),
        ({"KEYFOLD_ALLOWED_ORIGINS": ["null"]}, r"KEYFOLD_ALLOWED_ORIGINS must be .*, not \['null'\]"),
        ({"KEYFOLD_REDIS": ""}, "KEYFOLD_REDIS must be a string that is not empty"),
        ({"KEYFOLD_REDIS_PREFIX": None}, "KEYFOLD_REDIS_PREFIX must be a string, not None"),
    ],
)
def test_a_wrong_config_names_the_key(config: dict[str, Any], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        read_config({**DATABASE, **config})


@pytest.mark.parametrize("prefix", ["", "/live", "/a/b"])
def test_a_prefix_is_a_path_or_empty(prefix: str) -> None:
    assert WebSettings(url_prefix=prefix).url_prefix == prefix


def test_an_empty_tuning_is_as_none() -> None:
    """So that a config file may have the key."""
    nothing: list[dict[str, int] | None] = [None, {}]
    for tuning in nothing:
        assert read_config({**DATABASE, "KEYFOLD_TUNING": tuning})[2] == WebSettings()


@pytest.mark.parametrize("name", ["admin_token", "metrics_token", "redis"])
def test_secrets_are_not_shown(name: str) -> None:
    """Not in the repr, which a log or a debugger may show; nor in the error for one of the wrong type."""
    settings = WebSettings(**{name: f"redis://:{SECRET}@localhost"})  # type: ignore[arg-type]
    assert SECRET not in repr(settings)
    with pytest.raises(ProjectionError) as caught:
        WebSettings(**{name: SECRET.encode()})  # type: ignore[arg-type]
    assert str(caught.value).endswith("must be a string that is not empty, not a value of type bytes")


def test_no_setting_has_two_owners() -> None:
    """A config key would be ambiguous."""
    assert not field_names(Settings) & field_names(WebSettings)
    assert field_names(LiveTuning) < field_names(LiveSettings) < field_names(WebSettings)
