"""Where each metric may be held, and as which kind of metric the HPA reads it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Literal

from pydantic import Field, model_validator

from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    TTFT_MEAN,
    ExternalMetric,
    Metric,
    MetricIdentifier,
    ObjectMetric,
    ObjectReference,
    Target,
    pods_metric,
    quantity,
)
from serving.values import Value

Source = Literal["Pods", "External", "Object"]
_LEAST = 0.001
"""The HPA reads thousandths and refuses 0."""
_GATEWAY = ObjectReference(api_version="v1", kind="Service", name="gateway")


class TargetRange(Value):
    """Where a metric may be held, searched on a logarithmic scale; a number holds it there."""

    low: float = Field(gt=0)
    high: float = Field(gt=0)
    of_max_num_seqs: bool = False
    """The range is in shares of the engine's max_num_seqs."""
    summed: bool = False
    """As an External or Object metric it is a sum over pods, held at an average; others are means."""

    @model_validator(mode="after")
    def _ordered(self) -> TargetRange:
        if self.low > self.high:
            raise ValueError(f"low(={self.low}) must be <= high(={self.high})")
        return self

    def metric(self, name: str, value: float, source: Source, max_num_seqs: int) -> Metric:
        """The metric as the HPA is told of it."""
        held = max(_LEAST, round(value * (max_num_seqs if self.of_max_num_seqs else 1), 3))
        if source == "Pods":
            return pods_metric(name, held)
        at = quantity(held)
        target = (
            Target(type="AverageValue", average_value=at)
            if self.summed
            else Target(type="Value", value=at)
        )
        known = MetricIdentifier(name=name)
        if source == "External":
            return Metric(type=source, external=ExternalMetric(metric=known, target=target))
        about = ObjectMetric(described_object=_GATEWAY, metric=known, target=target)
        return Metric(type=source, object=about)


TARGETS: Mapping[str, TargetRange] = {
    REQUESTS_RUNNING: TargetRange(low=0.1, high=1.0, of_max_num_seqs=True, summed=True),
    REQUESTS_WAITING: TargetRange(low=0.05, high=20, summed=True),
    KV_CACHE_USAGE: TargetRange(low=0.01, high=0.9),
    GPU_UTILISATION: TargetRange(low=5, high=98),
    TTFT_MEAN: TargetRange(low=0.01, high=2),
}


def merged(given: Mapping[str, Any]) -> dict[str, Any]:
    """The usual ranges, changed where something is given: a number, [low, high], or single fields."""
    found: dict[str, Any] = dict(TARGETS)
    for name, change in given.items():
        usual = TARGETS[name].model_dump() if name in TARGETS else {}
        match change:
            case int() | float():
                found[name] = usual | {"low": change, "high": change}
            case [low, high]:
                found[name] = usual | {"low": low, "high": high}
            case dict():
                found[name] = usual | change
            case _:
                found[name] = change
    return found
