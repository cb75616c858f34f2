"""What one replica of a plan will show: the claim that verify tests."""

from __future__ import annotations

from collections.abc import Sequence
from math import isnan

import pandas as pd

from serving.errors import InputError
from serving.plan import Plan
from simulations.engine import estimate, percentiles, simulate_workload
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.result import Prediction
from simulations.traffic import Workload
from simulations.uncertainty import with_draws


def predict(
    plan: Plan,
    latency: LatencyModel,
    workload: Workload,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    force: bool = False,
) -> Prediction:
    """What one replica of the plan will show under a workload, as `Measurement.summary` has it.

    Intervals are over seeds, widened by the draws of the model's coefficients.

    Args:    force: go beyond what the model was fitted to, and say so.
    Raises:  InputError: no seeds, or nothing is sent after the warm-up.
             ExtrapolationError: steps far outside what the model was fitted to.
    """
    if not seeds:
        raise InputError("seeds(=()) must not be empty", remedy="Give at least one seed.")
    beyond = check_range(latency, plan.engine, workload, force=force)

    def found(model: LatencyModel, seed: int) -> dict[str, float]:
        return _figures(simulate_workload(workload, model, plan.engine, seed=seed), workload, seed)

    per_seed = [found(latency, seed) for seed in seeds]
    drawn = [found(latency.draw(i), seeds[0]) for i in range(len(latency.draws))]
    metrics = {
        name: estimate([row[name] for row in per_seed])
        for name in per_seed[0]
        if not isnan(per_seed[0][name])
    }
    metrics, of_model = with_draws(metrics, drawn)
    return Prediction(
        workload=workload,
        metrics=metrics,
        of_model=of_model,
        doubts=(*latency.doubts, *beyond),
    )


def _figures(requests: pd.DataFrame, workload: Workload, seed: int) -> dict[str, float]:
    """Percentiles of requests sent after the warm-up, and their output tokens a second."""
    counted = requests[requests["arrived_at_s"] >= workload.warmup_s]
    if counted.empty:
        raise InputError(
            f"the workload sends nothing after warmup_s(={workload.warmup_s}) with seed {seed}",
            remedy="Lengthen duration_s or raise the rate.",
        )
    return {**percentiles(counted), "output_tokens_per_s": output_tokens_per_s(counted, workload)}


def output_tokens_per_s(counted: pd.DataFrame, workload: Workload) -> float:
    """Output tokens over the time from the end of the warm-up to the last answer."""
    lasted_s = counted["end_s"].max() - workload.warmup_s
    return float(counted["output_tokens"].sum() / lasted_s)
