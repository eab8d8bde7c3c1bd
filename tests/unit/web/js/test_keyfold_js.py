"""keyfold.js between a simulated page and a simulated server, by ``client_model.mjs``."""

from __future__ import annotations

import os
import re
import subprocess
from pathlib import Path

import keyfold.web
import pytest
from support.parking import DEADLINE

MODEL = Path(__file__).with_name("client_model.mjs")
MODULES = Path(__file__).parents[4] / ".venv" / "node" / "node_modules"
CLIENT = (Path(keyfold.web.__file__ or "").resolve().parent / "js" / "keyfold.js").as_uri()
SCENARIOS = re.findall(r'^  async "(.+)"\(', MODEL.read_text(), re.MULTILINE)
RUNS = 1000


def play(*arguments: str) -> None:
    """Run the model. Its output names the step, or the seed, of a failure."""
    command = ["node", "--no-warnings", str(MODEL), CLIENT, *arguments]
    environment = {**os.environ, "NODE_MODULES": f"{MODULES}/"}
    played = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=6 * DEADLINE, check=False
    )
    assert played.returncode == 0, played.stderr


@pytest.mark.parametrize("scenario", SCENARIOS)
def test_a_page_ends_live_or_told_why_not(scenario: str) -> None:
    """Each of these once went wrong. It ends in order, and nothing is left after the last close."""
    play(scenario)


def test_any_order_of_steps_ends_with_each_watch_equal_to_the_server_or_told_why_not() -> None:
    """A failure prints its seed and the shortest order; ``client_model.mjs`` plays the seed again."""
    play("--any", str(RUNS))
