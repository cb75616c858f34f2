"""Where the winner stands: what one step in each parameter does to cost and SLO.

A step is the next choice of an ordered parameter, one replica of a bound, and a tenth of a target's
range on its logarithmic scale. Of metrics and variants, which have no order, it is the next best: that
of the best trial with another one, with that trial's own target and max_num_seqs. The type of a metric
has no next one.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
import pandas as pd

from serving.plan import Slo
from simulations.promise import limits_of
from simulations.result import SimResult
from workbench.tune.evaluate import Score
from workbench.tune.point import JOIN, ORDERED, Ground, Point, seqs_name, target_name
from workbench.tune.space import SearchSpace
from workbench.tune.unseen import COLUMNS

_STEPS = 10
"""In the range of a target."""


class Neighbour(NamedTuple):
    """A point one step beside the winner's. Side is -1 or 1; 0 is the next best."""

    parameter: str
    side: int
    value: Any
    point: Point


def next_best(point: Point, trials: Sequence[tuple[Point, Score]]) -> Iterator[Neighbour]:
    """The winner with the metrics of the best trial that has others, and likewise with its variant.

    The best is the cheapest that keeps the SLO; where none does, what breaks it least.
    """
    ran = [(other, score) for other, score in trials if not score.error]
    for name in ("metrics", "variant"):
        others = [trial for trial in ran if trial[0][name] != point[name]]
        if others:
            best = min(others, key=lambda trial: _rank(trial[1]))[0]
            yield Neighbour(name, 0, best[name], {**point, **_own(name, best)})


def _rank(score: Score) -> tuple[bool, float]:
    if score.keeps_slo:
        return False, score.metrics["gpu_hours"]
    return True, max(score.over.values())


def _own(name: str, point: Point) -> dict[str, Any]:
    """What stands and falls with a choice of metrics or variant."""
    if name == "variant":
        parts = [seqs_name(point["variant"])]
    else:
        parts = [target_name(metric) for metric in point["metrics"].split(JOIN)]
    return {part: point[part] for part in (name, *parts)}


def neighbours_of(
    point: Point, space: SearchSpace, seqs: Mapping[str, tuple[int, ...]]
) -> Iterator[Neighbour]:
    """One step in each free parameter, to both sides, as far as the space goes.

    Args:    space: with its replica ranges set (`sized`).
             seqs: choices of max_num_seqs by variant.
    """
    choices = {name: sorted(set(getattr(space, name))) for name in ORDERED}
    own = seqs_name(point["variant"])
    choices[own] = sorted(seqs[point["variant"]])
    targets = {target_name(name): space.targets[name] for name in point["metrics"].split(JOIN)}
    for name, value in point.items():
        for side in (-1, 1):
            new: Any = None
            if name in choices:
                at = choices[name].index(value) + side
                new = choices[name][at] if 0 <= at < len(choices[name]) else None
            elif name in targets:
                bounds = targets[name]
                factor = math.exp(math.log(bounds.high / bounds.low) / _STEPS)
                new = float(np.clip(value * factor**side, bounds.low, bounds.high))
            elif name in ("min_replicas", "max_replicas") and not (
                name == "min_replicas" and point["scale_to_zero"]
            ):
                low, high = getattr(space, name)
                new = min(max(value + side, low), high)
            if new is not None and new != value:
                yield Neighbour(name, side, new, {**point, name: new})


def look_around(
    point: Point,
    result: SimResult,
    trials: Sequence[tuple[Point, Score]],
    ground: Ground,
    seqs: Mapping[str, tuple[int, ...]],
    evaluate: Callable[[Sequence[Point]], Sequence[Score]],
) -> pd.DataFrame:
    """Simulate the neighbours of the winner on traffic that the search has not seen.

    One is judged as a trial is, by its worst seed. Costs are compared with the winner's seed by seed.

    Args:    result: of the winner, over at least the seeds of `evaluate`.
             trials: of the search, which say what the next best is.
             evaluate: gives the score of each point.
    Returns: DataFrame, one row per neighbour: parameter, side (-1 or 1, or 0 for the next best), value
             and won (the winner's), as numbers and, where they have no order, as names in `step` alone;
             step (both in words), seeds (how many were run), gpu_hours, cost_change (share of the
             winner's), slo_attainment, keeps_slo, breaks (in words; empty where it keeps the SLO).
    """
    winner = ground.plan_of(point)
    around = [
        near
        for near in (*neighbours_of(point, ground.space, seqs), *next_best(point, trials))
        if _differs(near.point, ground, winner)
    ]
    scores = evaluate([near.point for near in around])
    hours = result.per_seed["gpu_hours"].tolist()
    rows = [
        {
            "parameter": _label(near.parameter),
            "side": near.side,
            "value": float(near.value) if near.side else np.nan,
            "won": float(point[near.parameter]) if near.side else np.nan,
            "step": _step(near, point),
            "seeds": len(score.hours),
            "gpu_hours": score.metrics.get("gpu_hours", np.nan),
            "cost_change": _change(score.hours, hours),
            "slo_attainment": score.metrics.get("slo_attainment", np.nan),
            "keeps_slo": score.keeps_slo,
            "breaks": _breaks(score, ground.slo),
        }
        for near, score in zip(around, scores, strict=True)
    ]
    return pd.DataFrame(rows, columns=COLUMNS)


def fragile(neighbours: pd.DataFrame) -> tuple[str, ...]:
    """A doubt for each neighbour that breaks the SLO."""
    return tuple(
        f"fragile: with {row['parameter']} at {row['step']} it breaks the SLO on unseen traffic"
        f" ({row['breaks']})"
        for row in neighbours.to_dict("records")
        if not row["keeps_slo"]
    )


def _differs(point: Point, ground: Ground, winner: Any) -> bool:
    """A bound that another one hides makes no other fleet; what is no plan at all is told later."""
    try:
        return bool(ground.plan_of(point) != winner)
    except ValueError:
        return True


def _label(parameter: str) -> str:
    """Of the winner's variant alone, so its name says nothing."""
    return parameter.split(" of ")[0] if parameter.startswith("max_num_seqs of ") else parameter


def _step(near: Neighbour, point: Point) -> str:
    won = point[near.parameter]
    if near.side:
        return f"{float(near.value):.4g} instead of {float(won):.4g}"
    return f"{near.value} instead of {won}"


def _change(hours: Sequence[float], winner: Sequence[float]) -> float:
    pairs = list(zip(hours, winner, strict=False))
    best = sum(own for _, own in pairs)
    return sum(cost for cost, _ in pairs) / best - 1 if best > 0 else float("nan")


def _breaks(score: Score, slo: Slo) -> str:
    if score.error:
        return score.error
    limits = limits_of(slo)
    return ", ".join(
        f"{name} {limits[name] * (1 + over):.3g}, limit {limits[name]:.3g}"
        for name, over in score.over.items()
        if over > 0
    )
