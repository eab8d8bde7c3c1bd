"""The record that each process of a round keeps of its own acts: one JSON object per line."""

from __future__ import annotations

import json
import os
import re
import threading
from pathlib import Path
from time import monotonic
from typing import Any

Line = dict[str, Any]


class Journal:
    """Appends lines, each with one write(), so that all lines from before a SIGKILL are in the file."""

    def __init__(self, path: Path) -> None:
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o600)
        self._lock = threading.Lock()

    def note(self, what: str, **facts: Any) -> None:
        """Append a line. Several threads may do so at once."""
        # Linux has one monotonic clock for all processes.
        data = json.dumps({"what": what, "at": round(monotonic(), 4), **facts}).encode() + b"\n"
        with self._lock:
            os.write(self._file, data)


def read_journals(folder: Path) -> list[Line]:
    """Return the lines of all journals in a folder, each with its file and number, in order per file."""
    lines = []
    for path in sorted(folder.glob("*.journal")):
        for number, text in enumerate(path.read_text().split("\n")[:-1], 1):
            lines.append(json.loads(text) | {"in": f"{path.stem}:{number}"})
    return lines


def id_of(event: str) -> str:
    """Return the name of the event in a letter: of its JSON, or of its repr where it has no JSON."""
    found = re.search(r"""\bid["']?[:=]["']([\w.]+)""", event)
    return "?" if found is None else found[1]
