"""The bill of materials: CycloneDX without a time or a random number, so that a bundle has one alone."""

from __future__ import annotations

import json
import uuid
from collections.abc import Mapping

from cyclonedx.model import HashAlgorithm, HashType, Property
from cyclonedx.model.bom import Bom
from cyclonedx.model.component import Component, ComponentType
from cyclonedx.output.json import JsonV1Dot6
from packageurl import PackageURL

from serving.manifests import Images
from serving.manifests.images import split

SBOM = "sbom.json"


def bill_of_materials(name: str, pinned: Mapping[str, str], images: Images) -> str:
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
    bom.register_dependency(bom.metadata.component, bom.components)
    made = json.loads(JsonV1Dot6(bom).output_as_string())
    made["metadata"].pop("timestamp", None)
    content = json.dumps({k: v for k, v in made.items() if k != "serialNumber"}, sort_keys=True)
    made["serialNumber"] = f"urn:uuid:{uuid.uuid5(uuid.NAMESPACE_URL, content)}"
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
