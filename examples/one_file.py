"""A whole app in one file: a counter that every open page shows, live.

Run it: ``python examples/one_file.py``, then open the URL in two windows. Or ``gunicorn --chdir examples one_file:app``.
"""

from __future__ import annotations

import os
from dataclasses import dataclass
from pathlib import Path

from flask import Flask
from keyfold import Keyfold, Projection

PAGE = """<!doctype html>
<title>Counter</title>
<h1 id="count">…</h1>
<button onclick="fetch('/press', { method: 'POST' })">Press</button>
<script type="module">
  import { watch } from "/keyfold/keyfold.js";
  const show = (total) => (document.getElementById("count").textContent = total);
  watch("demo.counter", "all", {
    onState: (state) => show(state?.presses ?? 0),
    onDelta: ({ presses }) => show(presses),
  });
</script>
"""


@dataclass
class Pressed:
    """Somebody pressed the button."""


@dataclass
class Counter:
    """How often that happened."""

    presses: int = 0


class PressCounter(Projection[Pressed, Counter]):
    """One key for everybody."""

    name = "demo.counter"
    public = True

    def key(self, event: Pressed) -> str:  # noqa: ARG002
        """Always the same."""
        return "all"

    def apply(self, state: Counter, event: Pressed) -> dict[str, int]:  # noqa: ARG002
        """Count."""
        state.presses += 1
        return {"presses": state.presses}


keyfold = Keyfold()
keyfold.register(PressCounter())
app = Flask(__name__)
app.config["KEYFOLD_DATABASE"] = os.environ.get(
    "KEYFOLD_DATABASE", f"sqlite:///{Path(__file__).parent / 'one_file.db'}"
)
keyfold.init_app(app)


@app.get("/")
def page() -> str:
    """Serve the page."""
    return PAGE


@app.post("/press")
def press() -> dict[str, int]:
    """Count, and answer once that is committed."""
    [applied] = keyfold.bus.dispatch(Pressed()).result(timeout=5)
    return {"version": applied.version}


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")), threaded=True)
