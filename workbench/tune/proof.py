"""The winner: the cheapest trial that keeps the SLO on traffic that the search has not seen."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from serving.errors import InfeasibleError
from serving.plan import Plan
from simulations.promise import limits_of, reached
from simulations.result import SimResult
from simulations.traffic import Poisson, Workload
from workbench.tune.evaluate import Score
from workbench.tune.point import Ground, Point

Trial = tuple[Point, Score]
_Near = tuple[Mapping[str, float], Trial]
"""What a trial comes to for each limit."""
_REPLAY_S = 25.0
_REPLAY_REQUESTS = 40
_REPLAY_WARMUP_S = 3.0


@dataclass(frozen=True)
class Proven:
    """The trial that wins, on traffic that the search has not seen.

    Attributes:
        score: of the search, on its own seeds.
        result: of the plan on unseen traffic.
        passed_over: cheaper trials that kept the SLO in the search and broke it there.
        doubt: that nothing keeps the SLO, where the winner is only what came nearest.
    """

    point: Point
    score: Score
    plan: Plan
    result: SimResult
    passed_over: int
    doubt: str = ""


def winner(
    trials: Sequence[Trial],
    ground: Ground,
    unseen_seeds: tuple[int, ...],
    prove: Callable[[Plan, Sequence[int]], SimResult],
    on_progress: Callable[[str], None],
    *,
    must_keep: bool = True,
) -> Proven:
    """Prove one trial after the other, the cheapest first, until one holds.

    Args:    prove: simulates a plan over some seeds.
             must_keep: False takes what came nearest where none does, with a doubt.
    Raises:  InfeasibleError: all trials failed; or none keeps the SLO, and one must.
    """
    ran = [(point, found) for point, found in trials if not found.error]
    if not ran:
        raise InfeasibleError(
            f"all {len(trials)} trials failed; the last: {trials[-1][1].error.rstrip('.')}",
            remedy="Mend that, then tune with another storage file.",
        )
    feasible = [trial for trial in ran if trial[1].keeps_slo]
    feasible.sort(key=lambda trial: trial[1].metrics["gpu_hours"])
    refuted: list[_Near] = []
    for rank, (point, score) in enumerate(feasible):
        on_progress(f"unseen traffic: candidate {rank + 1} of {len(feasible)}")
        plan = ground.plan_of(point)
        # Most of those that fail do so on the first seed.
        for seeds in dict.fromkeys([unseen_seeds[:1], unseen_seeds]):
            result = prove(plan, seeds)
            if not result.keeps_slo:
                break
        else:
            return Proven(point, score, plan, result, passed_over=rank)
        refuted.append((reached(result.metrics, ground.slo), (point, score)))
    limits = limits_of(ground.slo)
    where = "on unseen traffic" if refuted else f"in {len(trials)} trials"
    broken = refuted or [
        ({name: limit * (1 + trial[1].over[name]) for name, limit in limits.items()}, trial)
        for trial in ran
    ]
    nearest = min(broken, key=lambda near: _worst(near, limits)[0])
    found, (point, score) = nearest
    name = _worst(nearest, limits)[1]
    said = (
        f"nothing keeps the SLO {where}: {name} came down to {found[name]:.3g},"
        f" the limit is {limits[name]:.3g}"
    )
    if must_keep:
        raise InfeasibleError(said, remedy=_remedy(name, point, score, ground.most_replicas))
    plan = ground.plan_of(point)
    doubt = f"{said}; what came nearest is taken"
    return Proven(point, score, plan, prove(plan, unseen_seeds), len(refuted), doubt)


def _worst(near: _Near, limits: Mapping[str, float]) -> tuple[float, str]:
    """The limit that is broken most, and how many times over."""
    return max((near[0].get(name, 0.0) / limit, name) for name, limit in limits.items())


def _remedy(name: str, point: Point, score: Score, most: int) -> str:
    """Which limit to loosen, and which bound to widen."""
    full = score.metrics.get("replicas_max", 0) >= point["max_replicas"] >= most
    return (
        f"Loosen {name}"
        + (f", raise max_replicas(<={most}) of the search space" if full else "")
        + ", or search longer with more trials."
    )


def replay(result: SimResult, workload: Workload) -> Workload:
    """Load for one replica as it is in the fleet's busy hour: the same lengths, Poisson arrivals.

    The rate is that of the day's busiest 24th over the replicas that served it (ready, and not
    spare).
    """
    table = result.timeline
    hour = np.minimum(table["t_s"] / workload.duration_s * 24, 23.999).astype(int)
    serving = np.maximum(np.minimum(table["replicas_ready"], table["replicas_desired"]), 1)
    means = pd.DataFrame({"rate": table["offered_rps"], "replicas": serving}).groupby(hour).mean()
    busiest = means.nlargest(1, "rate").iloc[0]
    rate_rps = round(float(busiest["rate"] / busiest["replicas"]), 3)
    return Workload(
        arrivals=Poisson(rate_rps=rate_rps),
        prompt_tokens=workload.prompt_tokens,
        output_tokens=workload.output_tokens,
        duration_s=round(max(_REPLAY_S, _REPLAY_REQUESTS / rate_rps + _REPLAY_WARMUP_S), 1),
        warmup_s=_REPLAY_WARMUP_S,
        seed=workload.seed,
    )
