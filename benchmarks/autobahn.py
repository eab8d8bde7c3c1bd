"""The Autobahn|Testsuite (fuzzingclient, 517 cases) against an echo server: ``make autobahn``.

The server uses the library's own handshake and frame handling. The suite needs Python 2.7. Groups 12 and 13
are about compression, which is not offered.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
from collections import Counter
from importlib.metadata import version
from itertools import groupby
from pathlib import Path

from flask import Flask
from harness import environment, record, slug
from keyfold.web import Keyfold, sockets
from support.raw_client import Echo
from support.serving import serve

SUITE = Path(__file__).parents[1] / ".venv" / "autobahn"
CASES = 517
COMPRESSION = ("12", "13")
FINE = ("OK", "INFORMATIONAL")
SECONDS = 1800


def main() -> None:
    """Run the suite, print the verdicts by group, and end with 1 if a case failed."""
    # The routes make their connections of this class: the HTTP side is the real one.
    sockets.WebSocketConnection = Echo  # type: ignore[misc]
    app = Flask("echo")
    max_unread = 2**30  # the suite sends megabytes before it reads
    app.config.update(
        KEYFOLD_DATABASE="sqlite://", KEYFOLD_TUNING={"outbox_bytes": max_unread, "outbox_frames": max_unread}
    )
    Keyfold().init_app(app)
    with tempfile.TemporaryDirectory(prefix="keyfold-autobahn-") as directory, serve(app) as site:
        try:
            report = run(Path(directory), f"ws://127.0.0.1:{site.port}/ws/projection")
        finally:
            app.extensions["keyfold"].system.close()
    failed = {
        case: verdict
        for case, verdict in report.items()
        if verdict not in FINE and (verdict != "UNIMPLEMENTED" or group_of(case) not in COMPRESSION)
    }
    print(environment("wsproto", "simple-websocket", "werkzeug"))
    print(f"autobahntestsuite 0.8.2, {len(report)} cases; keyfold {version('keyfold')}\n")
    for group, cases in groupby(report, group_of):
        counts = Counter(report[case] for case in cases)
        print(
            f"  {group:>3}   " + ", ".join(f"{count} {verdict}" for verdict, count in sorted(counts.items()))
        )
    total = Counter(report.values())
    print(
        "\n  all   "
        + ", ".join(
            f"{record(slug(verdict), count):.0f} {verdict}" for verdict, count in sorted(total.items())
        )
    )
    if failed or len(report) != CASES:
        sys.exit(f"{len(report)} of {CASES} cases ran, and these failed: {failed}")


def run(directory: Path, url: str) -> dict[str, str]:
    """Return the verdict of each case: the worse one of its behaviour and its close."""
    spec = {
        "outdir": str(directory / "reports"),
        "servers": [{"agent": "keyfold", "url": url}],
        "cases": ["*"],
        "exclude-cases": [],
        "exclude-agent-cases": {},
    }
    (directory / "spec.json").write_text(json.dumps(spec))
    # As a site directory, because a .pth file makes the namespace zope.
    start = (
        f"import site, sys; site.addsitedir({str(SUITE)!r}); "
        "from autobahntestsuite import wstest; sys.exit(wstest.run())"
    )
    command = [os.environ.get("PYTHON2", "python2.7"), "-c", start, "-m", "fuzzingclient", "-s", "spec.json"]
    without = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    subprocess.run(
        command, cwd=directory, env=without, timeout=SECONDS, check=True, stdout=subprocess.DEVNULL
    )
    found = json.loads((directory / "reports" / "index.json").read_text())["keyfold"]
    ordered = sorted(found, key=lambda case: [int(part) for part in case.split(".")])
    return {case: worse(found[case]["behavior"], found[case]["behaviorClose"]) for case in ordered}


def worse(behavior: str, close: str) -> str:
    return behavior if close in FINE else close


def group_of(case: str) -> str:
    return case.partition(".")[0]


if __name__ == "__main__":
    main()
