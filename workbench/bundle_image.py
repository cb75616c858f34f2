"""What the gateway's container image is built from: its source and its pins.

Pins are the versions that are installed here, which the tests ran with: the closure of the extra
`serving`.
"""

from __future__ import annotations

import tomllib
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import serving
from serving.errors import BundleError

SOURCE = "docker/serving"
REQUIREMENTS = "docker/requirements.txt"
_PROJECT = "llm-workbench"
_ROOT = Path(serving.__file__).parent


def source() -> dict[str, bytes]:
    """The package `serving` by path in the bundle."""
    found = {}
    for path in sorted(_ROOT.rglob("*")):
        within = path.relative_to(_ROOT)
        if path.is_file() and "__pycache__" not in within.parts:
            found[f"{SOURCE}/{within.as_posix()}"] = path.read_bytes()
    return found


def pins() -> dict[str, str]:
    """{package: version}: what the gateway needs, and what that needs, as it is installed here.

    Raises:  BundleError: a package that is not installed.
    """
    wanted = [Requirement(line) for line in _wanted()]
    found: dict[str, str] = {}
    done: set[tuple[str, frozenset[str]]] = set()
    while wanted:
        requirement = wanted.pop()
        name = canonicalize_name(requirement.name)
        key = (name, frozenset(requirement.extras))
        if key in done:
            continue
        done.add(key)
        try:
            there = metadata.distribution(requirement.name)
        except metadata.PackageNotFoundError:
            raise BundleError(
                f"the gateway needs {requirement.name}, which is not installed here",
                remedy="Install it: the bundle pins what is here.",
            ) from None
        found[name] = there.version
        wanted += _needed(there.requires or [], requirement.extras)
    return dict(sorted(found.items()))


def requirements(pinned: dict[str, str]) -> str:
    """A requirements file of exact versions."""
    return "".join(f"{name}=={version}\n" for name, version in pinned.items())


def _wanted() -> list[str]:
    """What the gateway needs, by the project's own file where it is at hand."""
    project = _ROOT.parent / "pyproject.toml"
    if project.is_file():
        extras = tomllib.loads(project.read_text())["project"]["optional-dependencies"]
        return list(extras["serving"])
    lines = metadata.requires(_PROJECT) or []
    return [line for line in lines if 'extra == "serving"' in line]


def _needed(lines: list[str], extras: set[str]) -> Iterator[Requirement]:
    for line in lines:
        requirement = Requirement(line)
        marker = requirement.marker
        if marker is None or any(marker.evaluate({"extra": e}) for e in ("", *sorted(extras))):
            yield requirement
