"""What one trial is worth: a plan over the seeds of the search."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Protocol

from serving.errors import WorkbenchError
from serving.plan import Plan, Slo
from simulations.fleet import Activation, Cluster
from simulations.latency import LatencyModel
from simulations.result import SimResult
from simulations.traffic import Workload

CLEARLY = 1.5
"""A first seed this many times over a limit settles it."""


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


@dataclass(frozen=True)
class Score:
    """What came of a trial.

    Attributes:
        metrics: {name: mean over the seeds that were run}.
        over: {limit: worst seed / limit - 1}; above 0 the limit is broken.
        seeds_run: fewer than asked where the first settled it.
        error: why there is no result; empty where there is.
    """

    metrics: Mapping[str, float]
    over: Mapping[str, float]
    seeds_run: int
    error: str = ""

    @property
    def keeps_slo(self) -> bool:
        return not self.error and all(value <= 0 for value in self.over.values())


def ground_of(plan: Plan, cluster: Cluster) -> Cluster:
    """The cluster that a plan needs: one that scales to zero needs what wakes it up again."""
    if plan.hpa is None or plan.hpa.min_replicas > 0 or cluster.activation is not None:
        return cluster
    return cluster.model_copy(update={"activation": Activation()})


def score(job: Job) -> Score:
    """Run a trial seed by seed; an exception is a failed trial, not the end of the search."""
    rows: list[dict[str, Any]] = []
    try:
        for seed in job.seeds:
            result = job.simulate(
                job.plan, job.workload, job.latency, seeds=(seed,), cluster=job.cluster
            )
            rows.append({name: found.value for name, found in result.metrics.items()})
            if any(value > CLEARLY - 1 for value in over_limits(rows, job.plan.slo).values()):
                break
    except WorkbenchError as error:
        return Score({}, {}, len(rows), str(error))
    except Exception as error:
        return Score({}, {}, len(rows), f"{type(error).__name__}: {error}")
    names = [name for name in rows[0] if all(name in row for row in rows)]
    means = {name: sum(row[name] for row in rows) / len(rows) for name in names}
    return Score(means, over_limits(rows, job.plan.slo), len(rows))


def over_limits(rows: Sequence[Mapping[str, float]], slo: Slo) -> dict[str, float]:
    """{limit: worst / limit - 1}. A metric that no request had (TPOT of one token) binds nothing."""
    return {
        name: max((row[name] for row in rows if name in row), default=0.0) / limit - 1
        for name, limit in slo.limits().items()
    }
