"""A declared study is run: each arm and seed once, then a table and an answer in a sentence.

Arms share their seeds (common random numbers), so that what an arm changes is the difference of two
runs of the same traffic, and its interval is that of the differences.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Literal

import pandas as pd
from pydantic import Field

from serving.plan import Plan
from serving.values import Estimate, Value
from simulations.edge import Place, simulate_edge
from simulations.engine import estimate
from simulations.idle import IdleStudy
from simulations.latency import LatencyModel
from simulations.limits import check_range
from simulations.result import BlastRadius, SimResult
from simulations.scenarios import Case, FleetStudy, Judgement
from simulations.simulate import simulate

Verdict = Literal["holds", "does not hold", "depends"]
ModelOf = Callable[[Plan, str], LatencyModel]
"""The latency model of a plan's variant on a device."""
ShareDone = Callable[[float], None]
_SAID: dict[Verdict, str] = {
    "holds": "The claim holds",
    "does not hold": "The claim does not hold",
    "depends": "It depends",
}

_DAY_S, _HOUR_S, _NIGHT_HOURS = 86_400.0, 3_600.0, 8

NAMES = {
    "ttft_p50_s": "median TTFT (s)",
    "ttft_p99_s": "p99 TTFT (s)",
    "tpot_p50_s": "median TPOT (s)",
    "tpot_p99_s": "p99 TPOT (s)",
    "e2e_p50_s": "median E2E (s)",
    "e2e_p99_s": "p99 E2E (s)",
    "slo_attainment": "share within the SLO",
    "gpu_hours": "GPU hours a day",
    "cost_usd": "dollars a day",
    "replicas_mean": "mean replicas",
    "scale_events": "changes of size",
    "gpu_utilisation_mean": "GPU utilisation",
    "idle_share": "idle share of the replicas",
    "unfinished": "share unfinished",
    "failed": "share failed",
    "rejected": "share rejected",
    "aborted": "share given up",
    "overflow_share": "share passed on by the sites",
    "centre_share": "share that the centre got",
    "night_idle_share": "idle share of the night",
    "night_empty_share": "running requests fewer at night than in the busiest hour (share)",
    "release_touched_share": "share that the new version served",
    "release_touched_failed": "failed of those that the new version served",
    "release_errors": "errors of the new version",
    "release_extra_gpu_hours": "extra GPU hours of the update",
    "release_rolled_back": "rolled back (share of seeds)",
    "release_completed": "completed (share of seeds)",
    "release_detected_after_s": "seconds to the verdict",
}
"""Metrics as people say them."""


class Done(Value):
    """One arm under one seed."""

    arm: str
    seed: int
    metrics: dict[str, float]
    """Without those that there was nothing to take from."""
    doubts: tuple[str, ...] = ()


class Cell(Value):
    """A metric of an arm over the seeds."""

    arm: str
    metric: str
    value: Estimate
    more: Estimate | None = None
    """Than in the first arm, on the same seeds; None in the first."""


class Reading(Value):
    """What a rule of judgement came to."""

    verdict: Verdict
    words: str


class StudyAnswer(Value):
    """A study with its table and its answer."""

    name: str
    question: str
    claim: str
    verdict: Verdict
    answer: str
    readings: tuple[Reading, ...]
    arms: tuple[str, ...]
    metrics: tuple[str, ...]
    seeds: tuple[int, ...]
    quick: bool = False
    """Whether it was a first look, with shortened runs."""
    cells: tuple[Cell, ...]
    runs: tuple[Done, ...] = ()
    neglects: str = ""
    doubts: tuple[str, ...] = ()
    limit: float | None = Field(None)
    """Of the one metric, where the claim names a number for every arm."""

    def frame(self) -> pd.DataFrame:
        """One row per arm, a column per metric with its interval, and what is more than in the first."""
        rows: dict[str, dict[str, str]] = {arm: {"arm": arm} for arm in self.arms}
        for cell in self.cells:
            more = "" if cell.more is None or cell.more.n < 2 else f" ({_signed(cell.more)})"
            name = NAMES.get(cell.metric, cell.metric)
            rows[cell.arm][name] = f"{_told(cell.value)}{more}"
        return pd.DataFrame(list(rows.values())).fillna("–")


