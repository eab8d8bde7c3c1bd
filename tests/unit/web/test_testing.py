"""The pytest plugin, used as an app's own tests would use it."""

from __future__ import annotations

from pathlib import Path

import pytest

pytest_plugins = ["pytester"]

CONFTEST = 'pytest_plugins = ["keyfold.web.testing"]\n'
APP = """
import threading
import pytest
from flask import Flask
from keyfold.actors.system import all_systems
from keyfold.web import Keyfold
from keyfold.web.testing import settle
from support.counting import Added, Totals, park_in
from support.parking import Parking

made = []

@pytest.fixture
def app(keyfold_config):
    keyfold = Keyfold()
    keyfold.register(Totals())
    app = Flask("shop")
    app.config.update(keyfold_config)
    keyfold.init_app(app)
    made.append(app.extensions["keyfold"].system)
    return app

@pytest.mark.parametrize("turn", [1, 2])
def test_each_has_a_database_of_its_own(app, turn):
    system = app.extensions["keyfold"].system
    for _ in range(100):
        system.bus.dispatch(Added("a"))
    settle(app)
    assert system.runtime("test.totals").read("a").total == 100

def test_they_were_closed():
    assert len(made) == 2 and all(system.closed for system in made)

def test_settle_says_what_is_under_way(app):
    parking = Parking()
    app.extensions["keyfold"].system.bus.dispatch(Added("a", then=park_in(parking)))
    with pytest.raises(AssertionError, match="1 events are not committed after 0.01 s"):
        settle(app, 0.01)
    parking.release()
    settle(app)
"""


def test_the_plugin(pytester: pytest.Pytester) -> None:
    """A database in memory for each test, closed after it; settle waits, or says for what."""
    helpers = str(Path(__file__).parents[2] / "helpers")
    pytester.makeconftest(CONFTEST)
    pytester.makepyfile(test_shop=APP)
    pytester.makeini(f"[pytest]\npythonpath = {helpers}\n")
    result = pytester.runpytest_subprocess("-q", "-p", "no:cacheprovider")
    result.assert_outcomes(passed=4)
