"""Whether a new version is worse than the old one, by what both show while both serve.

Two one-sided tests of the new version against the old one over the same time, and for each an effect
that must be seen as well, since of many requests any difference is significant:

- errors: Fisher's exact test on failed and answered requests, valid for any number of them;
- latency: the Mann-Whitney test on vLLM's histogram buckets, whose ties are many and corrected for.

They look again and again at what accumulates. Bonferroni over all looks of the whole rollout keeps the
chance that a sound version is rolled back by either below 1 - confidence, whatever the dependence.

What is compared is what users see: a canary with less load than the old replicas hides a slowdown.

Source:  Fisher, Statistical Methods for Research Workers; Mann and Whitney, Ann. Math. Stat. 18 (1947);
         Kayenta (spinnaker/kayenta, NetflixACAJudge) for Mann-Whitney with an effect size;
         Hanley and Lippman-Hand, JAMA 249 (1983), the rule of three, for the minimum sample.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal, Self

import numpy as np
import numpy.typing as npt
from pydantic import Field, model_validator
from scipy import stats

from serving.values import Value
from simulations.engine import Reading

IntArray = npt.NDArray[np.int64]
Verdict = Literal["worse", "sound", "undecided"]


class Analysis(Value):
    """When a new version counts as worse, and when it has been watched for long enough."""

    window_s: float = Field(300.0, gt=0)
    """The least time that each step is watched."""
    look_s: float = Field(60.0, gt=0)
    """Between two looks, at each of which the version may be found worse."""
    max_windows: int = Field(4, ge=1)
    """Windows for which a step waits for `min_requests`; then it is rolled back as undecided."""
    min_requests: int = Field(300, ge=1)
    """Of either version in a step, before latency is judged and before it may pass. Without
    a failure among 300 the rate of failures is below 1 % with 95 % confidence."""
    max_error_increase: float = Field(0.005, ge=0, le=1)
    """Failures less those of the old version, as shares of requests: more is worse."""
    max_slowdown: float = Field(1.2, ge=1)
    """Mean latency over that of the old version: more is worse."""
    latency: Literal["ttft", "tpot", "e2e"] = "tpot"
    """Which latency is compared."""
    confidence: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _looks(self) -> Self:
        if self.look_s > self.window_s:
            raise ValueError(f"look_s(={self.look_s}) must be <= window_s(={self.window_s})")
        return self

    def looks(self, steps: int) -> int:
        """The most looks that a rollout of so many steps takes."""
        return steps * int(np.ceil(self.max_windows * self.window_s / self.look_s))


@dataclass(frozen=True)
class Served:
    """What replicas of one version have shown so far."""

    answered: int
    failed: int
    latency_sum_s: float
    buckets: IntArray
    """Latencies by bucket, not cumulated."""

    @classmethod
    def of(cls, readings: Iterable[Reading], lost: int, latency: str) -> Self:
        """The sum over replicas, and what those lost that died with requests."""
        answered, failed = 0, lost
        total_s = 0.0
        buckets = np.zeros(1, dtype=np.int64)
        for reading in readings:
            answered += reading.finished
            failed += reading.failed
            total_s += getattr(reading, f"{latency}_sum_s")
            buckets = buckets + reading.histograms[latency]
        return cls(answered, failed, total_s, buckets)

    def since(self, before: Self) -> Self:
        """What came after an earlier look."""
        return type(self)(
            self.answered - before.answered,
            self.failed - before.failed,
            self.latency_sum_s - before.latency_sum_s,
            self.buckets - before.buckets,
        )

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    @property
    def mean_s(self) -> float:
        """Mean latency; NaN of nothing."""
        count = int(self.buckets.sum())
        return self.latency_sum_s / count if count else np.nan


def judge(new: Served, old: Served, rule: Analysis, looks: int) -> Verdict:
    """One look at both versions since the step began.

    Args:    looks: how many there may be in the whole rollout.
    """
    level = (1 - rule.confidence) / (2 * looks)
    if fails_more(new, old, rule.max_error_increase) < level:
        return "worse"
    if min(new.requests, old.requests) < rule.min_requests:
        return "undecided"
    if is_slower(new, old, rule.max_slowdown) < level:
        return "worse"
    return "sound"


def fails_more(new: Served, old: Served, increase: float) -> float:
    """p of failing no more than the old version; 1 where what is seen is within the increase."""
    if new.requests == 0 or old.requests == 0:
        return 1.0
    if new.failed / new.requests - old.failed / old.requests <= increase:
        return 1.0
    total, failed = new.requests + old.requests, new.failed + old.failed
    return float(stats.hypergeom.sf(new.failed - 1, total, failed, new.requests))


def is_slower(new: Served, old: Served, slowdown: float) -> float:
    """p of being no slower than the old version; 1 where the means are within the slowdown."""
    n, m = int(new.buckets.sum()), int(old.buckets.sum())
    if n == 0 or m == 0 or not new.mean_s > slowdown * old.mean_s:
        return 1.0
    below = np.cumsum(old.buckets) - old.buckets
    larger = float((new.buckets * (below + old.buckets / 2)).sum())
    both = (new.buckets + old.buckets).astype(np.float64)
    total = n + m
    ties = float((both**3 - both).sum()) / (total * (total - 1))
    spread = np.sqrt(n * m / 12 * (total + 1 - ties))
    if spread == 0:  # all in one bucket
        return 1.0
    return float(stats.norm.sf((larger - n * m / 2 - 0.5) / spread))
