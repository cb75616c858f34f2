"""Export: a plan and its evidence as a directory that stands alone, the same bytes for the same input."""

from __future__ import annotations

import hashlib
import shutil
from math import nan
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

from pydantic import BeforeValidator, Field

from serving.errors import BundleError, InputError
from serving.manifests import KUSTOMIZATION, check_kustomization, render
from serving.plan import Plan
from serving.values import Estimate, Value
from simulations.result import Prediction
from workbench.bundle_pages import evidence_page, readme

if TYPE_CHECKING:
    import pandas as pd

    from simulations.latency import LatencyModel
    from workbench.measure import Measurement
    from workbench.tune import Tuning

SUMS = "SHA256SUMS"
MODEL = "model"
"""Where a local model lies in the bundle."""
_AGAIN = "Export the bundle again."

# JSON has no NaN: what was not observed is written as null.
Observed = Annotated[float, BeforeValidator(lambda value: nan if value is None else value)]


class Evidence(Value):
    """What the plan rests on: measured, fitted and simulated, on which hardware and versions."""

    schema_version: Literal[1] = 1
    prediction: Prediction
    measurements: dict[str, dict[str, Observed]] = Field(default_factory=dict)
    """Summary of each, by name."""
    hardware: str = ""
    versions: dict[str, str] = Field(default_factory=dict)
    fit_errors: dict[str, Estimate] = Field(default_factory=dict)
    fit_source: str = ""
    cold_start_s: float = 0.0
    day: dict[str, Estimate] = Field(default_factory=dict)
    """The simulated day of the winner, on traffic that the search had not seen."""
    fleets: list[dict[str, Any]] = Field(default_factory=list)
    """The winner beside the baselines."""
    mlflow_run_ids: tuple[str, ...] = ()

    @classmethod
    def of(
        cls,
        *,
        measurements: list[Measurement],
        latency: LatencyModel,
        tuning: Tuning,
        mlflow_run_ids: tuple[str, ...] = (),
    ) -> Evidence:
        """Gather it from the results of the stages."""
        first = measurements[0].environment if measurements else None
        return cls(
            prediction=tuning.prediction,
            measurements={m.name: m.summary(tuning.winner.slo) for m in measurements},
            hardware=first.hardware if first else "",
            versions=first.versions if first else {},
            fit_errors=latency.heldout_error | latency.heldout_by,
            fit_source=latency.source,
            cold_start_s=latency.cold_start.total_s,
            day=tuning.winner_result.metrics,
            fleets=_records(tuning.table()),
            mlflow_run_ids=mlflow_run_ids,
        )


_NOT_SERVED = ("card.json", "seen.npy", "pruned.json")
"""What lies beside a checkpoint and says how it was made."""


def _records(table: pd.DataFrame) -> list[dict[str, Any]]:
    """One dictionary per row; None where a cell holds nothing."""
    cells = table.astype(object)
    rows = cells.where(cells.notna(), None).to_dict("records")
    return [{str(column): value for column, value in row.items()} for row in rows]


def export(plan: Plan, folder: Path, *, evidence: Evidence, image: str | None = None) -> Path:
    """Write the bundle, whole or not at all; an older bundle in the folder is replaced.

    A local model is copied into the bundle, and the plan in it names that copy.

    Args:    image: the vLLM image, pinned by digest; None leaves it to be set in the kustomization.
    Raises:  BundleError: a folder that is something else, an image or a hub model that is not pinned,
                 a fleet that cannot be shipped.
    """
    folder = folder.resolve()
    _refuse_other_folder(folder)
    local = Path(plan.variant.model).resolve() if Path(plan.variant.model).is_dir() else None
    shipped = _shipped(plan, local, folder)
    files = render(shipped, image=image)
    partial = folder.with_name(folder.name + ".partial")
    older = folder.with_name(folder.name + ".older")
    try:
        shutil.rmtree(partial, ignore_errors=True)
        for path, text in files.items():
            (partial / path).parent.mkdir(parents=True, exist_ok=True)
            (partial / path).write_text(text)
        if local is not None:
            shutil.copytree(local, partial / MODEL, ignore=shutil.ignore_patterns(*_NOT_SERVED))
        shipped.write(partial / "plan.json")
        evidence.prediction.write(partial / "prediction.json")
        evidence.write(partial / "evidence.json")
        (partial / "EVIDENCE.md").write_text(evidence_page(shipped, evidence))
        (partial / "README.md").write_text(readme(shipped, image))
        (partial / SUMS).write_text(_sums(partial))
        shutil.rmtree(older, ignore_errors=True)
        if folder.exists():
            folder.rename(older)
        partial.rename(folder)
    finally:
        shutil.rmtree(partial, ignore_errors=True)
    shutil.rmtree(older, ignore_errors=True)
    return folder


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


def _shipped(plan: Plan, local: Path | None, folder: Path) -> Plan:
    """The plan with its model where the bundle has it."""
    if local is None:
        if plan.variant.revision is None:
            raise BundleError(
                f"hub model(={plan.variant.model!r}) has no revision, or is a folder that is not there",
                remedy="Pin it: a hub's default branch moves.",
            )
        return plan
    if not (local / "config.json").is_file():
        raise BundleError(f"{local} holds no config.json", remedy="Name the model's own folder.")
    if folder.is_relative_to(local):
        raise BundleError(
            f"{folder} lies in the model that is to be copied", remedy="Choose a folder elsewhere."
        )
    variant = plan.variant.model_copy(update={"model": MODEL, "revision": None})
    return plan.model_copy(update={"variant": variant})


def check(folder: Path) -> Plan:
    """Validate a bundle: nothing missing, new or changed, but for an image that ops have pinned.

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
        if wanted[path] != there[path] and path != KUSTOMIZATION:
            raise BundleError(f"{folder / path} is changed", remedy=_AGAIN)
    needed = {KUSTOMIZATION, "plan.json", "prediction.json", "evidence.json"} - wanted.keys()
    if needed:
        raise BundleError(f"{folder / min(needed)} is not in {SUMS}", remedy=_AGAIN)
    check_kustomization((folder / KUSTOMIZATION).read_text(), wanted)
    try:
        plan = Plan.read(folder / "plan.json")
        prediction = Prediction.read(folder / "prediction.json")
        Evidence.read(folder / "evidence.json")
    except InputError as error:
        raise BundleError(error.problem, remedy=_AGAIN) from error
    if not prediction.metrics:
        raise BundleError(f"{folder / 'prediction.json'} predicts nothing", remedy=_AGAIN)
    return plan


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


def _sums(folder: Path) -> str:
    """As `sha256sum --check` reads it."""
    return "".join(f"{digest}  {path}\n" for path, digest in _digests(folder).items())


def _hashes(folder: Path) -> dict[str, str]:
    """{path: SHA-256 that was written at the export}."""
    pairs = [line.split("  ", 1) for line in (folder / SUMS).read_text().splitlines()]
    if any(len(pair) != 2 for pair in pairs):
        raise BundleError(f"{folder / SUMS} is changed", remedy=_AGAIN)
    return {path: digest for digest, path in pairs}
