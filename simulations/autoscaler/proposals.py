"""The metrics of a spec -> one number of replicas.

Source:  horizontal.go (computeReplicasForMetrics, computeStatusFor*), v1.37.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TypeVar

from serving.hpa import (
    ContainerResourceMetric,
    ExternalMetric,
    Metric,
    MetricIdentifier,
    ObjectMetric,
    PodsMetric,
    ResourceMetric,
    Target,
    milli,
)
from simulations.autoscaler import calculator
from simulations.autoscaler.options import Options
from simulations.autoscaler.pods import samples_of
from simulations.autoscaler.status import MetricStatus
from simulations.autoscaler.values import MetricError, Metrics, Pod, Replicas, Sample, Tolerances

Answer = TypeVar("Answer")


@dataclass(frozen=True, slots=True)
class Seen:
    """What a pass works on."""

    now_s: float
    current: int
    """spec.replicas of the scale."""
    status_replicas: int
    pods: Sequence[Pod]
    metrics: Metrics
    tolerances: Tolerances
    options: Options


@dataclass(frozen=True, slots=True)
class Failure:
    """A metric without a proposal: the reason of the condition, and what happened."""

    reason: str
    message: str


@dataclass(frozen=True, slots=True)
class Proposal:
    """What the metrics ask for together."""

    count: int | None
    """None: nothing can be done."""
    metric: str
    """The metric that asks for the most."""
    statuses: tuple[MetricStatus | None, ...]
    failures: tuple[Failure, ...]


def combined(metrics: Sequence[Metric], seen: Seen) -> Proposal:
    """The largest valid proposal.

    None if every metric fails, or if some fail and the others would scale down: what is not known may
    need the replicas.
    """
    best, name = 0, ""
    statuses: list[MetricStatus | None] = []
    failures: list[Failure] = []
    for metric in metrics:
        found = _of(metric, seen)
        if isinstance(found, Failure):
            failures.append(found)
            statuses.append(None)
            continue
        statuses.append(found)
        # Upstream's own test, by which a negative proposal takes the place of 0.
        if best == 0 or found.replicas.count > best:
            best, name = found.replicas.count, found.name
    lost = len(failures) >= len(metrics) or (bool(failures) and best < seen.current)
    return Proposal(None if lost else best, name, tuple(statuses), tuple(failures))


def _of(metric: Metric, seen: Seen) -> MetricStatus | Failure:
    source = {
        "Pods": metric.pods,
        "Object": metric.object,
        "External": metric.external,
        "Resource": metric.resource,
        "ContainerResource": metric.container_resource,
    }.get(metric.type)
    reason = f"FailedGet{metric.type}Metric"
    try:
        match source:
            case PodsMetric():
                return _pods(source, seen)
            case ObjectMetric():
                return _object(source, seen)
            case ExternalMetric():
                return _external(source, seen)
            case ResourceMetric():
                return _resource(source, "", seen)
            case ContainerResourceMetric():
                return _resource(source, source.container, seen)
            case None:
                problem = f'unknown metric source type "{metric.type}"'
                return Failure("InvalidMetricSourceType", problem)
    except MetricError as error:
        return Failure(reason, str(error))


def _answer(answers: Mapping[str, Answer], name: str, api: str) -> Answer:
    if name not in answers:
        raise MetricError(f"unable to get metric {name}: unable to fetch metrics from {api} API")
    return answers[name]


def _pods(source: PodsMetric, seen: Seen) -> MetricStatus:
    name = source.metric.name
    samples = _answer(seen.metrics.pods, name, "custom metrics")
    if not samples:
        raise MetricError(
            f"unable to get metric {name}: no metrics returned from custom metrics API"
        )
    if source.target.average_value is None:
        raise MetricError("invalid pods metric source: no average value target was set")
    found = _average(samples, source.target, seen, "")
    return MetricStatus(f"pods metric {name}", found)


def _average(samples: Mapping[str, Sample], target: Target, seen: Seen, resource: str) -> Replicas:
    assert target.average_value is not None
    return calculator.average(
        seen.current,
        seen.pods,
        samples,
        milli(target.average_value),
        resource=resource,
        tolerances=seen.tolerances,
        options=seen.options,
        now_s=seen.now_s,
    )


def _resource(
    source: ResourceMetric | ContainerResourceMetric, container: str, seen: Seen
) -> MetricStatus:
    name, target = source.name, source.target
    if target.average_value is None and target.average_utilization is None:
        raise MetricError(
            "invalid resource metric source: neither an average utilization target nor an average"
            " value (usage) target was set"
        )
    usages = _answer(seen.metrics.resources, name, "resource metrics")
    if not usages:
        raise MetricError(
            f"unable to get metrics for resource {name}: no metrics returned from resource"
            " metrics API"
        )
    samples = samples_of(usages, container, seen.options)
    if target.average_value is not None:
        return MetricStatus(f"{name} resource", _average(samples, target, seen, name))
    assert target.average_utilization is not None
    found = calculator.utilization(
        seen.current,
        seen.pods,
        samples,
        target.average_utilization,
        resource=name,
        container=container,
        tolerances=seen.tolerances,
        options=seen.options,
        now_s=seen.now_s,
    )
    kind = "container resource" if container else "resource"
    return MetricStatus(f"{name} {kind} utilization (percentage of request)", found)


def _object(source: ObjectMetric, seen: Seen) -> MetricStatus:
    name, target = source.metric.name, source.target
    if target.type == "Value" and target.value is not None:
        usage = _answer(seen.metrics.objects, name, "custom metrics")
        found = calculator.total_value(
            seen.current, seen.pods, usage, milli(target.value), seen.tolerances
        )
        return MetricStatus(f"{source.described_object.kind} metric {name}", found)
    if target.type == "AverageValue" and target.average_value is not None:
        usage = _answer(seen.metrics.objects, name, "custom metrics")
        found = calculator.total_average(
            seen.status_replicas, usage, milli(target.average_value), seen.tolerances
        )
        return MetricStatus(_external_name(source.metric), found)
    raise MetricError(
        "invalid object metric source: neither a value target nor an average value target was set"
    )


def _external(source: ExternalMetric, seen: Seen) -> MetricStatus:
    name, target = source.metric.name, source.target
    if target.average_value is None and target.value is None:
        raise MetricError(
            "invalid external metric source: neither a value target nor an average value target"
            " was set"
        )
    series = _answer(seen.metrics.external, name, "external metrics")
    if not series:
        raise MetricError(
            f"unable to get external metric {name}: no metrics returned from external metrics API"
        )
    if target.average_value is not None:
        usage = calculator.sum_of_series(series, per_pod=True)
        found = calculator.total_average(
            seen.status_replicas, usage, milli(target.average_value), seen.tolerances
        )
    else:
        assert target.value is not None
        usage = calculator.sum_of_series(series)
        found = calculator.total_value(
            seen.current, seen.pods, usage, milli(target.value), seen.tolerances
        )
    return MetricStatus(_external_name(source.metric), found)


def _external_name(metric: MetricIdentifier) -> str:
    selector = "nil" if metric.selector is None else metric.selector
    return f"external metric {metric.name}({selector})"
