"""The project as users have it: its wheel, installed outside the checkout."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import sysconfig
from pathlib import Path

import pytest
from hypothesis import settings

# How long an example takes is the machine's, which others use too.
settings.register_profile("shared", deadline=None)
settings.load_profile("shared")

ROOT = Path(__file__).resolve().parent.parent
_BUILT_FROM = ("serving", "simulations", "workbench", "experiments")


def without_checkout() -> dict[str, str]:
    """The environment of a process that must not find the checkout."""
    return {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}


@pytest.fixture(scope="session")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Built from the source distribution, as `python -m build` does it."""
    source = tmp_path_factory.mktemp("source")
    for name in _BUILT_FROM:
        shutil.copytree(ROOT / name, source / name, ignore=shutil.ignore_patterns("__pycache__"))
    for name in ("pyproject.toml", "README.md", "LICENSE"):
        shutil.copy(ROOT / name, source)
    done = subprocess.run(
        [sys.executable, "-m", "build", "--no-isolation", "--outdir", "dist"],
        cwd=source,
        env=without_checkout(),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stdout + done.stderr
    (built,) = (source / "dist").glob("*.whl")
    return built


@pytest.fixture(scope="session")
def programs(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """bin/ of an environment with the wheel, and with the packages of this one beside it."""
    home = tmp_path_factory.mktemp("installed")
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", str(home)], check=True)
    pip = [sys.executable, "-m", "pip", "--python", str(home / "bin" / "python"), "install", "-q"]
    wanted = ["--no-deps", "--no-index", str(wheel)]
    subprocess.run([*pip, *wanted], env=without_checkout(), check=True)
    # Its own packages come first, and a path in a .pth brings no editable checkout with it.
    library = sysconfig.get_path("purelib", vars={"base": str(home)})
    (Path(library) / "others.pth").write_text(sysconfig.get_path("purelib") + "\n")
    return home / "bin"
