"""A twin of three lines in place of the real one, and a search that is killed on the way."""

from __future__ import annotations

import os
import signal
import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from serving.hpa import REQUESTS_RUNNING, milli
from serving.plan import EngineArgs, Plan, Quality, Slo, Variant
from serving.values import Estimate
from simulations.early import Stop
from simulations.engine import estimate
from simulations.fleet import Cluster
from simulations.latency import ColdStart, FittedRange, LatencyModel
from simulations.promise import broken
from simulations.result import SimResult
from simulations.traffic import Fixed, Poisson, Workload
from workbench.tune import Candidate, Tuning, tune

ENGINE = EngineArgs(max_model_len=1024, max_num_seqs=8, max_num_batched_tokens=1024)
SLO = Slo(ttft_p99_s=0.5)
WORKLOAD = Workload(
    arrivals=Poisson(rate_rps=30),
    prompt_tokens=Fixed(tokens=32),
    output_tokens=Fixed(tokens=16),
    duration_s=300,
)
NEEDED = 4.0
"""Replicas that the made-up traffic needs at its peak."""


def latency(variant: str, speed: float = 1.0, **changes: Any) -> LatencyModel:
    fields: dict[str, Any] = {
        "variant": variant,
        "base_s": 0.02 / speed,
        "per_seq_s": 9e-4 / speed,
        "per_token_s": 1e-4 / speed,
        "per_kv_token_s": 0.0,
        "kv_blocks": 4096,
        "cold_start": ColdStart(start_s=20, source="made up"),
        "fitted_range": FittedRange(prefill_tokens=512, decode_seqs=8, kv_tokens=1024),
        "n_steps": 1,
        "source": "made up",
    }
    return LatencyModel(**(fields | changes))


def candidate(name: str, speed: float = 1.0, kept: float | None = 1.0, **changes: Any) -> Candidate:
    """A variant that keeps this share of its parent's accuracy; None: nobody knows."""
    e = Estimate(value=1, low=1, high=1, n=1)
    quality = None
    if kept is not None:
        quality = Quality(
            perplexity=e,
            perplexity_ratio=e,
            agreement=e,
            kl_nats=e,
            task_accuracy=e,
            recovery=Estimate(value=kept, low=kept, high=kept, n=1),
        )
    parent = None if name == "parent" else "parent"
    variant = Variant(name=name, model="somewhere", parent=parent, quality=quality)
    return Candidate(variant=variant, latency=latency(name, speed, **changes))


def fleet_of(plan: Plan) -> tuple[float, float]:
    """Replicas at the peak and on average: the lower the target, the more."""
    if plan.hpa is None:
        assert plan.replicas is not None
        return float(plan.replicas), float(plan.replicas)
    source = plan.hpa.metrics[0]
    metric = source.pods or source.external or source.object
    assert metric is not None
    held = metric.target.average_value or metric.target.value
    assert held is not None
    target = milli(held) / 1000
    share = target / plan.engine.max_num_seqs if metric.metric.name == REQUESTS_RUNNING else 2.0
    wanted = NEEDED / max(share, 1e-3) ** 0.5
    peak = float(np.clip(wanted, plan.hpa.min_replicas, plan.hpa.max_replicas)) + plan.warm_spares
    low = float(plan.hpa.min_replicas + plan.warm_spares)
    return peak, (peak + 2 * low) / 3


def simulate(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    *,
    seeds: Sequence[int],
    cluster: Cluster | None,
    stop: Stop | None = None,
    watched: bool = True,
) -> SimResult:
    """TTFT grows with the cube of what is missing; seeds differ by some percent."""
    speed = 0.02 / latency.base_s
    peak, mean = fleet_of(plan)
    rows = []
    for seed in seeds:
        unlucky = 1 + 0.05 * np.random.default_rng(seed).random()
        ttft_s = 0.45 * unlucky * (NEEDED / speed / peak) ** 3
        hours = 24 * mean * plan.gpus_per_replica
        rows.append(
            {
                "seed": seed,
                "ttft_p99_s": ttft_s,
                "gpu_hours": hours,
                "cost_usd": hours * plan.gpu_usd_per_hour,
                "slo_attainment": min(1.0, 0.5 / ttft_s),
                "replicas_max": peak,
            }
        )
    per_seed = pd.DataFrame(rows)
    metrics = {
        name: estimate(per_seed[name].tolist()) for name in per_seed.columns if name != "seed"
    }
    t_s = np.arange(0, workload.duration_s, 15.0)
    timeline = pd.DataFrame(
        {"t_s": t_s, "offered_rps": 20 + t_s / 30, "replicas_ready": 5, "replicas_desired": 4}
    )
    return SimResult(
        plan_name=plan.name,
        metrics=metrics,
        per_seed=per_seed,
        timeline=timeline,
        alerts=pd.DataFrame({"alert": pd.Series(dtype=str)}),
        keeps_slo=not broken(metrics, plan.slo),
    )


def killing(plan: Plan, *args: Any, **kwargs: Any) -> SimResult:
    """Whoever simulates a fleet with a warm spare is killed, as the kernel does for want of memory."""
    if plan.warm_spares == 1:
        os.kill(os.getpid(), signal.SIGKILL)
    return simulate(plan, *args, **kwargs)


def telling_where(folder: Path, *args: Any, **kwargs: Any) -> SimResult:
    """Goes on when both nodes have something to do; GPU hours tell which this one was."""
    import ray

    node = ray.get_runtime_context().get_node_id()
    (folder / node).touch()
    deadline = time.monotonic() + 120
    while len(list(folder.iterdir())) < 2 and time.monotonic() < deadline:
        time.sleep(0.05)
    result = simulate(*args, **kwargs)
    told = float(int(node[:8], 16))
    hours = {"gpu_hours": Estimate(value=told, low=told, high=told, n=1)}
    return SimResult(**(vars(result) | {"metrics": {**result.metrics, **hours}}))


def search(folder: Path, **changes: Any) -> Tuning:
    """A search on the stub twin."""
    options: dict[str, Any] = {
        "engine": ENGINE,
        "trials": 16,
        "storage": folder / "study.db",
        "simulate": simulate,
    }
    candidates = changes.pop("candidates", [candidate("parent"), candidate("int8", speed=1.2)])
    slo = changes.pop("slo", SLO)
    return tune(candidates, WORKLOAD, slo, **(options | changes))


def main() -> None:
    """Search, and die without a word in the middle of a trial."""
    folder, calls_left, store = Path(sys.argv[1]), int(sys.argv[2]), sys.argv[3]

    def dying(*args: Any, **kwargs: Any) -> SimResult:
        nonlocal calls_left
        calls_left -= 1
        if calls_left < 0:
            os.kill(os.getpid(), signal.SIGKILL)
        return simulate(*args, **kwargs)

    search(folder, simulate=dying, storage=folder / store)


if __name__ == "__main__":
    main()
