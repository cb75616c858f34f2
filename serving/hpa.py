"""The HorizontalPodAutoscaler spec, `autoscaling/v2`: what is simulated is what is applied.

Field names are Kubernetes' own (camelCase in YAML, snake_case here). Per-pod and external metrics
only: `Resource` carries cpu and memory and nothing else, so a GPU target needs a Pods metric with an
adapter rule behind it.

Source:  Kubernetes API reference, HorizontalPodAutoscaler autoscaling/v2.
"""

from __future__ import annotations

from decimal import Decimal
from typing import Annotated, Any, Literal

import yaml
from pydantic import AfterValidator, BeforeValidator, ConfigDict, Field, model_validator
from pydantic.alias_generators import to_camel

from serving.values import Value

GPU_UTILISATION = "DCGM_FI_DEV_GPU_UTIL"
"""Share of time the device was busy with anything at all, 0 to 100, as the DCGM exporter reports it."""
REQUESTS_RUNNING = "vllm_num_requests_running"
REQUESTS_WAITING = "vllm_num_requests_waiting"
KV_CACHE_USAGE = "vllm_kv_cache_usage_perc"
"""0 to 1, in spite of its name."""
TTFT_MEAN = "vllm_ttft_mean_seconds"
"""Mean TTFT of the last minute: a recording rule that the bundle ships."""

_SUFFIXES = {
    "m": Decimal("0.001"),
    "": Decimal(1),
    "k": Decimal(10) ** 3,
    "M": Decimal(10) ** 6,
    "G": Decimal(10) ** 9,
    "Ki": Decimal(2) ** 10,
    "Mi": Decimal(2) ** 20,
    "Gi": Decimal(2) ** 30,
}


def milli(quantity: str) -> int:
    """A Kubernetes quantity in thousandths, rounded up as the API server does: '70' is 70000."""
    number = quantity.rstrip("mkMGi")
    suffix = quantity[len(number) :]
    if suffix not in _SUFFIXES or not number:
        raise ValueError(f"quantity(={quantity!r}) must be a number with one of {list(_SUFFIXES)}")
    value = Decimal(number) * _SUFFIXES[suffix] * 1000
    return int(value.to_integral_value(rounding="ROUND_CEILING"))


def _checked(quantity: str) -> str:
    milli(quantity)
    return quantity


Quantity = Annotated[str, BeforeValidator(str), AfterValidator(_checked)]


def quantity(value: float) -> str:
    """The shortest quantity for a value, to a thousandth: 0.3 is '300m', 70.0 is '70'."""
    thousandths = round(value * 1000)
    return str(thousandths // 1000) if thousandths % 1000 == 0 else f"{thousandths}m"


class _Camel(Value):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)


class MetricIdentifier(_Camel):
    """Name (and, for External and Object, label selector) of a metric."""

    name: str
    selector: dict[str, Any] | None = None


class Target(_Camel):
    """What the metric is held at."""

    type: Literal["AverageValue", "Value", "Utilization"]
    average_value: Quantity | None = None
    value: Quantity | None = None
    average_utilization: int | None = Field(None, gt=0)

    @model_validator(mode="after")
    def _one_of(self) -> Target:
        wanted = {
            "AverageValue": self.average_value,
            "Value": self.value,
            "Utilization": self.average_utilization,
        }[self.type]
        if wanted is None:
            raise ValueError(f"type(={self.type!r}) needs the field of that name")
        if isinstance(wanted, str) and milli(wanted) <= 0:
            raise ValueError(f"target(={wanted!r}) must be > 0")
        return self


class PodsMetric(_Camel):
    """Average over the pods of the workload."""

    metric: MetricIdentifier
    target: Target


class ExternalMetric(_Camel):
    """One value from outside the cluster's objects, for example a sum over all replicas."""

    metric: MetricIdentifier
    target: Target


class ObjectMetric(_Camel):
    """One value that describes another object of the cluster."""

    described_object: dict[str, str]
    metric: MetricIdentifier
    target: Target


class ResourceMetric(_Camel):
    """cpu or memory, from the metrics server."""

    name: Literal["cpu", "memory"]
    target: Target


class Metric(_Camel):
    """One entry of `spec.metrics`."""

    type: Literal["Pods", "External", "Object", "Resource"]
    pods: PodsMetric | None = None
    external: ExternalMetric | None = None
    object: ObjectMetric | None = None
    resource: ResourceMetric | None = None

    @model_validator(mode="after")
    def _source_matches(self) -> Metric:
        if getattr(self, self.type.lower()) is None:
            raise ValueError(f"type(={self.type!r}) needs the field {self.type.lower()!r}")
        return self


class ScalingPolicy(_Camel):
    """At most `value` pods or percent per period."""

    type: Literal["Pods", "Percent"]
    value: int = Field(gt=0)
    period_seconds: int = Field(gt=0, le=1800)


class ScalingRules(_Camel):
    """One direction of `spec.behavior`; a field left out takes Kubernetes' default."""

    stabilization_window_seconds: int | None = Field(None, ge=0, le=3600)
    select_policy: Literal["Max", "Min", "Disabled"] | None = None
    policies: tuple[ScalingPolicy, ...] | None = None
    tolerance: Quantity | None = None


class Behavior(_Camel):
    """`spec.behavior`."""

    scale_up: ScalingRules | None = None
    scale_down: ScalingRules | None = None


class HpaSpec(_Camel):
    """The part of a HorizontalPodAutoscaler's spec that is tuned."""

    min_replicas: int = Field(1, ge=0)
    max_replicas: int = Field(ge=1)
    metrics: tuple[Metric, ...] = Field(min_length=1)
    behavior: Behavior | None = None

    @model_validator(mode="after")
    def _range(self) -> HpaSpec:
        if self.min_replicas > self.max_replicas:
            raise ValueError(
                f"min_replicas(={self.min_replicas}) must be <= max_replicas(={self.max_replicas})"
            )
        return self

    def manifest(self, name: str, target: str) -> dict[str, Any]:
        """The whole HorizontalPodAutoscaler object that scales Deployment `target`."""
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {
                "scaleTargetRef": {"apiVersion": "apps/v1", "kind": "Deployment", "name": target},
                **self.model_dump(mode="json", by_alias=True, exclude_none=True),
            },
        }

    @classmethod
    def from_yaml(cls, text: str) -> HpaSpec:
        """Read a HorizontalPodAutoscaler manifest."""
        spec = dict(yaml.safe_load(text)["spec"])
        spec.pop("scaleTargetRef", None)
        return cls.model_validate(spec)


def pods_metric(name: str, average: float) -> Metric:
    """A Pods metric held at an average value per pod."""
    return Metric(
        type="Pods",
        pods=PodsMetric(
            metric=MetricIdentifier(name=name),
            target=Target(type="AverageValue", average_value=quantity(average)),
        ),
    )
