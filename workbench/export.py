"""Export: a plan and its evidence as a directory that stands alone, the same bytes for the same input."""

from __future__ import annotations

import hashlib
import shutil
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pydantic import Field

from serving.errors import BundleError
from serving.manifests import render
from serving.plan import Plan
from serving.values import Estimate, Value
from simulations.result import Prediction

if TYPE_CHECKING:
    from simulations.latency import LatencyModel
    from workbench.measure import Measurement
    from workbench.tune import Tuning

SUMS = "SHA256SUMS"


class Evidence(Value):
    """What the plan rests on: measured, fitted and simulated, on which hardware and versions."""

    prediction: Prediction
    measurements: dict[str, dict[str, float]] = Field(default_factory=dict)
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
            fit_errors=latency.heldout_error,
            fit_source=latency.source,
            cold_start_s=latency.cold_start.total_s,
            day=tuning.winner_result.metrics,
            fleets=tuning.baselines.astype(object).to_dict("records"),
            mlflow_run_ids=mlflow_run_ids,
        )


def export(plan: Plan, folder: Path, *, evidence: Evidence, image: str | None = None) -> Path:
    """Write the bundle, whole or not at all; an older bundle in the folder is replaced.

    Args:    image: the vLLM image, pinned by digest; None leaves it to be set in the kustomization.
    Raises:  BundleError: a folder that is something else, an image or a hub model that is not pinned.
    """
    if folder.exists() and any(folder.iterdir()) and not (folder / SUMS).exists():
        raise BundleError(f"{folder} is not a bundle", remedy="Choose an empty folder.")
    local = Path(plan.variant.model)
    if not local.is_dir() and plan.variant.revision is None:
        raise BundleError(
            f"hub model(={plan.variant.model!r}) has no revision",
            remedy="Pin it: a hub's default branch moves.",
        )
    files = render(plan, image=image)
    partial = folder.with_name(folder.name + ".partial")
    shutil.rmtree(partial, ignore_errors=True)
    for path, text in files.items():
        (partial / path).parent.mkdir(parents=True, exist_ok=True)
        (partial / path).write_text(text)
    if local.is_dir():
        shutil.copytree(local, partial / "model", ignore=shutil.ignore_patterns("card.json"))
    plan.write(partial / "plan.json")
    evidence.prediction.write(partial / "prediction.json")
    evidence.write(partial / "evidence.json")
    (partial / "EVIDENCE.md").write_text(_evidence_page(plan, evidence))
    (partial / "README.md").write_text(_readme(plan, image))
    (partial / SUMS).write_text(_sums(partial))
    shutil.rmtree(folder, ignore_errors=True)
    partial.rename(folder)
    return folder


def check(folder: Path) -> Plan:
    """Validate a bundle: nothing missing, nothing changed, the manifests those of the plan.

    Returns: its plan.
    Raises:  BundleError: what is wrong, naming the file.
    """
    if not (folder / SUMS).is_file():
        raise BundleError(f"{folder} is not a bundle", remedy="Run `workbench export`.")
    wanted = _hashes((folder / SUMS).read_text())
    there = _hashes(_sums(folder))
    for path in sorted(wanted.keys() | there.keys()):
        if wanted.get(path) != there.get(path):
            state = "missing" if path not in there else "new" if path not in wanted else "changed"
            raise BundleError(f"{folder / path} is {state}", remedy="Export the bundle again.")
    plan = Plan.read(folder / "plan.json")
    Prediction.read(folder / "prediction.json")
    Evidence.read(folder / "evidence.json")
    return plan


def _sums(folder: Path) -> str:
    files = sorted(p for p in folder.rglob("*") if p.is_file() and p.name != SUMS)
    return "".join(
        f"{hashlib.sha256(path.read_bytes()).hexdigest()}  {path.relative_to(folder)}\n"
        for path in files
    )


def _hashes(sums: str) -> dict[str, str]:
    """{path: digest}."""
    pairs = (line.split("  ", 1) for line in sums.splitlines())
    return {path: digest for digest, path in pairs}


def _evidence_page(plan: Plan, evidence: Evidence) -> str:
    day = [f"| {name} | {estimate} |" for name, estimate in evidence.day.items()]
    kept = [f"| {name} | {estimate} |" for name, estimate in evidence.prediction.metrics.items()]
    fit = [f"| {name} | {estimate} |" for name, estimate in evidence.fit_errors.items()]
    points = [
        f"| {name} | {s['output_tokens_per_s']:.4g} | {s['ttft_p99_s']:.4g} | {s['tpot_p50_s']:.4g} |"
        for name, s in evidence.measurements.items()
    ]
    lines = [
        f"# What {plan.name} rests on",
        "",
        f"Measured on {evidence.hardware or 'unknown hardware'}, with "
        + ", ".join(f"{k} {v}" for k, v in sorted(evidence.versions.items()))
        + ". Numbers in brackets are 95 % intervals.",
        "",
        "## Measured",
        "| run | output tok/s | TTFT p99, s | TPOT p50, s |",
        "|---|---|---|---|",
        *points,
        "",
        f"## Fitted ({evidence.fit_source}; cold start {evidence.cold_start_s:.1f} s)",
        "| relative error on held-out steps | value |",
        "|---|---|",
        *fit,
        "",
        "## Simulated: a day on unseen traffic",
        "| metric | value |",
        "|---|---|",
        *day,
        "",
        "## Predicted for `workbench verify`",
        "| metric | value |",
        "|---|---|",
        *kept,
        "",
        f"MLflow runs: {len(evidence.mlflow_run_ids)}; their ids are in evidence.json.",
        "",
    ]
    return "\n".join(lines)


def _readme(plan: Plan, image: str | None) -> str:
    name = f"vllm-{plan.name}"
    pin = (
        ""
        if image
        else "First set the vLLM image, by digest, under `images:` in"
        " kubernetes/kustomization.yaml:\n`kustomize edit set image vllm-image=NAME@sha256:DIGEST`.\n"
    )
    return f"""# {plan.name}

A vLLM fleet of `{plan.variant.name}`, tuned and exported by the workbench. EVIDENCE.md says what it rests
on; plan.json is the plan; SHA256SUMS lists every file.

## Deploy

{pin}Metrics: add monitoring/prometheus-adapter.yaml to the values of your prometheus-adapter release.
Weights: a hub model is fetched at its revision; a local one (the folder model/) goes onto a volume that
is claimed as `{name}`.

    kubectl apply -k kubernetes/
    kubectl rollout status deployment/{name}

## Roll back, remove

    kubectl rollout undo deployment/{name}
    kubectl delete -k kubernetes/

## On one machine, and does the prediction hold?

    docker compose up            # VLLM_IMAGE and PROMETHEUS_IMAGE pinned by digest
    workbench verify --bundle .  # starts vLLM here, replays load, compares with prediction.json
"""
