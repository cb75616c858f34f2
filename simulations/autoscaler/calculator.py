"""One metric -> a number of replicas.

Arithmetic is upstream's: whole thousandths, truncated where upstream truncates; then doubles, divided
before they are multiplied, and rounded up last.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

from simulations.autoscaler.values import MetricError, Pod

MAX_INT32 = 2**31 - 1
Tolerances = tuple[float, float]
"""(down, up)."""


def within(ratio: float, tolerances: Tolerances) -> bool:
    """Whether a ratio is close enough to 1 to change nothing; both ends belong to it."""
    down, up = tolerances
    return 1.0 - down <= ratio <= 1.0 + up


def per_pod(
    current: int,
    pods: Sequence[Pod],
    values: Mapping[str, int],
    target: int,
    tolerances: Tolerances,
) -> int:
    """Replicas for a Pods metric with an average-value target.

    Readiness is never looked at (that is for cpu alone): pods that are Pending count as 0 on the way up
    and not at all on the way down; missing ones as 0 on the way up and as the target on the way down.

    Raises:  MetricError: no pod has a value.
    """
    ignored = {pod.name for pod in pods if pod.deleted or pod.phase == "Failed"}
    unready = {pod.name for pod in pods if pod.name not in ignored and pod.phase == "Pending"}
    counted = [pod.name for pod in pods if pod.name not in ignored and pod.name not in unready]
    missing = [name for name in counted if name not in values]
    ready_count = len(counted) - len(missing)
    filled = {k: v for k, v in values.items() if k not in ignored and k not in unready}
    if not filled:
        raise MetricError("FailedGetPodsMetric", "did not receive metrics for targeted pods")
    ratio = _ratio(filled, target)
    scale_up_with_unready = bool(unready) and ratio > 1.0
    if not missing and not scale_up_with_unready:
        return current if within(ratio, tolerances) else math.ceil(ratio * ready_count)
    if ratio < 1.0:
        filled.update(dict.fromkeys(missing, target))
    elif ratio > 1.0:
        filled.update(dict.fromkeys(missing, 0))
    if scale_up_with_unready:
        filled.update(dict.fromkeys(unready, 0))
    filled_ratio = _ratio(filled, target)
    turned = (ratio < 1.0 < filled_ratio) or (ratio > 1.0 > filled_ratio)
    if within(filled_ratio, tolerances) or turned:
        return current
    replicas = math.ceil(filled_ratio * len(filled))
    # Filling in must not turn a change of direction into a change.
    if (filled_ratio < 1.0 and replicas > current) or (filled_ratio > 1.0 and replicas < current):
        return current
    return replicas


def _ratio(values: Mapping[str, int], target: int) -> float:
    return float(sum(values.values()) // len(values)) / float(target)


def total_value(
    current: int, pods: Sequence[Pod], usage: int, target: int, tolerances: Tolerances
) -> int:
    """Replicas for an Object or External metric with a Value target: multiplies what is ready."""
    ratio = float(usage) / float(target)
    if current == 0:
        return math.ceil(ratio)
    if within(ratio, tolerances):
        return current
    ready = sum(pod.phase == "Running" and pod.ready for pod in pods)
    return min(math.ceil(ratio * ready), MAX_INT32)


def total_average(status_replicas: int, usage: int, target: int, tolerances: Tolerances) -> int:
    """Replicas for an Object or External metric with an AverageValue target, readiness not asked."""
    if status_replicas > 0:
        ratio = float(usage) / (float(target) * status_replicas)
        if within(ratio, tolerances):
            return status_replicas
    return math.ceil(usage / target)
