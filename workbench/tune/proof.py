"""The winner: the cheapest trial that keeps the SLO on traffic that the search has not seen.

That traffic has a part in the choice, so what the winner comes to is said on yet other traffic.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heappush

import numpy as np
import pandas as pd

from serving.errors import InfeasibleError
from serving.plan import Plan, Slo
from simulations.promise import broken, limits_of, reached
from simulations.result import SimResult
from simulations.traffic import Poisson, Workload
from workbench.tune.evaluate import Score
from workbench.tune.point import Ground, Point
from workbench.tune.twin import Verdict

Trial = tuple[Point, Score]
_Near = tuple[Mapping[str, float], Trial]
"""What a trial comes to for each limit."""
_REPLAY_S = 25.0
_REPLAY_REQUESTS = 40
_REPLAY_WARMUP_S = 3.0


@dataclass(frozen=True)
class Proven:
    """The trial that wins.

    Attributes:
        score: of the search, on its own seeds.
        passed_over: cheaper trials that kept the SLO in the search and broke it in the final choice.
        doubt: that nothing keeps the SLO, where the winner is only what came nearest.
        on_choice: of the final choice, one of each seed; () where nothing keeps the SLO.
    """

    point: Point
    score: Score
    plan: Plan
    passed_over: int
    doubt: str = ""
    on_choice: Sequence[Score] = ()


def winner(
    trials: Sequence[Trial],
    ground: Ground,
    seeds: Sequence[int],
    scores_of: Callable[[Plan, Sequence[int]], Sequence[Score]],
    whole: Callable[[Point], Score],
    on_progress: Callable[[str], None],
    *,
    must_keep: bool = True,
) -> Proven:
    """Try one trial after the other on other seeds, the cheapest first, until one keeps the SLO.

    Args:    seeds: of the final choice.
             scores_of: simulates a plan over some seeds; the score of each.
             whole: of a trial that was stopped within its day, the score of all of it: it takes its
                 place among the others by what it really costs.
             must_keep: False takes what came nearest where none does, with a doubt.
    Raises:  InfeasibleError: all trials failed; or none keeps the SLO, and one must.
    """
    ran = [(point, found) for point, found in trials if not found.error]
    if not ran:
        raise InfeasibleError(
            f"all {len(trials)} trials failed; the last: {trials[-1][1].error.rstrip('.')}",
            remedy="Mend that, then tune with another storage file.",
        )
    feasible = [
        (score.metrics["gpu_hours"], number, point, score)
        for number, (point, score) in enumerate(ran)
        if score.keeps_slo
    ]
    heapify(feasible)
    refuted: list[_Near] = []
    rank = 0
    while feasible:
        _, number, point, score = heappop(feasible)
        on_progress(f"final choice: candidate {rank + 1} of {rank + 1 + len(feasible)}")
        if score.partial:
            score = whole(point)
            if score.keeps_slo:
                heappush(feasible, (score.metrics["gpu_hours"], number, point, score))
            continue
        plan = ground.plan_of(point)
        scores: list[Score] = []
        # Most of those that fail do so on the first seed.
        for part in filter(len, (seeds[:1], seeds[1:])):
            scores += scores_of(plan, part)
            found = Verdict.of(scores, ground.slo)
            if not found.keeps_slo:
                break
        else:
            return Proven(point, score, plan, passed_over=rank, on_choice=scores)
        rank += 1
        if not found.error:
            refuted.append((reached(found.metrics, ground.slo), (point, score)))
    limits = limits_of(ground.slo)
    where = "in the final choice, on other traffic," if refuted else f"in {len(trials)} trials"
    judged = refuted or [
        ({name: limit * (1 + trial[1].over[name]) for name, limit in limits.items()}, trial)
        for trial in ran
    ]
    nearest = min(judged, key=lambda near: _worst(near, limits)[0])
    came, (point, score) = nearest
    name = _worst(nearest, limits)[1]
    said = (
        f"nothing keeps the SLO {where}: {name} came down to {came[name]:.3g},"
        f" the limit is {limits[name]:.3g}"
    )
    if must_keep:
        raise InfeasibleError(said, remedy=_remedy(name, point, score, ground.most_replicas))
    doubt = f"{said}; what came nearest is taken"
    return Proven(point, score, ground.plan_of(point), len(refuted), doubt)


def breach(result: SimResult, slo: Slo) -> tuple[str, ...]:
    """A doubt for each limit that the winner breaks on traffic that had no part in its choice."""
    limits = limits_of(slo)
    return tuple(
        f"on unseen traffic the winner breaks the SLO ({name} {value:.3g}, limit {limits[name]:.3g})"
        for name, value in broken(result.metrics, slo).items()
    )


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
