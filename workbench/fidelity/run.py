"""Send loads to a real server, give the twin the same ones, and compare."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import pandas as pd

from serving.errors import MeasurementError
from serving.plan import EngineArgs, Variant
from serving.values import Estimate
from simulations.engine import estimate, simulate_replica
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.predict import output_tokens_per_s
from simulations.traffic import Workload
from simulations.uncertainty import with_draws
from workbench.agreement import compare
from workbench.fidelity.calibrate import calibration_points, model_of
from workbench.fidelity.loads import FidelityStudy, Loads
from workbench.fidelity.result import Fidelity
from workbench.measure.capacity import lazily
from workbench.measure.engine import Engine, OnProgress
from workbench.measure.measurement import Measurement
from workbench.measure.points import Point, StartEngine, once, part, start_server
from workbench.measure.prompts import requests_for
from workbench.measure.validity import NOT_STEADY

T = TypeVar("T")
PERCENTILES = (50, 95, 99)
_LATENCIES = ("ttft", "tpot", "e2e")
_NOISE_SEEDS = range(10)
_BELONGS = (NOT_STEADY, "too short", "preemptions")
"""Marks of what a server near its capacity does, and the twin with it."""


def fidelity(
    study: FidelityStudy,
    variant: Variant,
    latency: LatencyModel | None = None,
    *,
    engine_args: EngineArgs,
    folder: Path,
    start: StartEngine = start_server,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> Fidelity:
    """Compare the twin with a server on loads that its model was not fitted to.

    Repeats of a load have the same arrivals, lengths and prompts, and take turns with the other loads
    (forth and back), so that a slow spell of the machine falls on all. Two repeats differ by what the
    machine does: that is the noise floor. The twin serves the very same schedule, with the scatter of
    the steps drawn ten times and with every draw of the coefficients.

    Where no model is given and the loads do not depend on one (`study.settled`), what it is fitted to is
    measured between the loads, so that drift falls on both; else before them.

    Every run is kept in folder/<point>: the same call goes on after a crash, and tries another model on
    the same runs. A run that cannot be trusted is done again, up to three times, and then left out;
    that a server falls behind at more than it can take is no reason.

    Args:    latency: fitted to other loads; None fits one first, on the same server.
             start: how to get at an engine.
             force: also use what cannot be trusted or lies beyond what was fitted, and say so.
    Raises:  InputError: loads that the engine cannot hold.
             ExtrapolationError: loads far outside what the model was fitted to.
             MeasurementError: no run for the fit can be trusted.
    """
    engine_args = engine_args.serving(variant)
    asked = [] if latency else list(calibration_points(variant, engine_args, seed=study.seed))
    calibration = [_Job(point, folder / "calibration") for point in asked]
    with ExitStack() as stack:
        engine = lazily(stack, variant, engine_args, start, folder)
        begins = 0.0
        if calibration and not study.settled:
            begins, progress = 0.25, part(on_progress, 0.0, 0.25)
            latency = model_of(_measured(calibration, engine, progress), seed=study.seed)
            calibration = []
        loads = Loads.of(study, latency, engine_args, folder)
        doubts = _beyond(latency, loads, engine_args, force=force)
        for workload in loads.workloads.values():
            requests_for(variant, workload, engine_args)  # refuse before an engine is started
        jobs = mixed(
            calibration, [_Job(p, folder, usable) for p in load_points(loads, variant, engine_args)]
        )
        measured = _measured(jobs, engine, part(on_progress, begins, 0.97))
    if on_progress is not None:
        on_progress("asking the twin", 0.97)
    runs = [m for job, m in zip(jobs, measured, strict=True) if job.folder == folder]
    if latency is None:
        fitted_to = [m for job, m in zip(jobs, measured, strict=True) if job.folder != folder]
        latency = model_of(fitted_to, seed=study.seed)
        doubts = _beyond(latency, loads, engine_args, force=force)
    left_out = [f"{m.name}: {why}" for m in runs for why in m.invalid if not (force or usable(m))]
    doubts += [f"{m.name}: {why}" for m in runs for why in m.invalid if force and not usable(m)]
    kept = [m for m in runs if force or usable(m)]
    points = pd.DataFrame([_point(loads, m) for m in kept])
    found = Fidelity(
        loads=loads,
        rows=_rows(loads, latency, engine_args, points),
        points=points,
        latency=latency,
        measured_on=runs[0].environment.describe(),
        doubts=tuple(dict.fromkeys([*doubts, *_other_cache(latency, runs[0])])),
        left_out=tuple(left_out),
    )
    found.write(folder)
    return found


def usable(measured: Measurement) -> bool:
    """Whether nothing speaks against a run but what belongs to its load."""
    return all(any(mark in reason for mark in _BELONGS) for reason in measured.invalid)


@dataclass(frozen=True)
class _Job:
    """A point, where it is kept, and whether what came of it will do."""

    point: Point
    folder: Path
    usable: Callable[[Measurement], bool] = lambda measured: not measured.invalid


def _measured(
    jobs: Sequence[_Job], engine: Callable[[], Engine], on_progress: OnProgress | None
) -> list[Measurement]:
    return [
        once(
            job.point,
            engine,
            job.folder,
            usable=job.usable,
            on_progress=part(on_progress, number / len(jobs), (number + 1) / len(jobs)),
        )
        for number, job in enumerate(jobs)
    ]


def mixed(*queues: Sequence[T]) -> list[T]:
    """Several queues as one, each in its order and spread evenly over the whole."""
    placed = [((i + 0.5) / len(queue), one) for queue in queues for i, one in enumerate(queue)]
    return [one for _, one in sorted(placed, key=lambda place: place[0])]


def load_points(loads: Loads, variant: Variant, engine_args: EngineArgs) -> list[Point]:
    """Every load once, then all of them backwards, and so on."""
    names = list(loads.workloads)
    return [
        Point(_named(variant, name, repeat), variant, loads.workloads[name], "server", engine_args)
        for repeat in range(loads.study.repeats)
        for name in (reversed(names) if repeat % 2 else names)
    ]


def _beyond(
    latency: LatencyModel | None, loads: Loads, engine_args: EngineArgs, *, force: bool
) -> list[str]:
    """What a model was not fitted to, or was fitted to as well; nothing while there is none.

    Raises:  ExtrapolationError: loads far outside what the model was fitted to.
    """
    if latency is None:
        return []
    doubts = [*latency.doubts, *_fitted_too(latency, loads)]
    for workload in loads.workloads.values():
        doubts += check_range(latency, engine_args, workload, force=force)
    return doubts


def _named(variant: Variant, load: str, repeat: int) -> str:
    return f"{variant.name}-{load.replace('%', 'pct')}-repeat{repeat}"


def _point(loads: Loads, measured: Measurement) -> dict[str, Any]:
    """What one run showed, and which load and repeat it was."""
    _, load, repeat = measured.name.rsplit("-", 2)
    done = measured.latencies()
    return {
        "name": measured.name,
        "load": load.replace("pct", "%"),
        "repeat": int(repeat.removeprefix("repeat")),
        "requests": len(done),
        "started_at": measured.environment.started_at,
        **figures(done, measured.workload),
    }


def figures(counted: pd.DataFrame, workload: Workload) -> dict[str, float]:
    """Percentiles of latency and the throughput of the requests that count; NaN where none does."""
    named = {
        f"{latency}_p{q}_s": float(np.percentile(values, q)) if len(values) else np.nan
        for latency in _LATENCIES
        for values in [counted[f"{latency}_s"].dropna().to_numpy()]
        for q in PERCENTILES
    }
    return {**named, "output_tokens_per_s": output_tokens_per_s(counted, workload)}


def predicted(
    workload: Workload, latency: LatencyModel, engine_args: EngineArgs
) -> tuple[dict[str, Estimate], dict[str, float]]:
    """What the twin says of exactly this schedule, and which share of its intervals is the model's."""
    schedule = workload.schedule()

    def found(model: LatencyModel, seed: int) -> dict[str, float]:
        served = simulate_replica(schedule, model, engine_args, seed=seed)
        return figures(served[served["arrived_at_s"] >= workload.warmup_s], workload)

    rows = [found(latency, seed) for seed in _NOISE_SEEDS]
    drawn = [found(latency.draw(i), 0) for i in range(len(latency.draws))]
    metrics = {name: estimate([row[name] for row in rows]) for name in rows[0]}
    return with_draws({n: e for n, e in metrics.items() if np.isfinite(e.value)}, drawn)


