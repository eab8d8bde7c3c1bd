"""The README's table and the plots find each figure by the id under which a benchmark records it."""

from __future__ import annotations

import ast
import importlib
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

BENCHMARKS = Path(__file__).parents[3] / "benchmarks"


class Program:
    """The source of one benchmark, and of the functions that it imports from another one."""

    def __init__(self, name: str) -> None:
        self.tree = ast.parse((BENCHMARKS / f"{name}.py").read_text())
        self.functions = {
            node.name: node for node in ast.walk(self.tree) if isinstance(node, ast.FunctionDef)
        }
        for node in list(ast.walk(self.tree)):
            if isinstance(node, ast.ImportFrom) and (BENCHMARKS / f"{node.module}.py").exists():
                imported = ast.parse((BENCHMARKS / f"{node.module}.py").read_text())
                names = {alias.name for alias in node.names}
                for one in imported.body:
                    if isinstance(one, ast.FunctionDef) and one.name in names - {"row", "record", "section"}:
                        self.functions[one.name] = one
                        self.tree.body.append(one)

    def figures(self) -> Iterator[str]:
        """Yield a pattern for each id that the program records."""
        prefixes = [f"{one}." for one in self._arguments("section", 1)] or [""]
        for called in ("row", "record", "side"):
            for pattern in self._arguments(called, 0):
                yield from (prefix.replace(".", "[.]") + pattern for prefix in prefixes)

    def _arguments(self, called: str, position: int) -> Iterator[str]:
        """Yield a pattern for this argument of each call."""
        for function in self.functions.values():
            for node in ast.walk(function):
                if isinstance(node, ast.Call) and getattr(node.func, "id", None) == called:
                    named = [one.value for one in node.keywords if one.arg == "figures"]
                    yield from self._patterns((node.args[position:] or named)[0], function)

    def _patterns(self, value: ast.expr, within: ast.FunctionDef) -> Iterator[str]:
        """Yield patterns for an expression: constants literally, a first parameter as its callers pass it."""
        if isinstance(value, ast.Constant):
            yield re.escape(str(value.value))
        elif isinstance(value, ast.Name) and within.args.args and value.id == within.args.args[0].arg:
            yield from self._arguments(within.name, 0)
        elif isinstance(value, ast.JoinedStr):
            parts = [one.value if isinstance(one, ast.FormattedValue) else one for one in value.values]
            yield from self._joined(parts, within)
        else:
            yield "[a-z0-9_]+"

    def _joined(self, parts: list[ast.expr], within: ast.FunctionDef) -> Iterator[str]:
        if not parts:
            yield ""
            return
        for first in self._patterns(parts[0], within):
            yield from (first + rest for rest in self._joined(parts[1:], within))


class Recording(dict[str, float]):
    """The figures of one program, which remember the ids that are read."""

    def __missing__(self, figure: str) -> float:
        self[figure] = 1234.5
        return self[figure]


@pytest.fixture
def benchmark_modules(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that imports a module of benchmarks/."""
    monkeypatch.syspath_prepend(str(BENCHMARKS))
    return importlib.import_module


def test_each_figure_of_the_table_and_the_plots_is_recorded(benchmark_modules: Any) -> None:
    """A renamed or mistyped id is found here, and not after an hour of runs."""
    programs: dict[str, Recording] = {}
    lines = list(benchmark_modules("headline").table(lambda name: programs.setdefault(name, Recording())))
    assert len(lines) == 14
    assert all("1,23" in line or "1234" in line for line in lines[2:])
    for plot in benchmark_modules("plots").PLOTS.values():
        programs.setdefault(plot.program, Recording()).update(dict.fromkeys(plot.points.values(), 0.0))
    for name, figures in programs.items():
        patterns = list(Program(name).figures())
        for figure in figures:
            assert any(re.fullmatch(pattern, figure) for pattern in patterns), (name, figure, patterns)


def test_the_patterns_of_a_program_are_not_just_anything() -> None:
    """The check above would otherwise pass for any id."""
    patterns = list(Program("backplane").figures())
    assert not any(re.fullmatch(pattern, "ours.p50") for pattern in patterns)
    assert any(re.fullmatch(pattern, "keyfold.p50") for pattern in patterns)


@pytest.mark.parametrize("figure", ["", "Bulk", "one key", "a..b", "events/s", "ü"])
def test_an_id_is_not_a_display_text(
    benchmark_modules: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, figure: str
) -> None:
    """Words of lower-case letters, digits and underscores, with dots between them."""
    harness = benchmark_modules("harness")
    monkeypatch.setattr(harness, "OUTPUT", tmp_path)
    monkeypatch.setattr(harness, "_measured", {})
    with pytest.raises(AssertionError):
        harness.record(figure, 1.0)
    harness.record("postgresql.bulk_100", 1.0)
    assert [path.suffix for path in tmp_path.iterdir()] == [".json"]


def test_descriptions_are_replaced_and_figures_stay(benchmark_modules: Any) -> None:
    """A docstring can be improved without an hour of measuring."""
    report = benchmark_modules("report")
    output = "```text\n  p50 1 ms\n```\n\n![plot](a.svg)\n\n## other\n\nKept.\n"
    page = f"# Benchmarks\n\n## latency\n\nOld.\n\n{output}"
    changed = report.with_descriptions(page)
    assert report.description_of("latency") in changed
    assert "Old." not in changed
    assert changed.endswith(output)
