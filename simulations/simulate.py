"""A plan under a workload: the day of a fleet, with intervals over seeds."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from serving.errors import InputError
from serving.plan import Plan, Slo
from simulations.alerts import alerts
from simulations.autoscaler import HpaController
from simulations.engine import check_lengths, estimate, percentiles, request_frame
from simulations.fleet import Cluster, Fleet
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.result import SimResult
from simulations.traffic import ClosedLoop, Workload
from simulations.uncertainty import with_draws

OnProgress = Callable[[str, float], None]
_DAY_S = 86_400.0
_PHASE_STREAM = 3
"""Spawn key of the control loops' phases; 0 to 2 are the traffic's."""


def simulate(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    cluster: Cluster | None = None,
    draws: int = 0,
    force: bool = False,
    on_progress: OnProgress | None = None,
) -> SimResult:
    """Run a plan through a workload once per seed.

    Seed s draws the traffic of `workload.seed + s` and the phases of the control loops, the same
    for every plan (common random numbers), so that plans can be compared pairwise; a seed's run
    depends on no other. Requests sent during the warm-up load the fleet and are not counted. A
    request that is unanswered when the grace ends counts with the time it has waited by then.

    Args:    latency: of the plan's variant, on one replica.
             cluster: None is `Cluster()`.
             draws: so many of the model's draws are simulated too, with the first seed, for the part of
                 the intervals that is the model's.
             force: go beyond what the model was fitted to, and say so.
    Returns: SimResult. Utilisation, KV usage and shares are 0 to 1.
    Raises:  InputError: a closed-loop workload, no seeds, no requests, or requests that the engine
                 refuses.
             ExtrapolationError: steps far outside what the model was fitted to.
    """
    cluster = Cluster() if cluster is None else cluster
    if isinstance(workload.arrivals, ClosedLoop):
        raise InputError(
            "arrivals(='closed') cannot drive a fleet: its rate would follow the fleet's speed",
            remedy="Use Poisson, Gamma or Day arrivals, or `predict` for one replica.",
        )
    if len(seeds) == 0:
        raise InputError("seeds(=()) must not be empty", remedy="Give at least one seed.")
    beyond = check_range(latency, plan.engine, workload, force=force)
    models = [latency.draw(i) for i in range(min(draws, len(latency.draws)))]
    runs = len(seeds) + len(models)

    def report(position: int, doing: str) -> Callable[[float], None]:
        def tell(share: float) -> None:
            if on_progress is not None:
                on_progress(f"{plan.name}, {doing}", (position + share) / runs)

        return tell

    rows: list[dict[str, float]] = []
    fired: list[pd.DataFrame] = []
    timelines: list[pd.DataFrame] = []
    for position, seed in enumerate(seeds):
        tell = report(position, f"seed {seed}")
        row, timeline, alerted = _one_run(plan, workload, latency, cluster, seed, tell)
        rows.append({"seed": seed, **row})
        timelines.append(timeline)
        fired.append(alerted.assign(seed=seed))
    per_seed = pd.DataFrame(rows).astype({"seed": int})
    metrics = {
        name: estimate(per_seed[name].tolist())
        for name in per_seed.columns
        if name != "seed" and per_seed[name].notna().all()
    }
    drawn = [
        _one_run(plan, workload, model, cluster, seeds[0], report(len(seeds) + i, f"draw {i}"))[0]
        for i, model in enumerate(models)
    ]
    metrics, of_model = with_draws(metrics, drawn)
    return SimResult(
        plan_name=plan.name,
        metrics=metrics,
        per_seed=per_seed,
        timeline=timelines[0],
        alerts=pd.concat(fired, ignore_index=True)[["alert", "seed", "started_at_s", "ended_at_s"]],
        keeps_slo=all(
            name not in metrics or metrics[name].high <= limit
            for name, limit in plan.slo.limits().items()
        ),
        doubts=(*latency.doubts, *beyond),
        of_model=of_model,
    )


def _one_run(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    cluster: Cluster,
    seed: int,
    report: Callable[[float], None],
) -> tuple[dict[str, float], pd.DataFrame, pd.DataFrame]:
    """One seed: its metrics, timeline and alerts."""
    entropy = workload.seed + seed
    schedule = workload.at(seed=entropy).schedule()
    check_lengths(schedule, latency, plan.engine)
    rng = np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(_PHASE_STREAM,)))
    controller = None if plan.hpa is None else HpaController(plan.hpa)
    fleet = Fleet(
        plan, schedule, latency, cluster, controller, duration_s=workload.duration_s, rng=rng
    )
    timeline = fleet.run(report)
    requests = request_frame(fleet.data.requests)
    counted = requests[requests["arrived_at_s"] >= workload.warmup_s]
    if counted.empty:
        raise InputError(
            f"the workload sends nothing after warmup_s(={workload.warmup_s}) with seed {entropy}",
            remedy="Lengthen duration_s or raise the rate.",
        )
    late = _with_age(counted, fleet.data.now_s)
    up_s = fleet.served_s()
    gpu_hours = fleet.gpu_held_s() / 3600 * _DAY_S / workload.duration_s
    row = {
        **percentiles(late),
        "slo_attainment": float(_meets(counted, plan.slo).mean()),
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * plan.gpu_usd_per_hour,
        "replicas_mean": up_s / workload.duration_s,
        "replicas_max": float(timeline["replicas_ready"].max()) if len(timeline) else 0.0,
        "scale_events": float(fleet.scale_events),
        "gpu_utilisation_mean": fleet.busy_s / up_s if up_s > 0 else 0.0,
        "idle_share": 1 - fleet.active_s / up_s if up_s > 0 else 0.0,
        "unfinished": float(counted["end_s"].isna().mean()),
    }
    return row, timeline, alerts(requests, timeline, workload.duration_s)


def _with_age(requests: pd.DataFrame, now_s: float) -> pd.DataFrame:
    """Unanswered requests with the time they have waited so far: at least that bad."""
    age_s = now_s - requests["arrived_at_s"]
    return requests.assign(
        ttft_s=requests["ttft_s"].fillna(age_s), e2e_s=requests["e2e_s"].fillna(age_s)
    )


def _meets(requests: pd.DataFrame, slo: Slo) -> pd.Series[bool]:
    """Which requests were answered within every limit; a single token has no TPOT to break."""
    met = requests["end_s"].notna()
    for name, limit in slo.limits().items():
        latency_s = requests[name.replace("_p99", "")]
        met &= (latency_s <= limit) | (latency_s.isna() & requests["end_s"].notna())
    return met
