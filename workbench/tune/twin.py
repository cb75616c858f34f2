"""The twin as a search uses it: one workload and cluster, many plans, run by whoever there is."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from serving.plan import Plan, Slo
from serving.values import Estimate
from simulations.engine import estimate
from simulations.fleet import Activation, Cluster
from simulations.promise import broken
from simulations.result import SimResult
from simulations.traffic import Workload
from workbench.tune.evaluate import Job, Score, Simulate
from workbench.tune.point import Ground
from workbench.tune.workers import Run


@dataclass(frozen=True)
class Verdict:
    """What a plan comes to over several seeds.

    Attributes:
        metrics: {name: mean over the seeds, with its interval}.
        keeps_slo: by the upper ends of the intervals, as `SimResult.keeps_slo`.
        error: why there is no result; empty where there is.
    """

    metrics: Mapping[str, Estimate]
    keeps_slo: bool
    error: str = ""

    @classmethod
    def of(cls, scores: Sequence[Score], slo: Slo) -> Verdict:
        """Of the scores of one seed each."""
        error = next((score.error for score in scores if score.error), "")
        if error:
            return cls({}, False, error)
        rows = [score.metrics for score in scores]
        metrics = {
            name: estimate([row[name] for row in rows])
            for name in rows[0]
            if all(name in row for row in rows)
        }
        return cls(metrics, not broken(metrics, slo))


@dataclass(frozen=True)
class Twin:
    """Simulates plans over seeds.

    Attributes:
        simulate: the twin itself.
        run: who runs it.
    """

    ground: Ground
    workload: Workload
    cluster: Cluster
    simulate: Simulate
    run: Run

    def job(
        self,
        plan: Plan,
        seeds: Sequence[int],
        incumbent: tuple[float, ...] = (),
        *,
        race: bool = True,
        early: bool = False,
    ) -> Job:
        """A trial of a plan."""
        latency = self.ground.candidate(plan.variant.name).latency
        where = cluster_of(plan, self.cluster)
        return Job(
            plan, self.workload, latency, tuple(seeds), where, self.simulate, incumbent, race, early
        )

    def scores(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[tuple[Score, ...]]:
        """By plan, the score of each seed; all of them may run at the same time."""
        jobs = [self.job(plan, (seed,)) for plan in plans for seed in seeds]
        found, each = list(self.run(jobs)), len(seeds)
        return [tuple(found[at : at + each]) for at in range(0, len(found), each)]

    def verdicts(self, plans: Sequence[Plan], seeds: Sequence[int]) -> list[Verdict]:
        """By plan, what it comes to over the seeds."""
        slo = self.ground.slo
        return [Verdict.of(scores, slo) for scores in self.scores(plans, seeds)]

    def result(self, plan: Plan, seeds: Sequence[int]) -> SimResult:
        """The whole result, in this process."""
        latency = self.ground.candidate(plan.variant.name).latency
        where = cluster_of(plan, self.cluster)
        return self.simulate(plan, self.workload, latency, seeds=seeds, cluster=where)


def cluster_of(plan: Plan, cluster: Cluster) -> Cluster:
    """The cluster that a plan needs: one that scales to zero needs what wakes it up again."""
    if plan.hpa is None or plan.hpa.min_replicas > 0 or cluster.activation is not None:
        return cluster
    return cluster.model_copy(update={"activation": Activation()})