def _rows(
    loads: Loads, latency: LatencyModel, engine_args: EngineArgs, points: pd.DataFrame
) -> pd.DataFrame:
    study, tables = loads.study, []
    for name, workload in loads.workloads.items():
        measured = points[points["load"] == name] if len(points) else points
        if measured.empty:
            continue
        metrics, of_model = predicted(workload, latency, engine_args)
        table = compare(metrics, measured, study.target, noise_floors=study.noise_floors)
        table.insert(0, "load", name)
        table.insert(1, "rate_rps", len(workload.schedule()) / workload.duration_s)
        table.insert(2, "requests", float(measured["requests"].median()))
        table.insert(3, "repeats", len(measured))
        table.insert(8, "of_model", [of_model.get(metric, np.nan) for metric in metrics])
        right = table["relative_error"].abs() <= table["target"]
        table["verdict"] = np.select(
            [right, table["holds"]], ["within target", "within noise"], "missed"
        )
        tables.append(table)
    if not tables:
        raise MeasurementError(
            "no run of any load can be trusted", remedy="Measure again on a quiet machine."
        )
    return pd.concat(tables, ignore_index=True)


def _fitted_too(latency: LatencyModel, loads: Loads) -> list[str]:
    """Lengths that were fitted as well: what is then tested is less than it seems."""
    schedule = next(iter(loads.workloads.values())).schedule()
    drawn = len({*zip(schedule.prompt_tokens, schedule.output_tokens, strict=True)}) > 1
    mean = f"{schedule.prompt_tokens.mean():.0f}/{schedule.output_tokens.mean():.0f}"
    known = {shape.split()[0] for shape in latency.shapes}
    if ("~" if drawn else "") + mean in known:
        return [f"the model was fitted to lengths like these ({mean} tokens) as well"]
    return []


def _other_cache(latency: LatencyModel, measured: Measurement) -> list[str]:
    """A KV cache of another size than the model's, where the engine says its size."""
    blocks = measured.replica.kv_blocks
    if blocks in (0, latency.kv_blocks):
        return []
    return [f"the server has {blocks} KV blocks, the model {latency.kv_blocks}"]
