"""The distribution: the files of the wheel, and the front door."""

from __future__ import annotations

import ast
import importlib
import subprocess
import sys
from importlib.metadata import distribution
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PARTS = ("actors", "store", "web")
MODULES = sorted(path for part in PARTS for path in (ROOT / part).rglob("*.py"))


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_is_importable_under_keyfold(path: Path) -> None:
    """A module that pyproject.toml's explicit package list leaves out would be missing in a wheel."""
    parts = path.relative_to(ROOT).with_suffix("").parts
    name = ".".join(("keyfold", *parts)).removesuffix(".__init__")
    module = importlib.import_module(name)
    assert Path(str(module.__file__)).resolve() == path.resolve()


def test_the_wheel_holds_every_module_and_nothing_else(tmp_path: Path) -> None:
    """The built file list is the folders', as ``keyfold.*``, with py.typed, and the front door."""
    command = [
        sys.executable,
        "-m",
        "pip",
        "wheel",
        "--quiet",
        "--no-deps",
        "--wheel-dir",
        str(tmp_path),
        str(ROOT),
    ]
    subprocess.run(command, check=True, capture_output=True, timeout=110)
    [wheel] = tmp_path.glob("*.whl")
    listing = subprocess.run(
        [sys.executable, "-m", "zipfile", "--list", str(wheel)], check=True, capture_output=True, text=True
    )
    names = {line.split()[0] for line in listing.stdout.splitlines()[1:]}
    python = {name for name in names if name.endswith(".py")}
    assert python == {f"keyfold/{path.relative_to(ROOT)}" for path in MODULES} | {"keyfold/__init__.py"}
    assert "keyfold/py.typed" in names
    assert {f"keyfold/{part}/py.typed" for part in PARTS} <= names
    assert (
        not {name.split("/")[0] for name in names}
        - {"keyfold"}
        - {name.split("/")[0] for name in names if ".dist-info/" in name}
    )


def test_the_front_door_opens_to_what_it_names() -> None:
    """Every name at its first use, its type known to checkers, and nothing that is not there."""
    keyfold = importlib.import_module("keyfold")
    assert keyfold.__version__ == distribution("keyfold").version
    assert set(keyfold.__all__) <= set(dir(keyfold))
    named = {
        alias.name
        for node in ast.walk(ast.parse((ROOT / "front/__init__.py").read_text()))
        if isinstance(node, ast.ImportFrom) and node.level
        for alias in node.names
    }
    assert named | {"__version__"} == set(keyfold.__all__)
    for name in keyfold.__all__:
        assert getattr(keyfold, name) is getattr(keyfold, name)
    with pytest.raises(AttributeError, match="has no attribute 'Nothing'"):
        _ = keyfold.Nothing


def test_the_front_door_loads_no_flask() -> None:
    """An app without Flask takes what it needs, and pays for nothing else."""
    program = "import sys, keyfold.actors; keyfold.Projection; sys.exit('flask' in sys.modules)"
    subprocess.run([sys.executable, "-c", program], check=True, timeout=60)
