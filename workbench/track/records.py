"""What MLflow shall say of each stage's result: records, without MLflow.

Metric names are the same for every variant, so that the chart view compares variants at a glance;
`variant` is a parameter. What holds several values along one axis (batch sizes, rates, trials) is a
curve, with that axis as the metric's step. A slash in a metric's name makes a section of charts.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pandas as pd

from serving.plan import Plan, Variant
from serving.values import Estimate
from simulations import theme
from simulations.latency import Coefficients, LatencyModel
from simulations.traffic import Fixed, LogNormal, Workload
from workbench.track.origin import on_which
from workbench.track.record import (
    AUTOSCALERS,
    POINTS,
    VARIANTS,
    Record,
    cut,
    doubted,
    flat,
    numbers,
    without_intervals,
)
from workbench.track.system import samples, span_ms
from workbench.track.traces import traced

if TYPE_CHECKING:
    from workbench.measure import Measurement
    from workbench.tune import Tuning
    from workbench.verify import Verification


_COLOUR = "mlflow.runColor"
_COMPARED = (
    "output_tokens_per_s",
    *("ttft_p50_s", "ttft_p99_s", "tpot_p50_s", "tpot_p99_s", "e2e_p50_s", "e2e_p99_s"),
)
"""What is worth a chart where variants are compared."""

_JUDGED = ("output_tokens_per_s", "ttft_p99_s", "tpot_p99_s", "usd_per_million_tokens")
"""What a variant at a load is chosen by."""


def of_pipeline(name: str, settings: Mapping[str, Any]) -> Record:
    """The parent of all others."""
    return Record("pipeline", name, flat(settings))


def of_variant(variant: Variant) -> Record:
    """Size and quality."""
    made = variant.model_dump(mode="json", include={"model", "revision", "method", "parent"})
    tags = flat(variant.made_with, "made_with.")
    if variant.quality is not None:
        tags["judged_on"] = cut(variant.quality.judged_on)
    if variant.notes:
        tags["notes"] = cut("; ".join(variant.notes))
    return Record(
        "compress",
        variant.name,
        params={
            **flat(made),
            **flat(variant.parameters, "parameters."),
            **flat(variant.engine, "engine."),
            "variant": variant.name,
        },
        metrics=_worth(variant),
        tags=tags,
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
            **_cold_start(measurement),
            "kv_blocks": measurement.replica.kv_blocks,
        },
        tags={
            "hardware": environment.hardware,
            "python": environment.python,
            **{f"version.{name}": text for name, text in environment.versions.items()},
            "valid": "no: " + "; ".join(measurement.invalid) if measurement.invalid else "yes",
        },
        folders={"measurement": folder} if folder else {},
        origin=on_which(environment),
        span_ms=span_ms(measurement),
        system=samples(measurement),
    )


def of_sweeps(measurements: Sequence[Measurement]) -> Iterator[Record]:
    """One record per variant and mode: curves over batch size or (rounded) rate, and the quality.

    Repeats are averaged, so that a step has one value.
    """
    groups: dict[tuple[str, str, str], list[Measurement]] = {}
    for measurement in measurements:
        load, _ = _load(measurement)
        group = (measurement.variant.name, measurement.mode, load)
        groups.setdefault(group, []).append(measurement)
    parent = next((m.variant.name for m in measurements if m.variant.parent is None), None)
    looks = theme.looks([name for name, _, _ in groups], parent)
    for (name, mode, load), points in groups.items():
        rows = [{"step": round(_load(point)[1]), **point.summary()} for point in points]
        means = pd.DataFrame(rows).groupby("step").mean()
        variant = points[0].variant
        yield Record(
            "sweep",
            f"{name} {mode}",
            params={"variant": name, "mode": mode, "method": variant.method, "step": load},
            metrics=without_intervals(_worth(variant)),
            tags={_COLOUR: looks[name].colour},
            experiment=VARIANTS,
            curves=[
                (f"{load}/{metric}", step, float(value))
                for metric in _COMPARED
                for step, value in zip(means.index.tolist(), means[metric], strict=True)
            ],
        )


def of_points(
    measurements: Sequence[Measurement], usd_per_hour: float | None = None
) -> Iterator[Record]:
    """One record per variant and load, repeats averaged: which variant, at which load, at which cost.

    Few parameters and metrics, so that a parallel-coordinates plot of all of them can be read.
    """
    points: dict[tuple[str, str, str, float], list[Measurement]] = {}
    for measurement in measurements:
        key = (measurement.variant.name, measurement.mode, *_load(measurement))
        points.setdefault(key, []).append(measurement)
    parent = next((m.variant.name for m in measurements if m.variant.parent is None), None)
    looks = theme.looks([name for name, *_ in points], parent)
    for (name, mode, load, level), repeats in points.items():
        table = pd.DataFrame([m.summary(usd_per_hour=usd_per_hour) for m in repeats])
        yield Record(
            "point",
            f"{name} {load} {level:g}",
            params={"variant": name, "mode": mode, load: f"{level:g}"},
            metrics={str(m): float(table[m].mean()) for m in _JUDGED if m in table},
            tags={_COLOUR: looks[name].colour},
            experiment=POINTS,
            origin=on_which(repeats[0].environment),
        )


def of_latency_model(model: LatencyModel) -> Record:
    """Coefficients and their spread, cold start and held-out errors, also by shape and load."""
    values = model.model_dump()
    return Record(
        "fit",
        model.variant,
        params={
            "variant": model.variant,
            "assumed": str(model.assumed),
            "shapes": cut(", ".join(model.shapes)),
            **flat(values["fitted_range"], "fitted_range."),
        },
        metrics={
            **{n: v for n, v in values.items() if n.endswith("_s") and isinstance(v, float)},
            **_spread(model.draws),
            "n_steps": model.n_steps,
            "cold_start_s": model.cold_start.total_s,
            **numbers(model.heldout_error, "heldout_error."),
            **numbers(_named(model.heldout_by), "heldout_by."),
        },
        tags={
            "source": model.source,
            "cold_start_source": model.cold_start.source,
            **doubted(model.doubts),
        },
        texts={"latency_model.json": model.model_dump_json(indent=2)},
    )


def _spread(draws: Sequence[Coefficients]) -> dict[str, float]:
    """Standard deviation of each coefficient over its draws."""
    if len(draws) < 2:
        return {}
    table = pd.DataFrame([draw.model_dump() for draw in draws])
    return {f"spread.{name}": float(value) for name, value in table.std().items()}


def _named(by_shape: Mapping[str, Estimate]) -> dict[str, Estimate]:
    """Shapes as MLflow may call a metric: 64-64 x8."""
    return {re.sub(r"[^\w. -]", "-", name): error for name, error in by_shape.items()}


def of_tuning(tuning: Tuning) -> Iterator[Record]:
    """Baselines and winner to compare, under the same metric names; last the search itself."""
    result = tuning.winner_result
    won = {**numbers(result.metrics), "keeps_slo": float(result.keeps_slo)}
    params = {"candidate": "winner", **_plan(tuning.winner)}
    looks = theme.looks(tuning.baselines["name"])
    for row in tuning.baselines.to_dict("records"):
        name = str(row["name"])
        yield Record(
            "candidate",
            name,
            params={"candidate": name, "variant": str(row["variant"])},
            metrics=numbers({str(column): value for column, value in row.items()}),
            tags={_COLOUR: looks[name].colour},
            experiment=AUTOSCALERS,
        )
    yield Record(
        "candidate",
        "winner",
        params=params,
        # A chart of what only the winner has compares nothing.
        metrics={name: value for name, value in won.items() if name in tuning.baselines},
        tags={_COLOUR: theme.VERMILION, **doubted(tuning.doubts)},
        experiment=AUTOSCALERS,
    )
    yield Record(
        "tune",
        tuning.winner.name,
        params=params,
        metrics=won,
        tags=doubted(tuning.doubts),
        curves=[
            (f"trial.{name}", int(trial["number"]), value)
            for trial in tuning.trials.to_dict("records")
            for name, value in numbers({str(key): value for key, value in trial.items()}).items()
            if name in {"gpu_hours", "ttft_p99_s", "keeps_slo"}
        ],
        texts={
            "plan.json": tuning.winner.model_dump_json(indent=2),
            "prediction.json": tuning.prediction.model_dump_json(indent=2),
            "trials.csv": tuning.trials.to_csv(index=False),
            "baselines.csv": tuning.baselines.to_csv(index=False),
        },
    )


def of_bundle(bundle: Path, plan: Plan, doubts: Sequence[str] = ()) -> Record:
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
        tags=doubted(doubts),
        texts={"files.json": json.dumps(sizes, indent=2)},
        folders={"bundle": bundle},
    )


def of_verification(verification: Verification) -> Record:
    """Predicted and measured of each metric, whether the prediction was true, and requests as traces."""
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
        tags=doubted(verification.doubts),
        texts={"rows.csv": verification.rows.to_csv(index=False)},
        traces=traced(replay) if (replay := verification.measurement) is not None else (),
    )


def _worth(variant: Variant) -> dict[str, float]:
    quality = variant.quality
    if quality is None:
        return {"size_mib": variant.size_mib}
    return {
        "size_mib": variant.size_mib,
        **numbers(dict(quality)),
        **numbers(quality.benchmarks, "benchmark/"),
        **numbers(quality.benchmark_recovery, "benchmark_recovery/"),
    }


def _cold_start(measurement: Measurement) -> dict[str, float]:
    """The parts of the start that vLLM named."""
    parts = measurement.replica.cold_start
    known = parts.model_dump(exclude_none=True) if parts else {}
    return {f"cold_start/{name}": value for name, value in known.items()}


def _load(measurement: Measurement) -> tuple[str, float]:
    """What a sweep varies: ('batch', concurrency) of a closed loop, else ('rate_rps', rate)."""
    if measurement.batch is not None:
        return "batch", measurement.batch
    return "rate_rps", measurement.rate_rps or 0.0


def _plan(plan: Plan) -> dict[str, str]:
    keep = plan.model_dump(mode="json", exclude={"variant", "schema_version"}, exclude_none=True)
    return {"variant": plan.variant.name, **flat(keep)}


def _lengths(workload: Workload) -> dict[str, str]:
    pair = {"prompt_tokens": workload.prompt_tokens, "output_tokens": workload.output_tokens}
    return {name: _law(law) for name, law in pair.items()}


def _law(law: Any) -> str:
    """A law of lengths in words; one that has none of its own as its fields."""
    if isinstance(law, Fixed):
        return str(law.tokens)
    if isinstance(law, LogNormal):
        return (
            f"{law.kind}, median {law.median_tokens:g}, mean {law.mean_tokens:g},"
            f" {law.min_tokens} to {law.max_tokens}"
        )
    return cut(str(law))
