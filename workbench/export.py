"""Export: a plan and its evidence as a directory that stands alone, the same bytes for the same input."""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Callable, Mapping
from functools import cache
from pathlib import Path
from typing import Any, Literal

from serving.errors import BundleError, InputError
from serving.hpa import HpaSpec
from serving.manifests import Images, images, render
from serving.manifests.leaks import refuse_secrets
from serving.plan import Plan
from serving.values import Value
from simulations.result import Prediction
from workbench import bundle_image
from workbench.bundle_evidence import (
    MODEL,
    Evidence,
    digest,
    doubted,
    refuse_stale,
    refuse_unfounded,
    shipped,
)
from workbench.bundle_pages import evidence_page, readme

__all__ = ["MODEL", "SUMS", "Bundle", "Evidence", "check", "export"]

SUMS = "SHA256SUMS"
HEAD = "bundle.json"
HPA = "base/vllm/hpa.yaml"
_AGAIN = "Export the bundle again."
_NEEDED = {HEAD, "plan.json", "prediction.json", "evidence.json", *images.EDITABLE}
_NOT_SERVED = ("card.json", "seen.npy", "pruned.json")
"""What lies beside a checkpoint and says how it was made."""


class Bundle(Value):
    """What a bundle was made of."""

    schema_version: Literal[1] = 1
    plan_sha256: str
    model_sha256: str = ""
    """Of the list of sums of the model's files; "" where a hub has it."""
    serving_sha256: str
    """Of the package that wrote the manifests and is in docker/: it must write the same again."""


def export(
    plan: Plan,
    folder: Path,
    *,
    evidence: Evidence,
    pinned: Images | None = None,
    force: bool = False,
    max_age_days: float = 90.0,
) -> Path:
    """Write the bundle, whole or not at all; an older bundle in the folder is replaced.

    A local model is copied into the bundle, and the plan in it names that copy.

    Args:    pinned: container images by digest; those left out are set in the bundle's images/.
             force: ship what rests on what cannot be trusted; every page then says so.
             max_age_days: the oldest measurement that still counts.
    Raises:  BundleError: a folder that is something else, an image or a hub model that is not pinned,
                 a fleet that cannot be shipped, a secret, evidence that is not of this plan, or not
                 good or not new enough.
    """
    folder = folder.resolve()
    _refuse_other_folder(folder)
    refuse_unfounded(plan, evidence)
    evidence = doubted(evidence, force=force)
    refuse_stale(evidence, max_age_days)
    local = Path(plan.variant.model).resolve() if Path(plan.variant.model).is_dir() else None
    _refuse_model(plan, local, folder)
    chosen = pinned or Images()
    render(shipped(plan), chosen=chosen)  # refuses what cannot be shipped before weights are copied

    def fill(partial: Path) -> None:
        if local is not None:
            shutil.copytree(local, partial / MODEL, ignore=shutil.ignore_patterns(*_NOT_SERVED))
        _write(partial, _contents(shipped(plan), evidence, chosen, weights(_digests(partial))))
        shipped(plan).write(partial / "plan.json")
        evidence.prediction.write(partial / "prediction.json")
        evidence.write(partial / "evidence.json")
        (partial / SUMS).write_text(_sums(partial))

    _whole_or_not_at_all(folder, fill)
    return folder


def _contents(plan: Plan, evidence: Evidence, chosen: Images, model: str) -> dict[str, bytes]:
    """Every file that is not the model's or a value of its own."""
    from workbench.bundle_sbom import SBOM, bill_of_materials

    pinned = bundle_image.pins()
    head = Bundle(plan_sha256=digest(plan), model_sha256=model, serving_sha256=_code())
    texts = {
        **render(plan, chosen=chosen, weights=model),
        bundle_image.REQUIREMENTS: bundle_image.requirements(pinned),
        SBOM: bill_of_materials(plan.name, pinned, chosen),
        HEAD: head.model_dump_json(indent=2) + "\n",
        "EVIDENCE.md": evidence_page(plan, evidence),
        "README.md": readme(plan, chosen),
    }
    said = {"evidence.json": evidence.model_dump_json(), "plan.json": plan.model_dump_json()}
    refuse_secrets(texts | said)
    return {path: text.encode() for path, text in texts.items()} | bundle_image.source()


def _write(folder: Path, contents: Mapping[str, bytes]) -> None:
    for path, content in contents.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_bytes(content)


def _whole_or_not_at_all(folder: Path, fill: Callable[[Path], None]) -> None:
    partial = folder.with_name(folder.name + ".partial")
    older = folder.with_name(folder.name + ".older")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        partial.mkdir(parents=True)
        fill(partial)
        shutil.rmtree(older, ignore_errors=True)
        if folder.exists():
            folder.rename(older)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(older, ignore_errors=True)


def _refuse_other_folder(folder: Path) -> None:
    """An existing folder is replaced only if every file in it came from an export."""
    if not folder.exists() or (folder.is_dir() and not any(folder.iterdir())):
        return
    remedy = "Choose an empty folder."
    listed = (folder / SUMS).read_text().splitlines() if (folder / SUMS).is_file() else []
    if not any(line.endswith("  plan.json") for line in listed):
        raise BundleError(f"{folder} is not a bundle", remedy=remedy)
    foreign = sorted(_paths(folder) - _hashes(folder).keys())
    if foreign:
        raise BundleError(f"{folder / foreign[0]} is not of the bundle there", remedy=remedy)


