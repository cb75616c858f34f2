"""Send loads to a real server (measuring.py), give the twin the same ones, and compare."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.errors import InputError, MeasurementError
from serving.plan import EngineArgs, Variant
from serving.values import Estimate
from simulations.engine import estimate, simulate_replica
from simulations.latency import LatencyModel
from simulations.predict import output_tokens_per_s
from simulations.traffic import Workload
from simulations.uncertainty import with_draws
from workbench.agreement import compare
from workbench.fidelity.calibrate import model_of
from workbench.fidelity.loads import FidelityStudy, Loads
from workbench.fidelity.measuring import beyond, measure_loads, usable
from workbench.fidelity.result import Fidelity
from workbench.measure.engine import OnProgress
from workbench.measure.measurement import Measurement
from workbench.measure.points import StartEngine, part, start_server

PERCENTILES = (50, 95, 99)
_LATENCIES = ("ttft", "tpot", "e2e")
_NOISE_SEEDS = range(10)


def fidelity(
    study: FidelityStudy,
    variant: Variant,
    latency: LatencyModel | None = None,
    *,
    engine_args: EngineArgs,
    folder: Path,
    start: StartEngine = start_server,
    force: bool = False,
    only_kept: bool = False,
    time_limit_s: float | None = None,
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
             only_kept, time_limit_s: as in `measure_loads`.
    Raises:  InputError: loads that the engine cannot hold.
             ExtrapolationError: loads far outside what the model was fitted to.
             MeasurementError: no run for the fit can be trusted, or there was no time for all.
    """
    engine_args = engine_args.serving(variant)
    measured = measure_loads(
        study,
        variant,
        latency,
        engine_args=engine_args,
        folder=folder,
        start=start,
        force=force,
        only_kept=only_kept,
        time_limit_s=time_limit_s,
        on_progress=part(on_progress, 0.0, 0.97),
    )
    if on_progress is not None:
        on_progress("asking the twin", 0.97)
    loads, runs, doubts = measured.loads, measured.of_loads, list(measured.doubts)
    latency = measured.latency
    if not runs:
        raise MeasurementError(
            f"{folder} holds no run of these loads", remedy="Measure first, with the same options."
        )
    if latency is None:
        latency = model_of(measured.fitted_to, seed=study.seed)
        doubts = beyond(latency, loads, engine_args, force=force)
    left_out = [f"{m.name}: {why}" for m in runs for why in m.invalid if not (force or usable(m))]
    doubts += [f"{m.name}: {why}" for m in runs for why in m.invalid if force and not usable(m)]
    kept = [m for m in runs if force or usable(m)]
    points = points_table(kept)
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


def compare_kept(
    folder: Path, latency: LatencyModel | None = None, *, force: bool = False
) -> Fidelity:
    """Compare the twin with the runs that lie in a folder, whole or not: nothing is measured.

    Args:    latency: None fits to what lies in folder/calibration.
    Raises:  InputError: no loads lie there.
             MeasurementError, ExtrapolationError: as `fidelity`.
    """
    heads = sorted(folder.glob("*/measurement.json"))
    if not (folder / "loads.json").exists() or not heads:
        raise InputError(
            f"{folder} holds no runs of loads", remedy="Measure some: `workbench fidelity`."
        )
    first = Measurement.read(heads[0].parent)
    return fidelity(
        Loads.read(folder / "loads.json").study,
        first.variant,
        latency,
        engine_args=first.engine,
        folder=folder,
        force=force,
        only_kept=True,
    )


def points_table(runs: Sequence[Measurement]) -> pd.DataFrame:
    """One row per run: what it showed, and which load and repeat it was."""
    return pd.DataFrame([_point(measured) for measured in runs])


def _point(measured: Measurement) -> dict[str, Any]:
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


def _other_cache(latency: LatencyModel, measured: Measurement) -> list[str]:
    """A KV cache of another size than the model's, where the engine says its size."""
    blocks = measured.replica.kv_blocks
    if blocks in (0, latency.kv_blocks):
        return []
    return [f"the server has {blocks} KV blocks, the model {latency.kv_blocks}"]
