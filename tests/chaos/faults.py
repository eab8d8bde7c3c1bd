"""Runs the scenario once for each line: recording first, then with an exception at that line.

    python tests/chaos/faults.py sqlite:////tmp/faults --share 0/2 --only dispatcher

prints what it finds, a line a violation.
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
from typing import Any

from injector import CALLER, Injector, Point, Recorder, tracing
from scenario import CLOSE_SECONDS, HANGS, MARGIN, Outcome, Scenario


def errors_for(role: str) -> tuple[type[BaseException], ...]:
    """Return what may happen at any line of a thread: signals in the application's, defects in the library's."""
    return (KeyboardInterrupt, SystemExit) if role == CALLER else (RuntimeError, MemoryError)


def play(url: str, trace: Callable[..., Any], disarm: Callable[[], None] = lambda: None) -> Outcome:
    """Run the scenario on a thread of its own and judge it. Returns though it hangs."""
    threads_before = set(threading.enumerate())
    scenario = Scenario(url)
    outcome = scenario.outcome

    def run() -> None:
        try:
            scenario.run()
            disarm()
            threading.settrace(None)  # type: ignore[arg-type]
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
    return outcome


def _close_for(scenario: Scenario, caller: threading.Thread) -> None:
    """Close the system, as a signal handler or another thread would, under a caller who waits for an answer."""
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


def inject(url: str, point: Point, error: type[BaseException]) -> tuple[bool, Outcome]:
    """Run the scenario with one exception. Returns whether it came to the point, and the outcome."""
    injector = Injector(point, error)
    outcome = play(url, injector.trace, injector.disarm)
    return injector.fired, outcome


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
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder")
    parser.add_argument("--share", default="0/1")
    parser.add_argument("--only", default="")
    parser.add_argument("--sample", type=int)
    parser.add_argument("--ignore", default="\n", help="violations with this text do not count")
    parser.add_argument("--seed", type=int, default=0)
    chosen = parser.parse_args()
    logging.disable(logging.CRITICAL)
    threading.excepthook = lambda _: None
    urls = databases(chosen.folder)
    points: dict[Point, None] = {}
    for _ in range(3):
        recorded, outcome = record(next(urls))
        points |= dict.fromkeys(recorded)
        assert not [one for one in outcome.violations if chosen.ignore not in one], outcome.violations
    runs = [(point, error) for point in sorted(points) for error in errors_for(point.role)]
    mine, shares = map(int, chosen.share.split("/"))
    runs = [run for run in runs[mine::shares] if chosen.only in str(run[0])]
    if chosen.sample:
        runs = random.Random(chosen.seed).sample(runs, min(chosen.sample, len(runs)))
    print(f"# {len(points)} points, {len(runs)} runs", flush=True)  # noqa: T201
    for point, error in runs:
        for _ in range(3):
            fired, outcome = inject(next(urls), point, error)
            if fired:
                break
        outcome.violations = [one for one in outcome.violations if chosen.ignore not in one]
        verdict = "; ".join(outcome.violations) if fired else "not reached"
        word = "BAD" if fired and outcome.violations else "ok" if fired else "MISSED"
        notes = " | ".join(outcome.notes)
        print(f"{word} {point} {error.__name__}: {verdict} ## {notes}".replace("\n", " / "), flush=True)  # noqa: T201


if __name__ == "__main__":
    main()
