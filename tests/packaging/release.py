"""Tries a release: ``release.py dist/*``. Each file in an empty environment, on every Python of this machine.

In a directory without the checkout the README's app has to count, over HTTP and in its rows; then with all
extras.
"""

from __future__ import annotations

import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from tempfile import TemporaryDirectory

OLDEST, NEWEST = 11, 20

TRY = """
import importlib, sys
from pathlib import Path
namespace = {"__name__": "shop"}
exec(compile(Path("shop.py").read_text(), "shop.py", "exec", dont_inherit=True), namespace)
client = namespace["create_app"]().test_client()
assert [client.post("/adjust").json["version"] for _ in range(2)] == [1, 2]
assert client.get("/projection/inventory.warehouse/north").json["state"] == {"totals": {"apple": 6}}
assert "watch" in client.get("/keyfold/keyfold.js").text
namespace["keyfold"].system.close()
for extra in sys.argv[1:]:
    importlib.import_module(extra)
"""
EXTRAS = ["keyfold.web.client", "keyfold.web.operator.metrics", "redis"]


def pythons() -> dict[str, str]:
    """Return version -> path of every Python that Keyfold is for: on the PATH, of pyenv, and this one."""
    names = [f"python3.{minor}" for minor in range(OLDEST, NEWEST)]
    pyenv = Path(os.environ.get("PYENV_ROOT", Path.home() / ".pyenv")) / "versions"
    paths = [path for name in names for path in (shutil.which(name), *map(str, pyenv.glob(f"*/bin/{name}")))]
    found = {sys.version.split()[0]: sys.executable}
    for path in filter(None, paths):
        told = subprocess.run([path, "--version"], capture_output=True, text=True, check=False)
        if told.returncode == 0:  # a shim may lead nowhere
            found.setdefault(told.stdout.split()[1], path)
    return found


def main() -> None:
    """Try all; a first failure ends it."""
    readme = (Path(__file__).parents[2] / "README.md").read_text()
    [source] = re.findall(r"```python\n(.*?)```", readme, re.DOTALL)
    artifacts = [Path(argument).resolve() for argument in sys.argv[1:]]
    assert artifacts, "nothing to try: release.py dist/*"
    for version, python in pythons().items():
        for artifact in artifacts:
            with TemporaryDirectory(prefix="keyfold-release-") as here:
                environment = Path(here) / "venv"
                subprocess.run([python, "-m", "venv", str(environment)], check=True)
                inside = str(environment / "bin" / "python")
                (Path(here) / "shop.py").write_text(source)
                for what, names in ((str(artifact), []), (f"{artifact}[all]", EXTRAS)):
                    subprocess.run([inside, "-m", "pip", "install", "--quiet", what], check=True)
                    subprocess.run(
                        [inside, "-W", "error::ResourceWarning", "-c", TRY, *names], cwd=here, check=True
                    )
                    (Path(here) / "shop.db").unlink()
            print(f"{artifact.name} works on Python {version}", flush=True)


if __name__ == "__main__":
    main()