def run_case(
    case: Case,
    seed: int,
    device: str,
    models: ModelOf,
    *,
    force: bool = False,
    on_progress: ShareDone | None = None,
) -> Done:
    """One arm under one seed; it depends on no other."""
    latency = with_cold_start(models(case.plan, device), case)
    if case.edge is not None and case.site is not None:
        site = with_cold_start(models(case.site, case.site_device), case)
        beyond = check_range(latency, case.plan.engine, case.workload, force=force)
        beyond += check_range(site, case.site.engine, case.workload, force=force)
        metrics = simulate_edge(
            Place(case.plan, latency),
            Place(case.site, site),
            case.edge,
            case.workload,
            cluster=case.cluster,
            seed=seed,
            on_progress=on_progress,
        )
        doubts = (*latency.doubts, *site.doubts, *beyond)
    else:
        found = simulate(
            case.plan,
            case.workload,
            latency,
            seeds=(seed,),
            cluster=case.cluster,
            release=case.release,
            force=force,
            on_progress=None if on_progress is None else (lambda _, share: on_progress(share)),
        )
        metrics, doubts = _of_one_seed(found), found.doubts
    known = {name: float(value) for name, value in metrics.items() if math.isfinite(value)}
    return Done(arm=case.name, seed=seed, metrics=known, doubts=doubts)


def with_cold_start(latency: LatencyModel, case: Case) -> LatencyModel:
    """The model with the cold start that the study declares, if it does."""
    if case.cold_start is None:
        return latency
    return latency.model_copy(update={"cold_start": case.cold_start})


def _of_one_seed(found: SimResult) -> dict[str, float]:
    metrics = {name: one.value for name, one in found.metrics.items()} | _night(found.timeline)
    for blast in found.blast_radius:
        metrics |= _of_release(blast)
    return metrics