def _refuse_model(plan: Plan, local: Path | None, folder: Path) -> None:
    if local is None:
        if plan.variant.revision is None:
            raise BundleError(
                f"hub model(={plan.variant.model!r}) has no revision, or is a folder that is not there",
                remedy="Pin it: a hub's default branch moves.",
            )
        return
    if not (local / "config.json").is_file():
        raise BundleError(f"{local} holds no config.json", remedy="Name the model's own folder.")
    if folder.is_relative_to(local):
        raise BundleError(
            f"{folder} lies in the model that is to be copied", remedy="Choose a folder elsewhere."
        )


def check(folder: Path, *, max_age_days: float | None = None) -> Plan:
    """Validate a bundle: nothing missing, new or changed, but for images that ops have pinned.

    What the same code would write is compared byte for byte, so that a change is found even where the
    sums were made to agree with it.

    Args:    max_age_days: the oldest measurement that still counts; None asks not.
    Returns: its plan; a model of its own is named relative to the bundle.
    Raises:  BundleError: what is wrong, naming the file.
    """
    if not (folder / SUMS).is_file():
        raise BundleError(f"{folder} is not a bundle", remedy="Run `workbench export`.")
    wanted, there = _hashes(folder), _digests(folder)
    for path in sorted(wanted.keys() | there.keys()):
        if path not in there or path not in wanted:
            state = "missing" if path not in there else "new"
            raise BundleError(f"{folder / path} is {state}", remedy=_AGAIN)
        if wanted[path] != there[path] and path not in images.EDITABLE:
            raise BundleError(f"{folder / path} is changed", remedy=_AGAIN)
    needed = _NEEDED - wanted.keys()
    if needed:
        raise BundleError(f"{folder / min(needed)} is not in {SUMS}", remedy=_AGAIN)
    images.of_bundle(folder)
    try:
        plan = Plan.read(folder / "plan.json")
        head = Bundle.read(folder / HEAD)
        evidence = Evidence.read(folder / "evidence.json")
        prediction = Prediction.read(folder / "prediction.json")
    except InputError as error:
        raise BundleError(error.problem, remedy=_AGAIN) from error
    _refuse_disagreement(folder, plan, head, weights(there))
    if prediction != evidence.prediction:
        raise BundleError(f"{folder / 'prediction.json'} is not of evidence.json", remedy=_AGAIN)
    refuse_unfounded(plan, evidence)
    if max_age_days is not None:
        refuse_stale(evidence, max_age_days)
    return plan


def _refuse_disagreement(folder: Path, plan: Plan, head: Bundle, model: str) -> None:
    """What lies there is what the plan gives."""
    if head.plan_sha256 != digest(plan) or head.model_sha256 != model:
        other = "plan.json" if head.model_sha256 == model else MODEL
        raise BundleError(f"{folder / other} is not of {HEAD}", remedy=_AGAIN)
    if head.serving_sha256 == _code():
        written = {path: text.encode() for path, text in render(plan, weights=model).items()}
        for path, content in (written | bundle_image.source()).items():
            there = folder / path
            if path not in images.EDITABLE and not (
                there.is_file() and there.read_bytes() == content
            ):
                raise BundleError(f"{there} is not what plan.json gives", remedy=_AGAIN)
    elif plan.hpa is not None:
        try:
            same = HpaSpec.from_yaml((folder / HPA).read_text()) == plan.hpa
        except (InputError, OSError):
            same = False
        if not same:
            raise BundleError(f"{folder / HPA} is not of plan.json", remedy=_AGAIN)


def weights(digests: Mapping[str, str]) -> str:
    """Digest of the model in a bundle, of the digests of its files; "" where there is none."""
    of_model = {path: one for path, one in digests.items() if path.startswith(f"{MODEL}/")}
    return hashlib.sha256(_listed(of_model).encode()).hexdigest() if of_model else ""


@cache
def _code() -> str:
    """Digest of the package that writes the manifests."""
    found = {path: hashlib.sha256(one).hexdigest() for path, one in bundle_image.source().items()}
    return hashlib.sha256(_listed(found).encode()).hexdigest()


def _paths(folder: Path) -> set[str]:
    found = {p.relative_to(folder).as_posix() for p in folder.rglob("*") if p.is_file()}
    return found - {SUMS}


def _digests(folder: Path) -> dict[str, str]:
    """{path: SHA-256 of what lies there}."""
    digests = {}
    for path in sorted(_paths(folder)):
        with (folder / path).open("rb") as file:
            digests[path] = hashlib.file_digest(file, "sha256").hexdigest()
    return digests


def _listed(digests: Mapping[str, str]) -> str:
    """As `sha256sum --check` reads it."""
    return "".join(f"{digest}  {path}\n" for path, digest in digests.items())


def _sums(folder: Path) -> str:
    return _listed(_digests(folder))


def _hashes(folder: Path) -> dict[str, str]:
    """{path: SHA-256 that was written at the export}."""
    pairs: list[Any] = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
    if any(len(pair) != 2 for pair in pairs):
        raise BundleError(f"{folder / SUMS} is changed", remedy=_AGAIN)
    return {path: digest for digest, path in pairs}
