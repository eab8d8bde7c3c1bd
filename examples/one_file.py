"""A whole app in one file: a counter that every open page shows live.

Run it with ``python examples/one_file.py``, then open the URL in two windows; or with
``gunicorn --chdir examples one_file:app``.
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
    """The button was pressed."""


@dataclass
class Counter:
    """The number of presses."""

    presses: int = 0


class PressCounter(Projection[Pressed, Counter]):
    """One key, the same for all pages."""

    name = "demo.counter"
    public = True

    def key(self, event: Pressed) -> str:  # noqa: ARG002
        return "all"

    def apply(self, state: Counter, event: Pressed) -> dict[str, int]:  # noqa: ARG002
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
    """Dispatch a press, and answer once it is committed."""
    [applied] = keyfold.bus.dispatch(Pressed()).result(timeout=5)
    return {"version": applied.version}


if __name__ == "__main__":
    app.run(port=int(os.environ.get("PORT", "8000")), threaded=True)
