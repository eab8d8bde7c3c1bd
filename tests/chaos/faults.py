"""Runs the scenario once for each line of the library: recording first, then with an exception at that line.

    python tests/chaos/faults.py /tmp/faults --only supervisor.py:62

prints the outcome of each run, one line per run. The folder holds the SQLite files; it must not exist yet.
"""

from __future__ import annotations

import argparse
import logging
import random
import sys
import threading
import traceback
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

from injector import CALLER, Injector, Point, Recorder, tracing
from scenario import CLOSE_SECONDS, HANGS, MARGIN, Outcome, Scenario


class Run(NamedTuple):
    """An exception, and where it is raised."""

    point: Point
    error: type[BaseException]

    def __str__(self) -> str:
        return f"{self.point} {self.error.__name__}"


def errors_for(role: str) -> tuple[type[BaseException], ...]:
    """Return the exceptions for a role: those of signal handlers for the caller, defects for our threads."""
    return (KeyboardInterrupt, SystemExit) if role == CALLER else (RuntimeError, MemoryError)


def play(url: str, trace: Callable[..., Any], disarm: Callable[[], None] = lambda: None) -> Outcome:
    """Run the scenario on a thread of its own and judge it. Returns though it hangs."""
    threads_before = set(threading.enumerate())
    logging.disable(logging.CRITICAL)
    hook, threading.excepthook = threading.excepthook, lambda _: None  # the threads that the exception ends
    scenario = Scenario(url)
    outcome = scenario.outcome

    def run() -> None:
        try:
            scenario.run()
            disarm()
            threading.settrace(None)
            sys.settrace(None)
            scenario.judge(threads_before | {caller})
        except BaseException:
            outcome.violated(f"{outcome.step} failed: {traceback.format_exc()}")
        finally:
            outcome.finished.set()

    caller = threading.Thread(target=run, name=CALLER, daemon=True)
    with tracing(trace):
        caller.start()
        if not outcome.finished.wait(HANGS):
            _close_for(scenario, caller)
    if outcome.finished.is_set():
        caller.join(HANGS)
    threading.excepthook = hook
    logging.disable(logging.NOTSET)
    return outcome


def _close_for(scenario: Scenario, caller: threading.Thread) -> None:
    """Close the system from another thread, while the caller waits for an answer."""
    outcome, system = scenario.outcome, scenario.system
    where = _where(caller)
    outcome.notes.append(f"{outcome.step} waited for the close, in {where}")
    if system is not None and outcome.step != "judge":
        closer = threading.Thread(target=system.close, args=(CLOSE_SECONDS,), name="closer", daemon=True)
        closer.start()
        closer.join(CLOSE_SECONDS + MARGIN)
    if not outcome.finished.wait(HANGS):
        outcome.violated(f"{outcome.step} hangs in {_where(caller)}, though the system was closed")


def _where(thread: threading.Thread) -> str:
    frame = sys._current_frames().get(thread.ident or 0)
    places = [f"{Path(f.filename).name}:{f.lineno} {f.name}" for f in traceback.extract_stack(frame)[-6:]]
    return " > ".join(places)


def record(url: str) -> tuple[list[Point], Outcome]:
    """Return every line that the scenario comes to, and its outcome without any fault."""
    recorder = Recorder()
    outcome = play(url, recorder.trace)
    return list(recorder.points), outcome


def plan(urls: Iterator[str], *, ignore: str | None = None) -> list[Run]:
    """Return all runs that there are to make, after checking that nothing is violated without any fault.

    Args:
        urls: Fresh databases.
        ignore: Violations that contain this text do not count.
    """
    points: dict[Point, None] = {}
    for _ in range(3):  # a few lines are not reached every time
        recorded, outcome = record(next(urls))
        points |= dict.fromkeys(recorded)
        if violations := [one for one in outcome.violations if ignore is None or ignore not in one]:
            raise AssertionError(f"without any fault: {violations}")
    return [Run(point, error) for point in sorted(points) for error in errors_for(point.role)]


def inject(urls: Iterator[str], run: Run) -> Outcome | None:
    """Run the scenario with one exception. Returns None if it did not come to the point in three attempts."""
    for _ in range(3):
        injector = Injector(run.point, run.error)
        outcome = play(next(urls), injector.trace, injector.disarm)
        if injector.fired:
            return outcome
    return None


def databases(where: str) -> Iterator[str]:
    """Yield the URLs of fresh SQLite files in a folder, removing each when the next is asked for."""
    folder = Path(where.removeprefix("sqlite:///"))
    folder.mkdir(parents=True)
    number = 0
    while True:
        number += 1
        for file in folder.glob(f"{number - 1}.db*"):
            file.unlink()
        yield f"sqlite:///{folder}/{number}.db"


def main() -> None:
    """Go through all points of one share, and print the violations."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("folder")
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--ignore", help="violations with this text do not count")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    urls = databases(chosen.folder)
    runs = plan(urls, ignore=chosen.ignore)
    mine, shares = map(int, chosen.share.split("/"))
    runs = [run for run in runs[mine::shares] if chosen.only in str(run)]
    if chosen.sample:
        runs = random.Random(chosen.seed).sample(runs, min(chosen.sample, len(runs)))
    print(f"# {len(runs)} runs", flush=True)
    for run in runs:
        outcome = inject(urls, run)
        found = [] if outcome is None else [
            one for one in outcome.violations if chosen.ignore is None or chosen.ignore not in one
        ]  # fmt: skip
        word = "MISSED" if outcome is None else "BAD" if found else "ok"
        notes = [] if outcome is None else outcome.notes
        print(f"{word} {run}: {'; '.join(found)} ## {' | '.join(notes)}".replace("\n", " / "), flush=True)


if __name__ == "__main__":
    main()
