"""What the winner is held against, on the same variant, engine, traffic and seeds.

Only the fleet's size over time differs, so the difference is the autoscaler's. A rule of practice
may take as many replicas as the winner's search might have.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pandas as pd

from serving.errors import InfeasibleError
from serving.plan import Plan
from simulations.bounds import static_peak
from simulations.clairvoyant import clairvoyant_bound
from simulations.latency import LatencyModel
from simulations.traffic import Workload
from workbench.tune.equals import ARTICLE_HPA
from workbench.tune.rules import queue_hpas, rule_hpa
from workbench.tune.twin import Twin

CLAIRVOYANT = "clairvoyant bound"
RANDOM = "random-search"


def baselines(
    winner: Plan,
    rivals: Sequence[Plan],
    twin: Twin,
    seeds: Sequence[int],
    on_progress: Callable[[str, float], None],
) -> pd.DataFrame:
    """Simulate the yardsticks.

    The static fleet is the smallest that keeps the SLO on these very seeds: with hindsight that
    nobody has. A static fleet that cannot keep it at any size is left out.

    Args:    rivals: whatever else the winner is held against, with its own name.
    Returns: DataFrame: name, variant, keeps_slo, and the metrics of SimResult; of the clairvoyant
             bound only gpu_hours and cost_usd.
    """
    latency = twin.ground.candidate(winner.variant.name).latency
    max_replicas = twin.ground.most_replicas
    on_progress("static fleet of the peak", 0.0)
    try:
        size = static_peak(
            winner,
            twin.workload,
            latency,
            keeps=lambda plan: twin.verdicts([plan], seeds)[0].keeps_slo,
        )
        plans = [_changed(winner, "static-peak", replicas=size, hpa=None)]
    except InfeasibleError:
        plans = []
    plans.append(article_of(winner, max_replicas))
    for name, hpa in queue_hpas(max_replicas).items():
        plans.append(_changed(winner, name, hpa=hpa.model_dump()))
    plans.extend(rivals)
    on_progress(f"{len(plans)} baselines", 0.4)
    rows = [
        {
            "name": plan.name,
            "variant": plan.variant.name,
            "keeps_slo": found.keeps_slo,
            **{name: estimate.value for name, estimate in found.metrics.items()},
        }
        for plan, found in zip(plans, twin.verdicts(plans, seeds), strict=True)
    ]
    on_progress(CLAIRVOYANT, 0.9)
    rows.append(_clairvoyant(winner, twin.workload, latency, seeds))
    return pd.DataFrame(rows)


def article_of(winner: Plan, max_replicas: int) -> Plan:
    """The winner's variant and engine under the autoscaler of the usual advice."""
    article = rule_hpa("article", winner.engine.max_num_seqs, max_replicas)
    return _changed(winner, ARTICLE_HPA, hpa=article.model_dump())


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
