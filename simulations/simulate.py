"""A plan under a workload: the day of a fleet, with intervals over seeds."""

from __future__ import annotations

import gc
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache

import numpy as np
import pandas as pd

from serving.errors import InputError
from serving.plan import Plan, Slo
from simulations.autoscaler import HpaController
from simulations.early import DEARER, LOOKS, Looks, Stop
from simulations.engine import check_lengths, estimate, percentiles, request_frame
from simulations.fleet import Cluster, Fleet, Release, blast_radius
from simulations.fleet.rollouts import NEW
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.metrics import noise
from simulations.promise import broken
from simulations.result import BlastRadius, SimResult
from simulations.traffic import ClosedLoop, Schedule, Workload
from simulations.uncertainty import with_draws

OnProgress = Callable[[str, float], None]
_DAYS = 3
"""Of which the traffic is kept by a process that runs trials: some 30 bytes a request each."""
_MANY = 50_000
"""Of so many requests, some 100 bytes each, a run first lets go of the one before."""
_PHASE_STREAM = 1000
"""Spawn key of the control loops' phases; the traffic's are below."""


def simulate(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    cluster: Cluster | None = None,
    release: Release | None = None,
    draws: int = 0,
    force: bool = False,
    stop: Stop | None = None,
    watched: bool = True,
    on_progress: OnProgress | None = None,
) -> SimResult:
    """Run a plan through a workload once per seed.

    Seed s draws the traffic of `workload.seed + s` and the phases of the control loops, the same
    for every plan (common random numbers), so that plans can be compared pairwise; a seed's run
    depends on no other. Requests sent during the warm-up load the fleet and are not counted. A
    request that is unanswered when the grace ends counts with the time it has waited by then.
    TTFT and E2E are the user's: the whole round trip of the workload's network is in them. Alerts
    and histograms are the servers', who do not see it.

    Args:    latency: of the plan's variant, on one replica.
             cluster: None is `Cluster()`.
             release: a new version that is rolled out meanwhile; its blast radius is reported.
             draws: so many of the model's draws are simulated too, with the first seed, for the part of
                 the intervals that is the model's.
             force: go beyond what the model was fitted to, and say so.
             stop: ends a run in which it is certain already; the result then says so in `stopped`, its
                 requests are those sent until then, and its GPU hours what the day costs at least.
             watched: False leaves out alerts and all of the timeline but the pods: the metrics are
                 the same, for less time.
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
    asked = [(latency, seed, f"seed {seed}") for seed in seeds]
    asked += [(model, seeds[0], f"draw {i}") for i, model in enumerate(models)]
    done: list[_Run] = []
    for model, seed, doing in asked:

        def tell(share: float, doing: str = doing) -> None:
            if on_progress is not None:
                on_progress(f"{plan.name}, {doing}", (len(done) + share) / len(asked))

        done.append(
            _one_run(
                plan, workload, model, cluster, release, seed, tell, stop=stop, watched=watched
            )
        )
    return _result(plan, seeds, done, (*latency.doubts, *beyond))


def _result(
    plan: Plan, seeds: Sequence[int], done: Sequence[_Run], doubts: tuple[str, ...]
) -> SimResult:
    """What runs of the seeds, and after them of draws of the model, come to."""
    runs, drawn = done[: len(seeds)], done[len(seeds) :]
    per_seed = pd.DataFrame([{"seed": s, **r.metrics} for s, r in zip(seeds, runs, strict=True)])
    metrics = {
        name: estimate(per_seed[name].tolist())
        for name in per_seed.columns
        if name != "seed" and per_seed[name].notna().all()
    }
    metrics, of_model = with_draws(metrics, [run.metrics for run in drawn])
    fired = pd.concat([run.alerts for run in runs], ignore_index=True)
    return SimResult(
        plan_name=plan.name,
        metrics=metrics,
        per_seed=per_seed,
        timeline=runs[0].timeline,
        alerts=fired[["alert", "seed", "started_at_s", "ended_at_s", "noise"]],
        keeps_slo=not broken(metrics, plan.slo),
        doubts=doubts,
        of_model=of_model,
        events=runs[0].events,
        blast_radius=tuple(run.blast for run in runs if run.blast is not None),
        stopped=next((run.stopped for run in runs if run.stopped), ""),
    )


@dataclass(frozen=True)
class _Run:
    """What is kept of one seed."""

    metrics: dict[str, float]
    timeline: pd.DataFrame
    alerts: pd.DataFrame
    events: pd.DataFrame
    blast: BlastRadius | None
    stopped: str


def _one_run(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    cluster: Cluster,
    release: Release | None,
    seed: int,
    report: Callable[[float], None],
    *,
    stop: Stop | None,
    watched: bool,
) -> _Run:
    entropy = workload.seed + seed
    traffic = workload.at(seed=entropy)
    # Trials see the same days again and again.
    schedule = traffic.schedule() if watched else _day(traffic.model_dump_json())
    check_lengths(schedule, latency, plan.engine)
    if len(schedule) > _MANY:
        # The run before is a few objects in a cycle: the collector counts those, not their arrays.
        gc.collect()
    fleet = Fleet(
        plan,
        schedule,
        latency,
        cluster,
        controller_of(plan, cluster),
        duration_s=workload.duration_s,
        rng=phases(entropy),
        release=release,
        watched=watched,
    )
    if stop is None:
        timeline = fleet.run(report)
    else:
        looks = Looks(stop, schedule, workload, plan.slo)
        timeline = fleet.run(report, settled=lambda: looks.why(fleet), looks=LOOKS)
    requests = request_frame(fleet.data.requests, asked_s=fleet.data.asked_s)
    users = as_users_see(requests, schedule)
    counted = users[users["arrived_at_s"] >= workload.warmup_s]
    if fleet.stopped:
        counted = counted[counted["arrived_at_s"] < fleet.data.now_s]
    if fleet.stopped == DEARER:  # what is under way may well be answered
        counted = counted[counted["outcome"] != "unfinished"]
    if counted.empty:
        raise InputError(
            f"the workload sends nothing after warmup_s(={workload.warmup_s}) with seed {entropy}",
            remedy="Lengthen duration_s or raise the rate.",
        )
    blast = None
    if release is not None:
        served = users.assign(version=fleet.data.requests["version"])
        blast = blast_radius(
            served,
            fleet.rollout.progress,
            plan.slo,
            errors=fleet.errors(NEW),
            extra_gpu_hours=fleet.extra_gpu_hours(),
        )
    return _Run(
        metrics=_metrics(plan, fleet, counted, timeline),
        timeline=timeline,
        alerts=_alerts(plan, fleet, counted).assign(seed=seed),
        events=fleet.events(),
        blast=blast,
        stopped=fleet.stopped,
    )


@lru_cache(maxsize=_DAYS)
def _day(traffic: str) -> Schedule:
    """The traffic of a workload with its seed, as JSON; runs share it, and copy what they change."""
    return Workload.model_validate_json(traffic).schedule()


def phases(entropy: int) -> np.random.Generator:
    """What draws a run's control loops and faults."""
    return np.random.default_rng(np.random.SeedSequence(entropy, spawn_key=(_PHASE_STREAM,)))


