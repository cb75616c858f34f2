"""With which code and on what machine: tags of every run."""

from __future__ import annotations

import subprocess
from contextlib import suppress
from functools import cache
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from workbench.measure import Environment

_PACKAGE = "llm-workbench"
_COMMIT_DIGITS = 40


def on_which(environment: Environment) -> dict[str, str]:
    """Hardware, number of GPUs, Python and versions that a result was made with."""
    return {
        "hardware": environment.hardware,
        "gpu_count": str(environment.gpu_count),
        "python": environment.python,
        **{f"version.{name}": text for name, text in environment.versions.items()},
    }


@cache
def here() -> dict[str, str]:
    """This code on this machine: the commit where the package is tracked by git, its version."""
    from workbench.measure import Environment

    found = on_which(Environment.capture()) | commit_of(Path(__file__))
    with suppress(metadata.PackageNotFoundError):
        found[f"version.{_PACKAGE}"] = metadata.version(_PACKAGE)
    return found


def commit_of(file: Path) -> dict[str, str]:
    """Commit and whether the tree differs from it; nothing where git does not know the file.

    An installed package lies in a checkout as well where its virtual environment does, so git has
    to know the file itself.
    """
    described = None
    if _git(file.parent, "ls-files", "--error-unmatch", file.name) is not None:
        described = _git(
            file.parent,
            "describe",
            "--always",
            "--dirty",
            "--exclude=*",
            f"--abbrev={_COMMIT_DIGITS}",
        )
    if not described:
        return {}
    commit = described.removesuffix("-dirty")
    return {
        "git.commit": commit,
        "git.dirty": "no" if described == commit else "yes",
        # The name under which MLflow shows it.
        "mlflow.source.git.commit": commit,
    }


def _git(folder: Path, *arguments: str) -> str | None:
    """What git says; None where it fails or is not there."""
    command = ["git", "--no-optional-locks", "-C", str(folder), *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=10, check=False)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() if done.returncode == 0 else None
