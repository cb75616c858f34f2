"""Whether a new version is worse than the old one, by what both show while both serve.

Two one-sided tests of the new version against the old one over the same time, and for each an effect
that must be seen as well, since of many requests any difference is significant:

- errors: Fisher's exact test on failed and answered requests, valid for any number of them;
- latency: the Mann-Whitney test on vLLM's histogram buckets, whose ties are many and corrected for.

They look again and again at what accumulates. Bonferroni over all looks of the whole rollout keeps the
chance that a sound version is rolled back by either below 1 - confidence, whatever the dependence.
Errors are tested at every look, so that an obvious failure ends at the first one; no data is neither
sound nor worse.

What is compared is what users see: a canary with less load than the old replicas hides a slowdown.
The gateway and the simulated fleet both judge by this module, so it is plain Python.

Source:  Fisher, Statistical Methods for Research Workers; Mann and Whitney, Ann. Math. Stat. 18 (1947);
         Kayenta (spinnaker/kayenta, NetflixACAJudge) for Mann-Whitney with an effect size;
         Hanley and Lippman-Hand, JAMA 249 (1983), the rule of three, for the minimum sample.
"""

from __future__ import annotations

import math
from dataclasses import dataclass
from itertools import zip_longest
from typing import Literal, Self

from pydantic import Field, model_validator

from serving.values import Value

Verdict = Literal["worse", "sound", "undecided"]
Latency = Literal["ttft", "tpot", "e2e"]


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
    latency: Latency = "tpot"
    """Which latency is compared."""
    confidence: float = Field(0.95, gt=0, lt=1)

    @model_validator(mode="after")
    def _looks(self) -> Self:
        if self.look_s > self.window_s:
            raise ValueError(f"look_s(={self.look_s}) must be <= window_s(={self.window_s})")
        return self

    def looks(self, steps: int) -> int:
        """The most looks that a rollout of so many steps takes."""
        return steps * math.ceil(self.max_windows * self.window_s / self.look_s)

    def over(self, verdict: Verdict, watched_s: float) -> bool:
        """Whether a look ends the watching of a step: worse at once, sound after a window,
        undecided after all of them."""
        watched_s += 1e-6
        if watched_s >= self.max_windows * self.window_s or verdict == "worse":
            return True
        return verdict == "sound" and watched_s >= self.window_s


@dataclass(frozen=True)
class Served:
    """What one version has shown so far."""

    answered: int
    failed: int
    latency_sum_s: float
    buckets: tuple[int, ...]
    """Latencies by bucket, not cumulated."""

    def since(self, before: Self) -> Self:
        """What came after an earlier look."""
        return type(self)(
            self.answered - before.answered,
            self.failed - before.failed,
            self.latency_sum_s - before.latency_sum_s,
            tuple(
                now - then for now, then in zip_longest(self.buckets, before.buckets, fillvalue=0)
            ),
        )

    @property
    def requests(self) -> int:
        return self.answered + self.failed

    @property
    def mean_s(self) -> float:
        """Mean latency; NaN of nothing."""
        count = sum(self.buckets)
        return self.latency_sum_s / count if count else math.nan


def judge(new: Served, old: Served, rule: Analysis, looks: int) -> Verdict:
    """One look at both versions since the step began.

    Args:    looks: how many there may be in the whole rollout.
    """
    level = (1 - rule.confidence) / (2 * looks)
    if fails_more(new, old, rule.max_error_increase) < level:
        return "worse"
    if min(new.requests, old.requests) < rule.min_requests:
        return "undecided"
    if not sum(new.buckets) or not sum(old.buckets):  # no latency is no good latency
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
    return _hypergeometric_tail(
        new.failed, new.requests + old.requests, new.failed + old.failed, new.requests
    )


def is_slower(new: Served, old: Served, slowdown: float) -> float:
    """p of being no slower than the old version; 1 where the means are within the slowdown."""
    n, m = sum(new.buckets), sum(old.buckets)
    if n == 0 or m == 0 or not new.mean_s > slowdown * old.mean_s:
        return 1.0
    twice_larger = below = tied = 0
    for ours, theirs in zip_longest(new.buckets, old.buckets, fillvalue=0):
        twice_larger += ours * (2 * below + theirs)
        below += theirs
        tied += (ours + theirs) ** 3 - (ours + theirs)
    total = n + m
    spread = math.sqrt(n * m / 12 * (total + 1 - tied / (total * (total - 1))))
    if spread == 0:  # all in one bucket
        return 1.0
    return math.erfc((twice_larger / 2 - n * m / 2 - 0.5) / spread / math.sqrt(2)) / 2


def _hypergeometric_tail(seen: int, total: int, marked: int, drawn: int) -> float:
    """P(at least `seen` of the marked are among those drawn), for `seen` above its mean.

    Above the mean each term is smaller than the last, so that the sum may stop once they no longer
    count, and only the first needs factorials.
    """
    term = math.exp(
        _log_choose(marked, seen)
        + _log_choose(total - marked, drawn - seen)
        - _log_choose(total, drawn)
    )
    tail = 0.0
    for k in range(seen, min(marked, drawn) + 1):
        tail += term
        if term <= 1e-17 * tail:
            break
        term *= (marked - k) * (drawn - k) / ((k + 1) * (total - marked - drawn + k + 1))
    return min(tail, 1.0)


def _log_choose(n: int, k: int) -> float:
    return math.lgamma(n + 1) - math.lgamma(k + 1) - math.lgamma(n - k + 1)
