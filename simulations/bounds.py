"""What one replica can take, and the static fleet of the peak. What nobody can beat: clairvoyant.py."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from serving.errors import InfeasibleError
from serving.plan import EngineArgs, Plan, Slo
from simulations.engine import check_lengths, percentiles, simulate_replica
from simulations.fleet import Cluster
from simulations.latency import LatencyModel
from simulations.simulate import simulate
from simulations.traffic import Constant, Schedule, Workload

_PROBE_REQUESTS = 10_000
_SATURATED_REQUESTS = 2_000
_SLOWEST_RPS = 1e-3
_FASTEST_RPS = 1e6
_WINDOW_S = 60.0


def capacity_rps(
    workload: Workload, latency: LatencyModel, engine: EngineArgs, slo: Slo, *, seed: int = 0
) -> float:
    """The highest rate at which one replica keeps the SLO on evenly spaced requests.

    Even spacing is the kindest of the usual traffic: no queue builds up by chance (not a theorem:
    arrivals in step with the batches might do a little better). Found by bisection to 1 %, with
    lengths as the workload draws them; the first quarter of the requests is not counted.

    Raises:  InfeasibleError: even a lone request breaks the SLO.
    """
    n = _PROBE_REQUESTS
    probe = workload.at(
        arrivals=Constant(rate_rps=1.0),
        duration_s=float(n),
        warmup_s=0,
        spikes=(),
        seed=workload.seed + seed,
    ).schedule()
    check_lengths(probe, latency, engine)

    def keeps(rate_rps: float) -> bool:
        spaced = Schedule(probe.arrived_at_s / rate_rps, probe.prompt_tokens, probe.output_tokens)
        found = percentiles(simulate_replica(spaced, latency, engine, noise=False).iloc[n // 4 :])
        return not any(found[name] > limit for name, limit in slo.limits().items())

    if not keeps(_SLOWEST_RPS):
        limits = ", ".join(f"{name} {limit:g}" for name, limit in slo.limits().items())
        raise InfeasibleError(
            f"{latency.variant}: one request at a time already breaks the SLO ({limits})",
            remedy="Loosen the SLO, shorten the requests or use a faster variant.",
        )
    low = high = _SLOWEST_RPS
    while high < _FASTEST_RPS and keeps(high):
        low, high = high, 2 * high
    while high - low > 0.01 * low:
        middle = (low + high) / 2
        low, high = (middle, high) if keeps(middle) else (low, middle)
    return low


def running_at(
    rate_rps: float, workload: Workload, latency: LatencyModel, engine: EngineArgs
) -> float:
    """Sequences that one replica runs on average under evenly spaced requests, by Little's law."""
    n = _PROBE_REQUESTS
    spaced = workload.at(
        arrivals=Constant(rate_rps=rate_rps), duration_s=n / rate_rps, warmup_s=0, spikes=()
    ).schedule()
    found = simulate_replica(spaced, latency, engine, noise=False).iloc[n // 4 :]
    return rate_rps * float(found["e2e_s"].mean())


def saturation_rps(workload: Workload, latency: LatencyModel, engine: EngineArgs) -> float:
    """Requests a second that one replica answers while it always has more waiting than it can run.

    Beyond this rate the queue grows for as long as the load lasts. Lengths are as the workload draws
    them; counted is the middle half of the answers, while the batch is full.
    """
    n = max(_SATURATED_REQUESTS, 20 * engine.max_num_seqs)
    drawn = workload.at(
        arrivals=Constant(rate_rps=1.0), duration_s=float(n), warmup_s=0, spikes=()
    ).schedule()
    waiting = Schedule(np.zeros(len(drawn)), drawn.prompt_tokens, drawn.output_tokens)
    ends_s = np.sort(simulate_replica(waiting, latency, engine)["end_s"].to_numpy())
    first, last = len(ends_s) // 4, 3 * len(ends_s) // 4
    return float((last - first) / (ends_s[last] - ends_s[first]))


def static_peak(
    plan: Plan,
    workload: Workload,
    latency: LatencyModel,
    *,
    seeds: Sequence[int] = (0, 1, 2),
    cluster: Cluster | None = None,
    keeps: Callable[[Plan], bool] | None = None,
) -> int:
    """The smallest static fleet that keeps the SLO under the workload.

    Searched from the size that the busiest minute needs, in steps that double until one size keeps the
    SLO and a smaller one does not, and by bisection between them: that size is mostly near.

    Args:    keeps: whether a plan keeps the SLO; None simulates it with the seeds.
    Raises:  InfeasibleError: four times the peak's need does not keep it either.
    """
    capacity = capacity_rps(workload, latency, plan.engine, plan.slo)
    arrived_at_s = workload.schedule().arrived_at_s
    counts = np.bincount((arrived_at_s // _WINDOW_S).astype(np.int64))
    window_s = min(_WINDOW_S, workload.duration_s)
    guess = max(1, int(np.ceil(counts.max() / window_s / capacity)))

    def simulated(fleet: Plan) -> bool:
        found = simulate(fleet, workload, latency, seeds=seeds, cluster=cluster, watched=False)
        return found.keeps_slo

    def enough(replicas: int) -> bool:
        static = {"replicas": replicas, "hpa": None, "warm_spares": 0}
        return (keeps or simulated)(Plan.model_validate(plan.model_dump() | static))

    low, high, step = 0, guess, 1
    if enough(guess):
        while (tried := max(0, high - step)) > 0 and enough(tried):
            high, step = tried, 2 * step
        low = tried
    else:
        low, high = guess, guess + 1
        while not enough(high):
            step *= 2
            low, high = high, high + step
            if high > 4 * guess + 4:
                raise InfeasibleError(
                    f"{low} replicas do not keep the SLO {plan.slo.limits()} of plan {plan.name!r}",
                    remedy="Loosen the SLO, lower max_num_seqs or use a faster variant.",
                )
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if enough(middle) else (middle, high)
    return high
