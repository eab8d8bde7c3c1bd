"""Run all benchmarks and write what they print to docs/benchmarks.md: ``make bench``. No figure there is typed."""

from __future__ import annotations

import argparse
import ast
import os
import subprocess
import sys
from datetime import UTC, datetime
from pathlib import Path

HERE = Path(__file__).parent
PAGE = HERE.parent / "docs" / "benchmarks.md"
ALL = (
    "durable", "dispatch", "growth", "live_actors", "fan_out", "held_sockets", "latency", "frozen_client",
    "convergence",
)  # fmt: skip
HEAD = """# Benchmarks

Written by `make bench` on {day}: what each command printed, both sides from the same run. Machines differ, and this
one had {cores} slow cores and noisy neighbours: look at the ratios, and run them on yours.
"""


def main() -> None:
    """Run each in a process of its own, and write the page once all have ended well."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("only", nargs="*", help="print these, and write no page")
    options = parser.parse_args()
    parts = []
    for name in options.only or ALL:
        program = HERE / f"{name}.py"
        about = ast.get_docstring(ast.parse(program.read_text())) or ""
        result = subprocess.run([sys.executable, str(program)], stdout=subprocess.PIPE, text=True, check=True)
        print(result.stdout, flush=True)
        parts.append(f"## {name}\n\n{about}\n\n```text\n{result.stdout.rstrip()}\n```\n")
    if not options.only:
        day = datetime.now(UTC).date().isoformat()
        PAGE.write_text("\n".join([HEAD.format(day=day, cores=os.cpu_count()), *parts]))


if __name__ == "__main__":
    main()
