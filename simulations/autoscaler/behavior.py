"""From a proposal to what is written: stabilization, rate limits, bounds.

Source:  horizontal.go (stabilizeRecommendation*, convertDesiredReplicas*, storeScaleEvent), v1.37, and
         the defaults of pkg/apis/autoscaling/v2/defaults.go.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from serving.hpa import ScalingPolicy, ScalingRules

_DEFAULT_UP = (
    ScalingPolicy(type="Pods", value=4, period_seconds=15),
    ScalingPolicy(type="Percent", value=100, period_seconds=15),
)
_DEFAULT_DOWN = (ScalingPolicy(type="Percent", value=100, period_seconds=15),)


@dataclass(frozen=True, slots=True)
class Recommendation:
    """A raw proposal, before bounds, and when it was made."""

    replicas: int
    at_s: float


@dataclass(frozen=True, slots=True)
class ScaleEvent:
    """A change that was written. An outdated one keeps its slot for the next."""

    change: int
    at_s: float
    outdated: bool = False


@dataclass(frozen=True, slots=True)
class Rules:
    """ScalingRules with every default filled in, as the API server does it."""

    window_s: float
    select: str
    """Max, Min or Disabled."""
    policies: tuple[tuple[str, int, float], ...]
    """(type, value, period_s)."""
    one_direction: bool = False
    """Options.events_of_one_direction."""

    @classmethod
    def up(cls, rules: ScalingRules | None, *, one_direction: bool = False) -> Rules:
        return cls._of(rules or ScalingRules(), 0.0, _DEFAULT_UP, one_direction)

    @classmethod
    def down(
        cls, rules: ScalingRules | None, window_s: float, *, one_direction: bool = False
    ) -> Rules:
        """`window_s` is the controller's flag, which a spec may override."""
        return cls._of(rules or ScalingRules(), window_s, _DEFAULT_DOWN, one_direction)

    @classmethod
    def _of(
        cls,
        rules: ScalingRules,
        window_s: float,
        policies: tuple[ScalingPolicy, ...],
        one_direction: bool,
    ) -> Rules:
        window = rules.stabilization_window_seconds
        chosen = policies if rules.policies is None else rules.policies
        return cls(
            window_s=window_s if window is None else float(window),
            select=rules.select_policy or "Max",
            policies=tuple((p.type, p.value, float(p.period_seconds)) for p in chosen),
            one_direction=one_direction,
        )

    @property
    def longest_period_s(self) -> float:
        return max((period for _, _, period in self.policies), default=0.0)


Log = tuple[Recommendation, ...]
Events = tuple[ScaleEvent, ...]


def stabilize_legacy(log: Log, desired: int, now_s: float, window_s: float) -> tuple[int, Log]:
    """The largest proposal of the window; used for both directions."""
    cutoff = now_s - window_s
    old = [i for i, known in enumerate(log) if known.at_s < cutoff]
    recent = [known.replicas for known in log if known.at_s >= cutoff]
    return max([desired, *recent]), _stored(log, old, desired, now_s)


def stabilize(
    log: Log, desired: int, current: int, now_s: float, up_s: float, down_s: float
) -> tuple[int, Log]:
    """Up only as far as every proposal of the up window, down only as far as every one of the down
    window; between the two nothing changes.
    """
    up = min([desired, *(k.replicas for k in log if k.at_s > now_s - up_s)])
    down = max([desired, *(k.replicas for k in log if k.at_s > now_s - down_s)])
    stable = current
    if stable < up:
        stable = up
    if stable > down:
        stable = down
    cutoff = now_s - max(up_s, down_s)
    old = [i for i, known in enumerate(log) if known.at_s < cutoff]
    return stable, _stored(log, old, desired, now_s)


def _stored(log: Log, old: Sequence[int], desired: int, now_s: float) -> Log:
    """The raw proposal in the last slot that is too old, else behind the others."""
    new = Recommendation(desired, now_s)
    if not old:
        return (*log, new)
    return (*log[: old[-1]], new, *log[old[-1] + 1 :])


def legacy_limits(
    current: int, desired: int, least: int, most: int, factor: float, minimum: float
) -> tuple[int, str]:
    """Bounds where spec.behavior is left out: at most double (and at least 4) at once, down at will."""
    up_limit = int(max(factor * current, minimum))
    if desired < least:
        return least, "TooFewReplicas"
    if desired > min(most, up_limit):
        return (most, "TooManyReplicas") if most <= up_limit else (up_limit, "ScaleUpLimit")
    return desired, "DesiredWithinRange"


def changed_within(events: Events, period_s: float, now_s: float) -> int:
    """Replicas changed in the events strictly younger than the period."""
    return sum(event.change for event in events if event.at_s > now_s - period_s)


def up_limit(current: int, ups: Events, downs: Events, rules: Rules, now_s: float) -> int:
    """The most replicas that the policies allow now: rounded up, so that 1 can grow by a percent."""
    if rules.select == "Disabled":
        return current
    proposals = []
    for kind, value, period_s in rules.policies:
        start = current - changed_within(ups, period_s, now_s)
        if not rules.one_direction:
            start += changed_within(downs, period_s, now_s)
        proposals.append(
            start + value if kind == "Pods" else math.ceil(float(start) * (1 + value / 100))
        )
    return min(proposals) if rules.select == "Min" else max(proposals)


def down_limit(current: int, ups: Events, downs: Events, rules: Rules, now_s: float) -> int:
    """The fewest replicas that the policies allow now: truncated, so it may be one fewer."""
    if rules.select == "Disabled":
        return current
    proposals = []
    for kind, value, period_s in rules.policies:
        start = current + changed_within(downs, period_s, now_s)
        if not rules.one_direction:
            start -= changed_within(ups, period_s, now_s)
        proposals.append(start - value if kind == "Pods" else int(float(start) * (1 - value / 100)))
    return max(proposals) if rules.select == "Min" else min(proposals)


def rate_limit(
    current: int,
    desired: int,
    least: int,
    most: int,
    *,
    ups: Events,
    downs: Events,
    up: Rules,
    down: Rules,
    now_s: float,
) -> tuple[int, str]:
    """Apply the policies of the direction, and the bounds."""
    if desired > current:
        limit = max(up_limit(current, ups, downs, up, now_s), current)
        cap = min(most, limit)
        if desired > cap:
            return cap, "TooManyReplicas" if most <= limit else "ScaleUpLimit"
    elif desired < current:
        limit = min(down_limit(current, ups, downs, down, now_s), current)
        floor = max(least, limit)
        if desired < floor:
            return floor, "TooFewReplicas" if least >= limit else "ScaleDownLimit"
    return desired, "DesiredWithinRange"


def stored(events: Events, change: int, rules: Rules, now_s: float) -> Events:
    """The events after a write: those older than the longest period are outdated, one slot reused."""
    cutoff = now_s - rules.longest_period_s
    marked = [ScaleEvent(e.change, e.at_s, True) if e.at_s < cutoff else e for e in events]
    new = ScaleEvent(change, now_s)
    free = [i for i, event in enumerate(marked) if event.outdated]
    if free:
        marked[free[-1]] = new
        return tuple(marked)
    return (*marked, new)
