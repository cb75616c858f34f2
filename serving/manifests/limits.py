"""What cannot be shipped: refused here with a reason, rather than by the API server or not at all.

A schema knows field names and types only. Source of the rules: Kubernetes' own validation,
pkg/apis/autoscaling/validation/validation.go, 1.34.
"""

from __future__ import annotations

from serving.errors import BundleError
from serving.hpa import HpaSpec, Metric
from serving.plan import Plan

_TARGETS = {
    "Pods": ("AverageValue",),
    "External": ("AverageValue", "Value"),
    "Object": ("AverageValue", "Value"),
    "Resource": ("AverageValue", "Utilization"),
}


def refuse_what_cannot_run(plan: Plan) -> None:
    """Check a plan against what a cluster takes and runs as it was simulated.

    Raises:  BundleError: the first thing that cannot be shipped.
    """
    if plan.name.endswith("-"):
        raise BundleError(
            f"name(={plan.name!r}) names no Kubernetes object",
            remedy="End it with a letter or a digit.",
        )
    if plan.warm_spares:
        raise BundleError(
            f"warm_spares(={plan.warm_spares}) cannot be shipped: Kubernetes has no standby pods",
            remedy="Tune with warm_spares fixed at 0; a higher minReplicas is what can be had.",
        )
    if plan.gpus_per_replica > 1:
        raise BundleError(
            f"gpus_per_replica(={plan.gpus_per_replica}) cannot be shipped: the engine's arguments"
            " spread no model over GPUs, vLLM would leave all but one idle",
            remedy="Use one GPU for each replica.",
        )
    if plan.hpa is not None:
        _refuse_autoscaler(plan.hpa)


def _refuse_autoscaler(hpa: HpaSpec) -> None:
    if hpa.min_replicas == 0:
        raise BundleError(
            "min_replicas(=0) is refused by Kubernetes unless a feature gate is open",
            remedy="Use at least 1.",
        )
    for metric in hpa.metrics:
        _refuse_target(metric)
    rules = (hpa.behavior.scale_up, hpa.behavior.scale_down) if hpa.behavior else ()
    if any(rule is not None and rule.policies == () for rule in rules):
        raise BundleError(
            "policies(=()) is refused by Kubernetes",
            remedy="Name a policy, or leave the field out for the default.",
        )


def _refuse_target(metric: Metric) -> None:
    source = metric.pods or metric.external or metric.object or metric.resource
    assert source is not None
    target = source.target
    if target.type not in _TARGETS[metric.type]:
        raise BundleError(
            f"target type(={target.type!r}) is refused by Kubernetes for a {metric.type} metric",
            remedy=f"Use {' or '.join(_TARGETS[metric.type])}.",
        )
    if len(target.model_dump(exclude_none=True)) > 2:
        raise BundleError(
            f"target(={target.model_dump(exclude_none=True)}) holds more than one value",
            remedy=f"Keep the one of type {target.type}.",
        )