def _night(timeline: pd.DataFrame) -> dict[str, float]:
    """Of the quietest eight hours of a day in a row: how idle the devices were, and how empty.

    Emptiness is of the requests that run, against those of the busiest hour.
    """
    if timeline.empty or timeline["t_s"].iloc[-1] < _DAY_S - _HOUR_S:
        return {}
    hour = (timeline["t_s"] // _HOUR_S).astype(int)
    by_hour = timeline.groupby(hour)[["gpu_utilisation", "requests_running"]].mean()
    around = pd.concat([by_hour, by_hour.iloc[: _NIGHT_HOURS - 1]])
    nights = around.rolling(_NIGHT_HOURS).mean().min()
    busiest = by_hour["requests_running"].max()
    return {
        "night_idle_share": 1 - float(nights["gpu_utilisation"]),
        "night_empty_share": 1 - float(nights["requests_running"] / busiest),
    }


def _of_release(blast: BlastRadius) -> dict[str, float]:
    found = {
        "touched_share": blast.touched_share,
        "touched_failed": float(blast.failed),
        "errors": float(blast.errors),
        "extra_gpu_hours": blast.extra_gpu_hours,
        "rolled_back": float(blast.outcome == "rolled back"),
        "completed": float(blast.outcome == "completed"),
        "detected_after_s": blast.detected_after_s,
    }
    return {f"release_{name}": value for name, value in found.items() if value is not None}


def answer_of(study: FleetStudy, runs: Sequence[Done], *, quick: bool = False) -> StudyAnswer:
    """The table and the answer of what was run.

    Args:    runs: every arm under the same seeds, in any order.
    """
    seeds = tuple(sorted({run.seed for run in runs}))
    by_arm = {(run.arm, run.seed): run.metrics for run in runs}
    arms = [arm.name for arm in study.arms]

    def values(arm: str, metric: str) -> list[float]:
        found = [by_arm[arm, seed].get(metric, math.nan) for seed in seeds]
        return [] if any(math.isnan(value) for value in found) else found

    cells = []
    for arm in arms:
        for metric in study.metrics:
            own, first = values(arm, metric), values(arms[0], metric)
            if not own:
                continue
            more = None
            if arm != arms[0] and first:
                more = estimate([a - b for a, b in zip(own, first, strict=True)])
            cells.append(Cell(arm=arm, metric=metric, value=estimate(own), more=more))
    readings = tuple(judge(rule, values) for rule in study.answer)
    verdict = _together([reading.verdict for reading in readings])
    words = "; ".join(reading.words for reading in readings)
    seeds_said = f"{len(seeds)} seeds" if len(seeds) > 1 else "one seed, so without an interval"
    return StudyAnswer(
        name=study.name,
        question=study.question,
        claim=study.claim,
        verdict=verdict,
        answer=f"{_SAID[verdict]}: {words} ({seeds_said}).",
        readings=readings,
        arms=tuple(arms),
        metrics=study.metrics,
        seeds=seeds,
        quick=quick,
        cells=tuple(cells),
        runs=tuple(sorted(runs, key=lambda run: (arms.index(run.arm), run.seed))),
        neglects=study.neglects,
        doubts=tuple(dict.fromkeys(doubt for run in runs for doubt in run.doubts)),
    )


def judge(rule: Judgement, values: Callable[[str, str], list[float]]) -> Reading:
    """Whether the whole interval lies beyond the limit, or on this side of it, or neither."""
    own = values(rule.arm, rule.metric)
    name = NAMES.get(rule.metric, rule.metric)
    what = f"{name} of {rule.arm}"
    if own and rule.against is not None:
        other = values(rule.against, rule.metric)
        pairs = list(zip(own, other, strict=False))
        if rule.compared == "ratio":
            own = [] if 0 in other else [a / b for a, b in pairs]
            what += f" over that of {rule.against}"
        else:
            own = [a - b for a, b in pairs]
            what += f" minus that of {rule.against}"
    if not own:
        return Reading(verdict="depends", words=f"{what} cannot be told")
    found = estimate(own)
    limit = rule.above if rule.below is None else rule.below
    assert limit is not None
    side = "above" if rule.below is None else "below"
    beyond = found.low > limit if rule.below is None else found.high < limit
    this_side = found.high <= limit if rule.below is None else found.low >= limit
    verdict: Verdict = "holds" if beyond else "does not hold" if this_side else "depends"
    said = {
        "holds": f"{side} {limit:g}",
        "does not hold": f"not {side} {limit:g}",
        "depends": f"not told from {limit:g}",
    }[verdict]
    return Reading(verdict=verdict, words=f"{what} is {_told(found)}, {said}")


def answer_of_idle(study: IdleStudy) -> StudyAnswer:
    """The same of a study that is arithmetic: an arm is a profile, and there are no seeds."""
    table = study.table()
    rows = list(zip(table["profile"], table["night_idle_share"], table["holds"], strict=True))
    readings = tuple(
        Reading(
            verdict="holds" if holds else "does not hold",
            words=f"{share:.0%} of the night in {profile}",
        )
        for profile, share, holds in rows
    )
    verdict = _together([reading.verdict for reading in readings])
    return StudyAnswer(
        name=study.name,
        question=study.question,
        claim=study.claim,
        verdict=verdict,
        answer=f"{_SAID[verdict]}: {study.answer()}",
        readings=readings,
        arms=tuple(profile for profile, _, _ in rows),
        metrics=("night_idle_share",),
        seeds=(),
        cells=tuple(
            Cell(
                arm=profile,
                metric="night_idle_share",
                value=Estimate(value=share, low=share, high=share, n=1),
            )
            for profile, share, _ in rows
        ),
        neglects="Whole replicas, bursts and queues, which only add to it.",
        limit=study.above,
    )


def _together(verdicts: Sequence[Verdict]) -> Verdict:
    return verdicts[0] if len(set(verdicts)) == 1 else "depends"


def _told(found: Estimate) -> str:
    if found.n < 2 or math.isclose(found.low, found.high):
        return f"{found.value:.4g}"
    return f"{found.value:.3g} [{found.low:.3g}, {found.high:.3g}]"


def _signed(found: Estimate) -> str:
    return f"{found.value:+.3g} [{found.low:+.3g}, {found.high:+.3g}]"
