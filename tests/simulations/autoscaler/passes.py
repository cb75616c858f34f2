"""Passes of a fleet in which every pod is ready and reports the same."""

from __future__ import annotations

from typing import Any

from serving.hpa import ExternalMetric, HpaSpec, Metric, MetricIdentifier, Target, pods_metric
from simulations.autoscaler import (
    Compiled,
    Decision,
    Metrics,
    Options,
    Pod,
    Sample,
    State,
    reconcile,
)


def external(value: int) -> Metric:
    target = Target(type="Value", value=value)
    source = ExternalMetric(metric=MetricIdentifier(name="queue"), target=target)
    return Metric(type="External", external=source)


def spec(**changes: Any) -> HpaSpec:
    return HpaSpec(**({"max_replicas": 20, "metrics": (pods_metric("m", 10),)} | changes))


def one_pass(
    of: HpaSpec,
    current: int,
    level: float,
    state: State | None = None,
    options: Options | None = None,
    **changes: Any,
) -> Decision:
    """A pass in which every pod is ready and reports `level` times the target of 10."""
    arguments: dict[str, Any] = {
        "now_s": 0.0,
        "current": current,
        "status_replicas": current,
        "pods": [Pod(str(i)) for i in range(current)],
        "metrics": Metrics(
            pods={"m": {str(i): Sample(round(level * 10_000)) for i in range(current)}},
            external={"queue": [round(level * 10_000)]},
        ),
    }
    return reconcile(Compiled.of(of, options), state or State(log=()), **(arguments | changes))