def as_users_see(requests: pd.DataFrame, schedule: Schedule) -> pd.DataFrame:
    """TTFT and E2E with the whole round trip of each request; TPOT is the same without."""
    if schedule.network_s is None:
        return requests
    away_s = schedule.network_s
    return requests.assign(ttft_s=requests["ttft_s"] + away_s, e2e_s=requests["e2e_s"] + away_s)


def controller_of(plan: Plan, cluster: Cluster) -> HpaController | None:
    """The plan's autoscaler; one that KEDA makes never asks for less than one replica."""
    if plan.hpa is None or cluster.activation is None:
        return None if plan.hpa is None else HpaController(plan.hpa)
    least = max(1, plan.hpa.min_replicas)
    return HpaController(plan.hpa.model_copy(update={"min_replicas": least}))


def _metrics(
    plan: Plan, fleet: Fleet, counted: pd.DataFrame, timeline: pd.DataFrame
) -> dict[str, float]:
    """One seed's row, of the requests that count."""
    up_s = fleet.served_s()
    gpu_hours = fleet.least_gpu_hours_a_day() if fleet.stopped else fleet.gpu_hours_a_day()
    return {
        **user_metrics(counted, plan.slo, fleet.data.now_s),
        "gpu_hours": gpu_hours,
        "cost_usd": gpu_hours * plan.gpu_usd_per_hour,
        "replicas_mean": up_s / fleet.over_s,
        "replicas_max": float(timeline["replicas_ready"].max()) if len(timeline) else 0.0,
        "scale_events": float(fleet.scale_events),
        "gpu_utilisation_mean": fleet.busy_s / up_s if up_s > 0 else 0.0,
        "idle_share": 1 - fleet.active_s / up_s if up_s > 0 else 0.0,
    }


def user_metrics(counted: pd.DataFrame, slo: Slo, now_s: float) -> dict[str, float]:
    """Latencies, the share within the SLO, and the shares of what went wrong.

    Args:    now_s: when the run ended, for those that are still waiting.
    """
    return {
        **percentiles(_with_age(counted, now_s)),
        "slo_attainment": float(_meets(counted, slo).mean()),
        **{
            name: float((counted["outcome"] == name).mean())
            for name in ("unfinished", "failed", "rejected", "aborted")
        },
    }


def _alerts(plan: Plan, fleet: Fleet, counted: pd.DataFrame) -> pd.DataFrame:
    """What fired, and whether users noticed; a request of the warm-up is nobody's."""
    fired = fleet.alerts()
    quiet = noise(
        fired,
        counted["arrived_at_s"].to_numpy(),
        counted["end_s"].fillna(fleet.data.now_s).to_numpy(),
        ~_meets(counted, plan.slo).to_numpy(),
    )
    return fired.assign(noise=np.array(quiet, dtype=bool))


def _with_age(requests: pd.DataFrame, now_s: float) -> pd.DataFrame:
    """What was answered, and with the time that they waited those that were not: at least that bad.

    Who got an error at once has no latency; the shares of those are metrics of their own.
    """
    waited = requests[~requests["outcome"].isin(["failed", "rejected"])]
    until_s = waited["end_s"].fillna(now_s)
    age_s = until_s - waited["arrived_at_s"]
    return waited.assign(ttft_s=waited["ttft_s"].fillna(age_s), e2e_s=waited["e2e_s"].fillna(age_s))


def _meets(requests: pd.DataFrame, slo: Slo) -> pd.Series[bool]:
    """Which requests were answered within every limit; a single token has no TPOT to break."""
    met = requests["outcome"].isin(["answered", "cached"])
    for name, limit in slo.limits().items():
        latency_s = requests[name.replace("_p99", "")]
        met &= (latency_s <= limit) | latency_s.isna()
    return met
