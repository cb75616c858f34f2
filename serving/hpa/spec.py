"""The spec of a HorizontalPodAutoscaler, `autoscaling/v2`.

Field names are Kubernetes' own (camelCase in YAML, snake_case here). As at the API server, a field that
is left out has its zero value, null is the same as left out, and what a spec must hold is looked at once
it is whole (validation.py). Only what was given is written again.

Source:  Kubernetes API reference, HorizontalPodAutoscaler autoscaling/v2, v1.35.
"""

from __future__ import annotations

from typing import Annotated, Any

from pydantic import (
    ConfigDict,
    Field,
    SerializerFunctionWrapHandler,
    ValidationInfo,
    model_serializer,
    model_validator,
)
from pydantic.alias_generators import to_camel

from serving.hpa.quantity import Quantity, quantity
from serving.hpa.validation import aggregate, refusals
from serving.values import Value

Int32 = Annotated[int, Field(strict=True, ge=-(2**31), le=2**31 - 1)]
UNCHECKED = {"unchecked": True}
"""Validation context for a spec that the API server never saw, as in the controller's own tests."""


class _Camel(Value):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True)

    @model_validator(mode="before")
    @classmethod
    def _typos_are_named(cls, given: Any) -> Any:
        return given  # an unknown field is told in the API server's words

    @model_validator(mode="before")
    @classmethod
    def _null_is_left_out(cls, given: Any) -> Any:
        if isinstance(given, dict):
            return {key: value for key, value in given.items() if value is not None}
        return given

    @model_serializer(mode="wrap")
    def _as_given(self, dump: SerializerFunctionWrapHandler) -> dict[str, Any]:
        given = self.model_fields_set | {to_camel(name) for name in self.model_fields_set}
        return {k: v for k, v in dump(self).items() if k in given and v is not None}


class ObjectReference(_Camel):
    """An object by kind and name."""

    api_version: str = ""
    kind: str = ""
    name: str = ""


class MetricIdentifier(_Camel):
    """Name (and, for all but Resource, label selector) of a metric."""

    name: str = ""
    selector: dict[str, Any] | None = None


class Target(_Camel):
    """What the metric is held at: type is AverageValue, Value or Utilization."""

    type: str = ""
    average_value: Quantity | None = None
    value: Quantity | None = None
    average_utilization: Int32 | None = None


class PodsMetric(_Camel):
    """Average over the pods of the workload."""

    metric: MetricIdentifier = MetricIdentifier()
    target: Target = Target()


class ExternalMetric(_Camel):
    """One value from outside the cluster's objects, for example a sum over all replicas."""

    metric: MetricIdentifier = MetricIdentifier()
    target: Target = Target()


class ObjectMetric(_Camel):
    """One value that describes another object of the cluster."""

    described_object: ObjectReference = ObjectReference()
    metric: MetricIdentifier = MetricIdentifier()
    target: Target = Target()


class ResourceMetric(_Camel):
    """A resource of whole pods, from the metrics server: that carries cpu and memory only."""

    name: str = ""
    target: Target = Target()


class ContainerResourceMetric(_Camel):
    """A resource of one container of each pod."""

    name: str = ""
    container: str = ""
    target: Target = Target()


class Metric(_Camel):
    """One entry of `spec.metrics`: type is Pods, External, Object, Resource or ContainerResource."""

    type: str = ""
    pods: PodsMetric | None = None
    external: ExternalMetric | None = None
    object: ObjectMetric | None = None
    resource: ResourceMetric | None = None
    container_resource: ContainerResourceMetric | None = None


class ScalingPolicy(_Camel):
    """At most `value` Pods or Percent (the type) per period."""

    type: str = ""
    value: Int32 = 0
    period_seconds: Int32 = 0


class ScalingRules(_Camel):
    """One direction of `spec.behavior`; a field left out takes Kubernetes' default."""

    stabilization_window_seconds: Int32 | None = None
    select_policy: str | None = None
    """Max, Min or Disabled."""
    policies: tuple[ScalingPolicy, ...] | None = None
    tolerance: Quantity | None = None


class Behavior(_Camel):
    """`spec.behavior`."""

    scale_up: ScalingRules | None = None
    scale_down: ScalingRules | None = None


class HpaSpec(_Camel):
    """The part of a HorizontalPodAutoscaler's spec that is tuned: all but what it scales."""

    min_replicas: Int32 = 1
    max_replicas: Int32 = 0
    metrics: tuple[Metric, ...] = ()
    behavior: Behavior | None = None

    @model_validator(mode="after")
    def _taken_by_the_api_server(self, info: ValidationInfo) -> HpaSpec:
        if not (info.context or {}).get("unchecked"):
            problems = refusals(self)
            if problems:
                raise ValueError(aggregate(problems))
        return self

    @property
    def effective_metrics(self) -> tuple[Metric, ...]:
        """The metrics, with the API server's default where none is named: cpu at 80 %."""
        target = Target(type="Utilization", average_utilization=80)
        cpu = Metric(type="Resource", resource=ResourceMetric(name="cpu", target=target))
        return self.metrics or (cpu,)

    def manifest(self, name: str, target: str) -> dict[str, Any]:
        """The whole HorizontalPodAutoscaler object that scales Deployment `target`."""
        scaled = {"apiVersion": "apps/v1", "kind": "Deployment", "name": target}
        return {
            "apiVersion": "autoscaling/v2",
            "kind": "HorizontalPodAutoscaler",
            "metadata": {"name": name},
            "spec": {"scaleTargetRef": scaled, **self.model_dump(mode="json", by_alias=True)},
        }

    @classmethod
    def from_yaml(cls, text: str, *, scale_to_zero: bool = True) -> HpaSpec:
        """The spec of a HorizontalPodAutoscaler manifest; see `HorizontalPodAutoscaler.from_yaml`."""
        from serving.hpa.manifest import HorizontalPodAutoscaler

        return HorizontalPodAutoscaler.from_yaml(text, scale_to_zero=scale_to_zero).spec


def pods_metric(name: str, average: float) -> Metric:
    """A Pods metric held at an average value per pod."""
    return Metric(
        type="Pods",
        pods=PodsMetric(
            metric=MetricIdentifier(name=name),
            target=Target(type="AverageValue", average_value=quantity(average)),
        ),
    )
