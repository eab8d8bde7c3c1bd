"""Programs of a few lines in processes of their own, that share a database."""

from __future__ import annotations

import subprocess
import sys

from .gunicorns import ENVIRONMENT

SECONDS = 60.0

PROLOGUE = """
import os, sys, threading
from keyfold.actors import ProjectionSystem
from support.counting import Added, Totals
system = ProjectionSystem(sys.argv[1])
totals = system.register(Totals())
"""


def python(program: str, *arguments: str, stdin: int | None = None) -> subprocess.Popen[str]:
    """Run a program after the prologue, in a process of its own."""
    return subprocess.Popen(
        [sys.executable, "-c", PROLOGUE + program, *arguments],
        env=ENVIRONMENT, cwd="/", text=True, stdin=stdin, stdout=subprocess.PIPE, stderr=subprocess.PIPE,
    )  # fmt: skip


def output_of(process: subprocess.Popen[str]) -> str:
    """Wait until it has ended with code 0, and return its output."""
    out, errors = process.communicate(timeout=SECONDS)
    assert process.returncode == 0, errors
    return out
