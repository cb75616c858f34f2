"""What the gateway's container image is built from: its source, its pins, and what is in it.

Pins are the versions that are installed here, which the tests ran with: the closure of the extra
`serving`. The bill of materials is CycloneDX without a time or a random number: the same bundle has the
same one.
"""

from __future__ import annotations

import json
import tomllib
import uuid
from collections.abc import Iterator
from importlib import metadata
from pathlib import Path

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name

import serving
from serving.errors import BundleError
from serving.manifests import Images
from serving.manifests.images import split

SOURCE = "docker/serving"
REQUIREMENTS = "docker/requirements.txt"
SBOM = "sbom.json"
_PROJECT = "llm-workbench"
_ROOT = Path(serving.__file__).parent
_LEFT_OUT = {"__pycache__", "manifests"}
"""The gateway renders no bundles."""
_NAMESPACE = uuid.UUID("6ba7b811-9dad-11d1-80b4-00c04fd430c8")


def source() -> dict[str, bytes]:
    """The package `serving` by path in the bundle."""
    found = {}
    for path in sorted(_ROOT.rglob("*")):
        within = path.relative_to(_ROOT)
        if path.is_file() and not _LEFT_OUT & set(within.parts) and path.suffix != ".pyc":
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


def bill_of_materials(name: str, pinned: dict[str, str], images: Images) -> str:
    """CycloneDX JSON of the packages in the gateway's image, and of the images beside it."""
    bom = Bom()
    bom.metadata.timestamp = None  # type: ignore[assignment]  # else it is now
    bom.metadata.component = Component(
        name=name, type=ComponentType.APPLICATION, bom_ref=f"bundle:{name}"
    )
    for package, version in pinned.items():
        purl = PackageURL("pypi", name=package, version=version)
        bom.components.add(Component(name=package, version=version, purl=purl, bom_ref=str(purl)))
    for used, image in images.model_dump().items():
        bom.components.add(_container(used, image))
    made = json.loads(JsonV1Dot6(bom).output_as_string())
    made["metadata"].pop("timestamp", None)
    content = json.dumps({k: v for k, v in made.items() if k != "serialNumber"}, sort_keys=True)
    made["serialNumber"] = f"urn:uuid:{uuid.uuid5(_NAMESPACE, content)}"
    return json.dumps(made, indent=2, sort_keys=True) + "\n"


def _container(used: str, image: str | None) -> Component:
    if image is None:
        unset = Property(name="workbench:pinned", value="in images/, at deployment")
        kind = ComponentType.CONTAINER
        return Component(name=used, type=kind, bom_ref=f"image:{used}", properties=[unset])
    name, digest = split(image)
    return Component(
        name=name,
        type=ComponentType.CONTAINER,
        bom_ref=f"image:{used}",
        version=digest,
        hashes=[HashType(alg=HashAlgorithm.SHA_256, content=digest.removeprefix("sha256:"))],
        purl=PackageURL("oci", name=name.rpartition("/")[2].lower(), version=digest),
    )


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
