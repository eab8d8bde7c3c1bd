"""Run all benchmarks: ``make bench``. Writes docs/benchmarks.md, its plots, and the table in the README.

No figure there is typed. The page has the printed text of the programs; the table and the plots take the
figures that the programs have recorded, by their ids.
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

from harness import OUTPUT
from headline import write_headline
from plots import PLOTS, draw

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
ALL = (
    "durable",
    "write_path",
    "contention",
    "dispatch",
    "verify",
    "growth",
    "live_actors",
    "fan_out",
    "held_sockets",
    "latency",
    "frozen_client",
    "backplane",
    "convergence",
)
BY_ITSELF = ("autobahn",)
"""Programs with rare requirements: each runs only by its name, and replaces only its part of the page."""
HEAD = """# Benchmarks

Written by `make bench` on {day}: the output of each command, both sides from the same run. Machines
differ, and this one had {cores} slow cores and noisy neighbours: compare the ratios, and run the
benchmarks on your own machine.
"""


def main() -> None:
    """Run each program in a process of its own, save its output, and write the page once all have run."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="run only these; the others keep their last output")
    parser.add_argument(
        "--page", action="store_true", help="run nothing: write the page from the last output"
    )
    parser.add_argument(
        "--descriptions", action="store_true", help="run nothing: only update the descriptions on the page"
    )
    options = parser.parse_args()
    if options.descriptions:
        PAGE.write_text(with_descriptions(PAGE.read_text()))
        return
    OUTPUT.mkdir(parents=True, exist_ok=True)
    for name in () if options.page else options.only or ALL:
        result = subprocess.run(
            [sys.executable, str(HERE / f"{name}.py")], stdout=subprocess.PIPE, text=True, check=True
        )
        print(result.stdout, flush=True)
        (OUTPUT / f"{name}.txt").write_text(result.stdout)
    for name in BY_ITSELF:
        if name in options.only:
            PAGE.write_text(with_part(PAGE.read_text(), name, part_of(name)))
    if options.only and set(options.only) <= set(BY_ITSELF):
        return
    missing = [name for name in ALL if not (OUTPUT / f"{name}.txt").exists()]
    if missing:
        print(f"no page is written before these have run: {', '.join(missing)}")
        return
    day = datetime.now(UTC).date().isoformat()
    parts = [HEAD.format(day=day, cores=os.cpu_count())]
    for name in ALL:
        parts.append(part_of(name))
        parts += [
            f"![{plot.title}](images/{file}.svg)\n" for file, plot in PLOTS.items() if plot.program == name
        ]
    before = PAGE.read_text()
    parts += [part for name in BY_ITSELF if (part := find_part(before, name))]
    PAGE.write_text("\n".join(parts))
    draw(PAGE.parent / "images")
    write_headline(HERE.parent / "README.md")


def part_of(name: str) -> str:
    """Return the part of the page for one program: its docstring and its last output."""
    output = (OUTPUT / f"{name}.txt").read_text().rstrip()
    return f"## {name}\n\n{description_of(name)}\n\n```text\n{output}\n```\n"


def description_of(name: str) -> str:
    """Return the docstring of a program."""
    return ast.get_docstring(ast.parse((HERE / f"{name}.py").read_text())) or ""


def with_descriptions(page: str) -> str:
    """Return the page with the present docstrings of the programs, and the same output."""
    for name in (*ALL, *BY_ITSELF):
        part = find_part(page, name)
        output = part[part.find("```text") :]
        if part:
            page = page.replace(part, f"## {name}\n\n{description_of(name)}\n\n{output}")
    return page


def find_part(page: str, name: str) -> str:
    """Return the part of a page for one program, or an empty text."""
    found = re.search(rf"^## {name}$.*?(?=^## |\Z)", page, re.MULTILINE | re.DOTALL)
    return found[0] if found else ""


def with_part(page: str, name: str, part: str) -> str:
    """Return the page with this part in place of the old one, or at the end."""
    old = find_part(page, name)
    return page.replace(old, part) if old else f"{page.rstrip()}\n\n{part}"


if __name__ == "__main__":
    main()
