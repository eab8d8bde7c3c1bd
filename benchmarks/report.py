"""Run all benchmarks: ``make bench``. Writes docs/benchmarks.md, its plots, and the table in the README.

No figure there is typed: the page has what the programs printed, the table and the plots what they kept.
"""

from __future__ import annotations

import argparse
import ast
import os
import re
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

from harness import KEPT
from headline import write_headline
from plots import PLOTS, draw

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
ALL = (
    "durable", "write_path", "contention", "dispatch", "verify", "growth", "live_actors", "fan_out", "held_sockets", "latency", "frozen_client",
    "backplane", "convergence",
)  # fmt: skip
BY_ITSELF = ("autobahn",)
"""Needs what not every machine has: run by its own name alone, and its part of the page is replaced alone."""
HEAD = """# Benchmarks

Written by `make bench` on {day}: what each command printed, both sides from the same run. Machines differ, and this
one had {cores} slow cores and noisy neighbours: look at the ratios, and run them on yours.
"""


def main() -> None:
    """Run each in a process of its own, keep what it printed, and write the page once all are there."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="run these alone; the others are as they were printed last")
    parser.add_argument("--page", action="store_true", help="run nothing: write what was printed last")
    options = parser.parse_args()
    KEPT.mkdir(parents=True, exist_ok=True)
    for name in () if options.page else options.only or ALL:
        result = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True, check=True
        )
        print(result.stdout, flush=True)
        (KEPT / f"{name}.txt").write_text(result.stdout)
    for name in BY_ITSELF:
        if name in options.only:
            PAGE.write_text(with_part(PAGE.read_text(), name, part_of(name)))
    if options.only and set(options.only) <= set(BY_ITSELF):
        return
    missing = [name for name in ALL if not (KEPT / f"{name}.txt").exists()]
    if missing:
        print(f"no page is written before these have run: {', '.join(missing)}")
        return
    day = datetime.now(UTC).date().isoformat()
    parts = [HEAD.format(day=day, cores=os.cpu_count())]
    for name in ALL:
        parts.append(part_of(name))
        parts += [
            f"![{title}](images/{file}.svg)\n"
            for file, (program, title, _) in PLOTS.items()
            if program == name
        ]
    before = PAGE.read_text()
    parts += [part for name in BY_ITSELF if (part := find_part(before, name))]
    PAGE.write_text("\n".join(parts))
    draw(PAGE.parent / "images")
    write_headline(HERE.parent / "README.md")


def part_of(name: str) -> str:
    """Return what the page says of one program: its docstring, and what it printed last."""
    about = ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""
    return f"## {name}\n\n{about}\n\n```text\n{(KEPT / f'{name}.txt').read_text().rstrip()}\n```\n"


def find_part(page: str, name: str) -> str:
    """Return what a page says of one program, or nothing."""
    found = re.search(rf"^## {name}$.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def with_part(page: str, name: str, part: str) -> str:
    """Return the page with this part in the place of the old one, or at the end."""
    old = find_part(page, name)
    return page.replace(old, part) if old else f"{page.rstrip()}\n\n{part}"


if __name__ == "__main__":
    main()
