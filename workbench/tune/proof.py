"""The winner: the cheapest trial that keeps the SLO on traffic that the search has not seen."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd

from serving.errors import InfeasibleError
from serving.plan import Plan
from simulations.result import SimResult
from simulations.traffic import Poisson, Workload
from workbench.tune.evaluate import Score, keeps, limits_of, reached
from workbench.tune.point import Ground, Point

Trial = tuple[Point, Score]
_REPLAY_S = 25.0
_REPLAY_REQUESTS = 40
_REPLAY_WARMUP_S = 3.0


def winner(
    trials: Sequence[Trial],
    ground: Ground,
    unseen_seeds: tuple[int, ...],
    prove: Callable[[Plan, Sequence[int]], SimResult],
    on_progress: Callable[[str], None],
) -> tuple[Plan, SimResult]:
    """Prove one trial after the other, the cheapest first, until one holds.

    Args:    prove: simulates a plan over some seeds.
    Raises:  InfeasibleError: none does.
    """
    ran = [(point, found) for point, found in trials if not found.error]
    if not ran:
        raise InfeasibleError(
            f"all {len(trials)} trials failed; the last: {trials[-1][1].error.rstrip('.')}",
            remedy="Mend that, then tune with another storage file.",
        )
    feasible = [trial for trial in ran if trial[1].keeps_slo]
    feasible.sort(key=lambda trial: trial[1].metrics["gpu_hours"])
    refuted: list[tuple[dict[str, float], Trial]] = []
    for rank, trial in enumerate(feasible):
        on_progress(f"unseen traffic: candidate {rank + 1} of {len(feasible)}")
        plan = ground.plan_of(trial[0])
        # Most of those that fail do so on the first seed.
        for seeds in dict.fromkeys([unseen_seeds[:1], unseen_seeds]):
            result = prove(plan, seeds)
            if not keeps(result, ground.slo):
                break
        else:
            return plan, result
        refuted.append((reached(result, ground.slo), trial))
    if refuted:
        raise _infeasible(ground, "on unseen traffic", refuted)
    limits = limits_of(ground.slo)
    broken = [
        ({name: limit * (1 + trial[1].over[name]) for name, limit in limits.items()}, trial)
        for trial in ran
    ]
    raise _infeasible(ground, f"in {len(trials)} trials", broken)


def _infeasible(
    ground: Ground, where: str, reached: Sequence[tuple[dict[str, float], Trial]]
) -> InfeasibleError:
    """What came nearest, which limit to loosen, and which bound to widen."""

    limits = limits_of(ground.slo)

    def worst(found: dict[str, float]) -> tuple[float, str]:
        return max((found.get(name, 0.0) / limit, name) for name, limit in limits.items())

    found, (point, score) = min(reached, key=lambda pair: worst(pair[0]))
    name = worst(found)[1]
    most = ground.most_replicas
    full = score.metrics.get("replicas_max", 0) >= point["max_replicas"] >= most
    return InfeasibleError(
        f"nothing keeps the SLO {where}: {name} came down to {found[name]:.3g},"
        f" the limit is {limits[name]:.3g}",
        remedy=f"Loosen {name}"
        + (f", raise max_replicas(<={most}) of the search space" if full else "")
        + ", or search longer with more trials.",
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
