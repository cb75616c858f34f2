"""What one trial is worth: a plan over the seeds of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf
from typing import Any, Protocol

from serving.errors import WorkbenchError
from serving.plan import Plan, Slo
from simulations.early import Stop
from simulations.engine import estimate
from simulations.fleet import Cluster
from simulations.latency import LatencyModel
from simulations.promise import limits_of, lost_shares
from simulations.result import SimResult
from simulations.traffic import Workload

CLEARLY = 1.5
"""A first seed this many times over a limit settles it."""
DEARER = 1.2
"""So does one that costs this many times what the best so far costs on the same seed."""


class Simulate(Protocol):
    """The twin, `simulations.simulate.simulate`."""

    def __call__(
        self,
        plan: Plan,
        workload: Workload,
        latency: LatencyModel,
        *,
        seeds: Sequence[int],
        cluster: Cluster | None,
        stop: Stop | None = None,
        watched: bool = True,
    ) -> SimResult: ...


@dataclass(frozen=True)
class Job:
    """One trial to run; picklable, so that any process can."""

    plan: Plan
    workload: Workload
    latency: LatencyModel
    seeds: tuple[int, ...]
    cluster: Cluster
    simulate: Simulate
    incumbent: tuple[float, ...] = ()
    """GPU hours by seed of the cheapest trial so far that keeps the SLO; () races against none."""
    race: bool = True
    """Whether a trial that is clearly bad ends before its last seed."""
    early: bool = False
    """Whether one that races ends within a day in which that is certain already."""


@dataclass(frozen=True)
class Score:
    """What came of a trial.

    Attributes:
        metrics: {name: mean over the seeds that were run}.
        over: {limit: worst seed / limit - 1}; above 0 the limit is broken.
        hours: GPU hours of each seed that was run.
        stopped: why seeds were left out, or the rest of one; empty where nothing was. Of a day that was
            not run to its end the metrics are until then, and the GPU hours what it costs at least.
        error: why there is no result; empty where there is.
        partial: whether a day was not run to its end.
    """

    metrics: Mapping[str, float]
    over: Mapping[str, float]
    hours: tuple[float, ...]
    stopped: str = ""
    error: str = ""
    partial: bool = False

    @property
    def keeps_slo(self) -> bool:
        """On every seed that was run: one that was stopped for its cost may yet be needed."""
        return not self.error and all(value <= 0 for value in self.over.values())


def score(job: Job) -> Score:
    """Run a trial seed by seed; an exception is a failed trial, not the end of the search.

    The seeds are the same for every trial (common random numbers), so that costs are compared seed
    by seed with those of the incumbent.
    """
    rows: list[dict[str, Any]] = []
    stopped = ""
    partial = False
    try:
        for seed in job.seeds:
            stopped = _settled(rows, job)
            if stopped:
                break
            result = job.simulate(
                job.plan,
                job.workload,
                job.latency,
                seeds=(seed,),
                cluster=job.cluster,
                stop=_stop(job, first=not rows),
                watched=False,
            )
            rows.append({name: found.value for name, found in result.metrics.items()})
            stopped, partial = result.stopped, bool(result.stopped)
            if partial:
                break
    except WorkbenchError as error:
        return failed(str(error))
    except Exception as error:
        return failed(f"{type(error).__name__}: {error}")
    names = [name for name in rows[0] if all(name in row for row in rows)]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    hours = tuple(row["gpu_hours"] for row in rows)
    return Score(means, over_limits(rows, job.plan.slo), hours, stopped, partial=partial)


def _stop(job: Job, *, first: bool) -> Stop | None:
    """The same verdicts as after the day, as soon as they are certain."""
    if not (job.race and job.early):
        return None
    dear = DEARER * job.incumbent[0] if first and job.incumbent else inf
    return Stop(times_over=CLEARLY, gpu_hours=dear)


def failed(why: str) -> Score:
    """What came of a trial that could not be run."""
    return Score({}, {}, (), error=why)


def _settled(rows: Sequence[Mapping[str, float]], job: Job) -> str:
    """Why no further seed is needed; empty where one is."""
    if not rows or not job.race:
        return ""
    if any(value > CLEARLY - 1 for value in over_limits(rows, job.plan.slo).values()):
        return "breaks the SLO"
    return "costs more" if _dearer([row["gpu_hours"] for row in rows], job.incumbent) else ""


def _dearer(hours: Sequence[float], incumbent: Sequence[float]) -> bool:
    """Whether it costs more than the incumbent, seed by seed: by far, or by the paired interval."""
    ratios = [mine / best for mine, best in zip(hours, incumbent, strict=False) if best > 0]
    if len(ratios) < 2:
        return any(ratio > DEARER for ratio in ratios)
    return estimate(ratios).low > 1


def over_limits(rows: Sequence[Mapping[str, float]], slo: Slo) -> dict[str, float]:
    """{limit: worst row / limit - 1}. A metric that no request had binds nothing (TPOT of one token)."""
    found = [{**row, **lost_shares(row)} for row in rows]
    return {
        name: max((row[name] for row in found if name in row), default=0.0) / limit - 1
        for name, limit in limits_of(slo).items()
    }
