"""Which container images are run, each pinned by digest: what ops may set after the export.

images/kustomization.yaml is what every overlay takes its images from, images/images.env what compose.yaml
does. Nothing else of the bundle may be edited.
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import yaml

from serving.errors import BundleError
from serving.values import Value

KUSTOMIZATION = "images/kustomization.yaml"
ENVIRONMENT = "images/images.env"
EDITABLE = (KUSTOMIZATION, ENVIRONMENT)
UNSET_DIGEST = "IMAGE_DIGEST"
"""Stands where a digest belongs: no image can be pulled by this name, so that nothing drifts."""
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PINNED = re.compile(rf"(?P<name>([^\s@/]+/)*[^\s@/:]+)@(?P<digest>{_DIGEST.pattern})")
_IN_CLUSTER = {"vllm": "vllm/vllm-openai", "gateway": "REGISTRY/gateway", "redis": "redis"}
_COMPOSED = ("vllm", "redis", "prometheus", "python")
_HEADER = "# Pinned as NAME@sha256:DIGEST; compose.yaml starts nothing that is not.\n"


class Images(Value):
    """Images by digest; None leaves one to be set in the bundle."""

    vllm: str | None = None
    gateway: str | None = None
    """Built from the bundle's docker/."""
    redis: str | None = None
    prometheus: str | None = None
    python: str | None = None
    """What the gateway's is built on."""


def split(image: str) -> tuple[str, str]:
    """(name, digest) of a pinned image.

    Raises:  BundleError: an image that can move.
    """
    found = _PINNED.fullmatch(image)
    if found is None:
        raise BundleError(
            f"image(={image!r}) is not pinned by digest alone",
            remedy="Write it as name@sha256:<64 hex digits>, without a tag; tags move.",
        )
    return found["name"], found["digest"]


def files(images: Images) -> dict[str, str]:
    """The two files that pin images.

    Raises:  BundleError: an image that can move.
    """
    for image in images.model_dump().values():
        if image is not None:
            split(image)
    pins = [_pin(name, getattr(images, name)) for name in _IN_CLUSTER]
    composed = "".join(
        f"{name.upper()}_IMAGE={getattr(images, name) or ''}\n" for name in _COMPOSED
    )
    return {
        KUSTOMIZATION: yaml.safe_dump(_component(pins), sort_keys=False),
        ENVIRONMENT: _HEADER + composed,
    }


Chosen = dict[str, str | None]
"""Images by name; None where one is still to be set."""


def check(kustomization: str, environment: str) -> tuple[Chosen, Chosen]:
    """Check the files that ops may edit: nothing but images, and those pinned.

    Returns: images in a cluster, images of compose.yaml.
    Raises:  BundleError: an image that can move, or anything else that was changed.
    """
    return _in_cluster(kustomization), _composed(environment)


def of_bundle(folder: Path) -> Chosen:
    """Images of a bundle: of a cluster, and as `compose NAME` of one machine.

    Raises:  BundleError: a file that is not there, an image that can move, or another change.
    """
    try:
        cluster, composed = check(*((folder / path).read_text() for path in EDITABLE))
    except OSError as error:
        raise BundleError(
            f"cannot read {error.filename} ({error.strerror})",
            remedy="Name the folder that `workbench export` wrote.",
        ) from error
    return cluster | {f"compose {name}": image for name, image in composed.items()}


def _component(pins: list[dict[str, str]]) -> dict[str, Any]:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1alpha1",
        "kind": "Component",
        "images": pins,
    }


def _pin(name: str, image: str | None) -> dict[str, str]:
    known, digest = split(image) if image else (_IN_CLUSTER[name], UNSET_DIGEST)
    return {"name": f"{name}-image", "newName": known, "digest": digest}


def _in_cluster(text: str) -> Chosen:
    try:
        found = yaml.safe_load(text)
        pins = {pin["name"]: (pin["newName"], pin["digest"]) for pin in found["images"]}
        chosen = {name: pins[f"{name}-image"] for name in _IN_CLUSTER}
    except (yaml.YAMLError, TypeError, KeyError) as error:
        raise BundleError(
            f"{KUSTOMIZATION} does not pin {', '.join(_IN_CLUSTER)} by newName and digest",
            remedy="Put newName and digest into the original, and change nothing else.",
        ) from error
    for known, digest in chosen.values():
        if digest != UNSET_DIGEST and not _PINNED.fullmatch(f"{known}@{digest}"):
            raise BundleError(
                f"{KUSTOMIZATION}: digest(={digest!r}) of {known!r} pins nothing",
                remedy="Set it to sha256:<64 hex digits>, without a tag; tags move.",
            )
    own = [
        {"name": f"{name}-image", "newName": known, "digest": digest}
        for name, (known, digest) in chosen.items()
    ]
    if found != _component(own):
        raise BundleError(
            f"{KUSTOMIZATION} is changed in more than its images",
            remedy="Export the bundle again, and put changes into an overlay of your own.",
        )
    return {
        name: None if digest == UNSET_DIGEST else f"{known}@{digest}"
        for name, (known, digest) in chosen.items()
    }


def _composed(text: str) -> Chosen:
    lines = [line for line in text.splitlines() if line and not line.startswith("#")]
    found = dict(line.split("=", 1) for line in lines if "=" in line)
    if [f"{name.upper()}_IMAGE" for name in _COMPOSED] != list(found) or len(found) != len(lines):
        raise BundleError(
            f"{ENVIRONMENT} is changed in more than its images",
            remedy=f"It sets {', '.join(name.upper() + '_IMAGE' for name in _COMPOSED)}, no more.",
        )
    for name, image in found.items():
        if image:
            try:
                split(image)
            except BundleError as error:
                raise BundleError(
                    f"{ENVIRONMENT}: {name}: {error.problem}", remedy=error.remedy
                ) from error
    return {name: found[f"{name.upper()}_IMAGE"] or None for name in _COMPOSED}
