"""One metric -> a number of replicas.

Arithmetic is upstream's and must not be improved: whole thousandths, truncated where upstream truncates;
then doubles, divided before they are multiplied, and rounded up last.

Source:  replica_calculator.go and metrics/utilization.go, v1.37.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence

from simulations.autoscaler import pods as _pods
from simulations.autoscaler.options import Options
from simulations.autoscaler.values import (
    MAX_INT32,
    MAX_INT64,
    MetricError,
    Pod,
    Replicas,
    Sample,
    Tolerances,
)

_NO_PODS = "no pods returned by selector while calculating replica count"
_NO_METRICS = "did not receive metrics for targeted pods (pods might be unready)"
Ratio = Callable[[Mapping[str, int]], float]


def utilization(
    current: int,
    pods: Sequence[Pod],
    samples: Mapping[str, Sample],
    target_percent: int,
    *,
    resource: str,
    container: str = "",
    tolerances: Tolerances,
    options: Options,
    now_s: float,
) -> Replicas:
    """Replicas that bring a resource to a share of its requests.

    Utilization is truncated to a whole percent before the ratio is formed.

    Raises:  MetricError: no pods, no metric of a pod that counts, or a request that is missing.
    """
    groups, kept = _counted(pods, samples, resource, options, now_s)
    asked = _pods.requests(pods, container, resource, options)
    percent, average = _utilization(kept, asked)
    least = 0 if options.missing_uses_request else target_percent
    count = _replicas(
        current,
        groups,
        kept,
        lambda values: float(_utilization(values, asked)[0]) / float(target_percent),
        lambda pod: _quotient(asked[pod] * max(100, least), 100),
        tolerances,
    )
    return Replicas(count, average, percent)


def average(
    current: int,
    pods: Sequence[Pod],
    samples: Mapping[str, Sample],
    target: int,
    *,
    resource: str = "",
    tolerances: Tolerances,
    options: Options,
    now_s: float,
) -> Replicas:
    """Replicas that bring the average over pods to a target, in milli.

    For Pods metrics the resource is '', and readiness is never looked at. The average is over all pods
    that report, those that nobody lists too.

    Raises:  MetricError: no pods, or no metric of a pod that counts.
    """
    groups, kept = _counted(pods, samples, resource, options, now_s)
    count = _replicas(
        current,
        groups,
        kept,
        lambda values: float(_mean(values)) / float(target),
        lambda _: target,
        tolerances,
    )
    return Replicas(count, _mean(kept))


def _counted(
    pods: Sequence[Pod],
    samples: Mapping[str, Sample],
    resource: str,
    options: Options,
    now_s: float,
) -> tuple[_pods.Groups, dict[str, int]]:
    """The pods' groups, and the values that are left without the ignored and the unready."""
    if not pods:
        raise MetricError(_NO_PODS)
    groups = _pods.group(pods, samples, resource, options, now_s)
    left_out = groups.ignored | groups.unready
    kept = {pod: sample.milli for pod, sample in samples.items() if pod not in left_out}
    if not kept:
        raise MetricError(_NO_METRICS)
    return groups, kept


def _replicas(
    current: int,
    groups: _pods.Groups,
    kept: Mapping[str, int],
    ratio_of: Ratio,
    full: Callable[[str], int],
    tolerances: Tolerances,
) -> int:
    """The decision that both kinds share.

    Pods without a value are filled in against the direction: as 0 on the way up, and on the way down
    as `full` if they are missing and not at all if they are unready. Filling in may damp a change but
    never turn it. The multiplier is the number of pods that count, not `current`.
    """
    ratio = ratio_of(kept)
    up_with_unready = bool(groups.unready) and ratio > 1.0
    if not groups.missing and not up_with_unready:
        return current if tolerances.within(ratio) else _ceil(ratio * float(groups.ready_count))
    filled = dict(kept)
    if ratio < 1.0:
        filled |= {pod: full(pod) for pod in groups.missing}
    elif ratio > 1.0:
        filled |= dict.fromkeys(groups.missing, 0)
    if up_with_unready:
        filled |= dict.fromkeys(groups.unready, 0)
    again = ratio_of(filled)
    if tolerances.within(again) or (ratio < 1.0 < again) or (ratio > 1.0 > again):
        return current
    count = _ceil(again * float(len(filled)))
    turned = (again < 1.0 and count > current) or (again > 1.0 and count < current)
    return current if turned else count


def _utilization(values: Mapping[str, int], asked: Mapping[str, int]) -> tuple[int, int]:
    """(percent, average in milli) over the pods that have both a value and a request."""
    known = [pod for pod in values if pod in asked]
    requested = sum(asked[pod] for pod in known)
    if requested == 0:
        raise MetricError("no metrics returned matched known pods")
    total = sum(values[pod] for pod in known)
    return _quotient(total * 100, requested), _quotient(total, len(known))


def _mean(values: Mapping[str, int]) -> int:
    return _quotient(sum(values.values()), len(values))


def _quotient(number: int, divisor: int) -> int:
    """Whole division that truncates towards 0, as Go's does; Python's rounds down."""
    return number // divisor if number >= 0 else -(-number // divisor)


def _ceil(value: float) -> int:
    """Up to a whole number that fits 32 bits."""
    return MAX_INT32 if value > MAX_INT32 else math.ceil(value)


def total_value(
    current: int, pods: Sequence[Pod], usage: int, target: int, tolerances: Tolerances
) -> Replicas:
    """Replicas for an Object or External metric with a Value target: multiplies what is ready.

    With nothing ready the result is 0, so the fleet shrinks to its minimum (kubernetes#130130). At 0
    replicas there is no tolerance, and nothing to multiply.

    Raises:  MetricError: no pods.
    """
    ratio = float(usage) / float(target)
    if current == 0:
        return Replicas(_ceil(ratio), usage)
    if tolerances.within(ratio):
        return Replicas(current, usage)
    if not pods:
        raise MetricError(f"unable to calculate ready pods: {_NO_PODS}")
    ready = sum(pod.phase == "Running" and pod.ready == "True" for pod in pods)
    return Replicas(_ceil(ratio * float(ready)), usage)


def total_average(
    status_replicas: int, usage: int, target: int, tolerances: Tolerances
) -> Replicas:
    """Replicas for an Object or External metric with an AverageValue target; nobody asks who is ready.

    At status.replicas 0 the ratio is infinite or no number, and so never within the tolerance.
    """
    count = status_replicas
    if status_replicas == 0 or not tolerances.within(
        float(usage) / (float(target) * float(status_replicas))
    ):
        count = _ceil(float(usage) / float(target))
    return Replicas(count, per_pod_usage(usage, status_replicas))


def per_pod_usage(usage: int, status_replicas: int) -> int:
    """What is reported of a total: its share of a replica, rounded up."""
    if float(usage) >= float(MAX_INT64):
        return MAX_INT64
    return 0 if status_replicas == 0 else math.ceil(float(usage) / float(status_replicas))


def sum_of_series(series: Sequence[int], *, per_pod: bool = False) -> int:
    """The series of an External metric as one value, which stops at the largest 64-bit number.

    Upstream finds an overflow for AverageValue by the sign of the sum, so there a sum below 0 becomes
    the largest number as well.
    """
    usage = 0
    for value in series:
        usage += value
        if usage > MAX_INT64 or (per_pod and usage < 0):
            return MAX_INT64
    return usage
