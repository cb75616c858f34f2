"""What the winner is held against, on the same variant, engine, traffic and seeds.

Only the fleet's size over time differs, so the difference is the autoscaler's. A rule of practice
may take as many replicas as the winner's search might have.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd

from serving.errors import InfeasibleError
from serving.plan import Plan
from simulations.bounds import static_peak
from simulations.clairvoyant import clairvoyant_bound
from simulations.fleet import Cluster
from simulations.latency import LatencyModel
from simulations.result import SimResult
from simulations.traffic import Workload
from workbench.tune.evaluate import Simulate
from workbench.tune.rules import queue_hpas, rule_hpa

CLAIRVOYANT = "clairvoyant bound"
RANDOM = "random-search"


def baselines(
    winner: Plan,
    rivals: Sequence[Mapping[str, Any]],
    workload: Workload,
    latency: LatencyModel,
    *,
    seeds: Sequence[int],
    cluster: Cluster,
    max_replicas: int,
    simulate: Simulate,
    on_progress: Callable[[str, float], None],
) -> pd.DataFrame:
    """Simulate the yardsticks.

    The static fleet is the smallest that keeps the SLO on these very seeds: with hindsight that
    nobody has. A static fleet that cannot keep it at any size is left out.

    Args:    rivals: rows of what else was simulated, before the bound.
    Returns: DataFrame: name, variant, keeps_slo, and the metrics of SimResult; of the clairvoyant
             bound only gpu_hours and cost_usd.
    """
    rows = []
    on_progress("static fleet of the peak", 0.0)
    try:
        size = static_peak(winner, workload, latency, seeds=seeds, cluster=cluster)
        plans = [_changed(winner, "static-peak", replicas=size, hpa=None)]
    except InfeasibleError:
        plans = []
    article = rule_hpa("article", winner.engine.max_num_seqs, max_replicas)
    for name, hpa in {"article-hpa": article, **queue_hpas(max_replicas)}.items():
        plans.append(_changed(winner, name, hpa=hpa.model_dump()))
    for number, plan in enumerate(plans):
        on_progress(plan.name, 0.4 + 0.5 * number / len(plans))
        rows.append(row(plan, simulate(plan, workload, latency, seeds=seeds, cluster=cluster)))
    on_progress(CLAIRVOYANT, 0.9)
    rows.extend(dict(rival) for rival in rivals)
    rows.append(_clairvoyant(winner, workload, latency, seeds))
    return pd.DataFrame(rows)


def row(plan: Plan, result: SimResult) -> dict[str, Any]:
    """One row of the table."""
    return {
        "name": plan.name,
        "variant": plan.variant.name,
        "keeps_slo": result.keeps_slo,
        **{name: estimate.value for name, estimate in result.metrics.items()},
    }


def _changed(plan: Plan, name: str, **fields: Any) -> Plan:
    return Plan.model_validate(plan.model_dump() | {"name": name, "warm_spares": 0} | fields)


def _clairvoyant(
    plan: Plan, workload: Workload, latency: LatencyModel, seeds: Sequence[int]
) -> dict[str, Any]:
    hours = float(
        np.mean(
            [
                clairvoyant_bound(
                    workload,
                    latency,
                    plan.engine,
                    plan.slo,
                    seed=seed,
                    gpus_per_replica=plan.gpus_per_replica,
                    least=0 if plan.hpa is not None and plan.hpa.min_replicas == 0 else 1,
                    result_cache=plan.gateway.result_cache is not None,
                )
                for seed in seeds
            ]
        )
    )
    return {
        "name": CLAIRVOYANT,
        "variant": plan.variant.name,
        "keeps_slo": True,
        "gpu_hours": hours,
        "cost_usd": hours * plan.gpu_usd_per_hour,
    }
