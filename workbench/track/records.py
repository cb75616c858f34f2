"""What MLflow shall say of each stage's result: records, without MLflow.

Metric names are the same for every variant, so that the chart view compares variants at a glance;
`variant` is a parameter. What holds several values along one axis (batch sizes, rates, trials) is a
curve, with that axis as the metric's step.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from serving.plan import Plan, Variant
from serving.values import Estimate
from simulations.latency import LatencyModel
from simulations.traffic import Workload

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.tune import Tuning
    from workbench.verify import Verification


@dataclass(frozen=True)
class Record:
    """What one run will hold. `curves` are (metric, step, value); texts become artifacts."""

    stage: str
    name: str
    params: Mapping[str, str]
    metrics: Mapping[str, float] = field(default_factory=dict)
    tags: Mapping[str, str] = field(default_factory=dict)
    curves: Sequence[tuple[str, int, float]] = ()
    texts: Mapping[str, str] = field(default_factory=dict)
    folders: Mapping[str, Path] = field(default_factory=dict)
    """Artifact folder -> what is copied into it. Not part of the identity."""

    def key(self) -> str:
        """A digest of the content: two records with the same key say the same."""
        identity = [self.stage, self.name, self.params, self.metrics, self.tags]
        content = json.dumps([*identity, self.curves, self.texts], sort_keys=True, default=str)
        return hashlib.sha256(content.encode()).hexdigest()[:32]


def of_pipeline(name: str, settings: Mapping[str, Any]) -> Record:
    """The parent of all others."""
    return Record("pipeline", name, flat(settings))


def of_variant(variant: Variant) -> Record:
    """Size and quality."""
    quality = dict(variant.quality) if variant.quality else {}
    made = variant.model_dump(mode="json", exclude={"quality", "size_bytes", "name"})
    return Record(
        "compress",
        variant.name,
        params={**flat(made), "variant": variant.name},
        metrics={"size_mib": variant.size_mib, **_numbers(quality)},
        texts={"variant.json": variant.model_dump_json(indent=2)},
    )


def of_measurement(measurement: Measurement, folder: Path | None) -> Record:
    """One load on one engine: every latency metric, and the files in `folder`."""
    load, level = _load(measurement)
    environment = measurement.environment
    return Record(
        "measure",
        measurement.name,
        params={
            "variant": measurement.variant.name,
            "mode": measurement.mode,
            load: f"{level:g}",
            **_lengths(measurement.workload),
            "seed": str(measurement.workload.seed),
            "duration_s": f"{measurement.workload.duration_s:g}",
            **flat(measurement.engine.kwargs(), "engine."),
        },
        metrics={
            **measurement.summary(),
            "start_s": measurement.replica.start_s,
            "kv_blocks": measurement.replica.kv_blocks,
        },
        tags={
            "hardware": environment.hardware,
            "python": environment.python,
            **{f"version.{name}": text for name, text in environment.versions.items()},
            "valid": "no: " + "; ".join(measurement.invalid) if measurement.invalid else "yes",
        },
        folders={"measurement": folder} if folder else {},
    )


def of_sweeps(measurements: Sequence[Measurement]) -> Iterator[Record]:
    """One record per variant and mode, its metrics curves over batch size or (rounded) rate.

    Repeats are averaged, so that a step has one value.
    """
    groups: dict[tuple[str, str, str], list[dict[str, float]]] = {}
    for measurement in measurements:
        load, level = _load(measurement)
        group = (measurement.variant.name, measurement.mode, load)
        groups.setdefault(group, []).append({"step": round(level), **measurement.summary()})
    for (variant, mode, load), points in groups.items():
        means = pd.DataFrame(points).groupby("step").mean()
        yield Record(
            "sweep",
            f"{variant} {mode} by {load}",
            params={"variant": variant, "mode": mode, "step": load, "points": str(len(points))},
            curves=[
                (str(name), int(step), float(value))
                for name, column in means.items()
                for step, value in column.items()
            ],
        )


def of_latency_model(model: LatencyModel) -> Record:
    """Coefficients, cold start and held-out errors."""
    values = model.model_dump()
    return Record(
        "fit",
        model.variant,
        params={"variant": model.variant, **flat(values["fitted_range"], "fitted_range.")},
        metrics={
            **{name: value for name, value in values.items() if name.endswith("_s")},
            "n_steps": model.n_steps,
            "cold_start_s": model.cold_start.total_s,
            **_numbers(model.heldout_error, "heldout_error."),
        },
        tags={"source": model.source, "cold_start_source": model.cold_start.source},
        texts={"latency_model.json": model.model_dump_json(indent=2)},
    )


def of_tuning(tuning: Tuning) -> Iterator[Record]:
    """Each baseline, then the winner, under the same metric names; the trials as curves."""
    for row in tuning.baselines.to_dict("records"):
        values = {str(name): value for name, value in row.items()}
        yield Record("baseline", row["name"], {"candidate": row["name"]}, _numbers(values))
    result = tuning.winner_result
    yield Record(
        "tune",
        tuning.winner.name,
        params={"candidate": "winner", **_plan(tuning.winner)},
        metrics={**_numbers(result.metrics), "keeps_slo": float(result.keeps_slo)},
        curves=[
            (f"trial.{name}", int(trial["number"]), value)
            for trial in tuning.trials.to_dict("records")
            for name, value in _numbers({str(key): value for key, value in trial.items()}).items()
            if name in {"gpu_hours", "ttft_p99_s", "keeps_slo"}
        ],
        texts={
            "plan.json": tuning.winner.model_dump_json(indent=2),
            "prediction.json": tuning.prediction.model_dump_json(indent=2),
            "trials.csv": tuning.trials.to_csv(index=False),
            "baselines.csv": tuning.baselines.to_csv(index=False),
        },
    )


def of_bundle(bundle: Path, plan: Plan) -> Record:
    """The exported folder and the plan that it ships."""
    sizes = {
        path.relative_to(bundle).as_posix(): path.stat().st_size
        for path in sorted(bundle.rglob("*"))
        if path.is_file()
    }
    return Record(
        "export",
        bundle.name,
        params={"bundle": bundle.name, **_plan(plan)},
        metrics={"files": len(sizes), "bytes": sum(sizes.values())},
        texts={"files.json": json.dumps(sizes, indent=2)},
        folders={"bundle": bundle},
    )


def of_verification(verification: Verification) -> Record:
    """Predicted and measured of each metric, and whether the prediction was true."""
    compared = {
        f"{column}/{row['metric']}": float(row[column])
        for row in verification.rows.to_dict("records")
        for column in ("predicted", "measured", "relative_error")
    }
    return Record(
        "verify",
        "verify",
        params={},
        metrics={"holds": float(verification.holds), **compared},
        texts={"rows.csv": verification.rows.to_csv(index=False)},
    )


def _load(measurement: Measurement) -> tuple[str, float]:
    """What a sweep varies: ('batch', concurrency) of a closed loop, else ('rate_rps', rate)."""
    if measurement.batch is not None:
        return "batch", measurement.batch
    return "rate_rps", measurement.rate_rps or 0.0


def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, str]:
    """Nested mappings as dotted names, each value as text."""
    texts: dict[str, str] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            texts |= flat(value, f"{prefix}{name}.")
        else:
            text = value if isinstance(value, str) else json.dumps(value, default=str)
            texts[f"{prefix}{name}"] = text if len(text) <= 500 else text[:497] + "..."
    return texts


def _plan(plan: Plan) -> dict[str, str]:
    keep = plan.model_dump(mode="json", exclude={"variant", "schema_version"}, exclude_none=True)
    return {"variant": plan.variant.name, **flat(keep)}


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    """What is a number; an estimate also as its interval, in the chart sections low and high."""
    numbers: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Estimate):
            numbers[prefix + name] = value.value
            numbers[f"low/{prefix}{name}"] = value.low
            numbers[f"high/{prefix}{name}"] = value.high
        elif isinstance(value, int | float | np.integer | np.floating | np.bool_):
            numbers[prefix + name] = float(value)
    return numbers


def _lengths(workload: Workload) -> dict[str, str]:
    pair = {"prompt_tokens": workload.prompt_tokens, "output_tokens": workload.output_tokens}
    return {
        name: str(law.tokens)
        if law.kind == "fixed"
        else f"{law.kind}, median {law.median_tokens:g}, mean {law.mean_tokens:g},"
        f" {law.min_tokens} to {law.max_tokens}"
        for name, law in pair.items()
    }
