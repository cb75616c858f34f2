"""What the API server refuses, in its own words.

Source:  Kubernetes, pkg/apis/autoscaling/validation/validation.go, and the message forms of
         apimachinery, pkg/util/validation/field/errors.go, v1.35.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

from serving.hpa.quantity import exact

if TYPE_CHECKING:
    from serving.hpa.quantity import Quantity
    from serving.hpa.spec import (
        HpaSpec,
        Metric,
        MetricIdentifier,
        ObjectReference,
        ScalingPolicy,
        ScalingRules,
        Target,
    )

MAX_PERIOD_SECONDS = 1800
MAX_STABILIZATION_WINDOW_SECONDS = 3600
_SOURCES = {
    "Object": "object",
    "External": "external",
    "Pods": "pods",
    "Resource": "resource",
    "ContainerResource": "container_resource",
}
_LABEL = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
_STANDARD_RESOURCE = re.compile(r"cpu|memory|ephemeral-storage|hugepages-.+|[^/]+/[^/]+")
Problems = Iterator[str]


def refusals(
    spec: HpaSpec, target: ObjectReference | None = None, *, scale_to_zero: bool = True
) -> list[str]:
    """Every complaint about a spec, in the API server's order; none if it would be taken.

    Args:    target: what is scaled, looked at where it is given.
             scale_to_zero: gate HPAScaleToZero, which is open by default from v1.37 on.
    """
    return list(dict.fromkeys(_spec(spec, target, scale_to_zero)))  # it says nothing twice


def aggregate(problems: Sequence[str]) -> str:
    """Several complaints as one text."""
    return problems[0] if len(problems) == 1 else f"[{', '.join(problems)}]"


def invalid(path: str, value: Any, detail: str) -> str:
    """A value that is out of its range."""
    return f"{path}: Invalid value: {json.dumps(value)}: {detail}"


def required(path: str, detail: str = "") -> str:
    """A value that is missing."""
    return f"{path}: Required value{': ' if detail else ''}{detail}"


def forbidden(path: str, detail: str) -> str:
    """A value that must not be there."""
    return f"{path}: Forbidden: {detail}"


def unsupported(path: str, value: str, known: Sequence[str]) -> str:
    """A value that is none of an enumeration."""
    values = ", ".join(json.dumps(one) for one in sorted(known))
    return f"{path}: Unsupported value: {json.dumps(value)}: supported values: {values}"


def _spec(spec: HpaSpec, target: ObjectReference | None, scale_to_zero: bool) -> Problems:
    least = 0 if scale_to_zero else 1
    if spec.min_replicas < least:
        detail = f"must be greater than or equal to {least}"
        yield invalid("spec.minReplicas", spec.min_replicas, detail)
    if spec.max_replicas < 1:
        yield invalid("spec.maxReplicas", spec.max_replicas, "must be greater than 0")
    if spec.max_replicas < spec.min_replicas:
        detail = "must be greater than or equal to `minReplicas`"
        yield invalid("spec.maxReplicas", spec.max_replicas, detail)
    if target is not None:
        core = target.kind == "ReplicationController"  # the one scalable kind without a group
        yield from _reference(target, "spec.scaleTargetRef", group=not core)
    for i, metric in enumerate(spec.metrics):
        yield from _metric(metric, f"spec.metrics[{i}]")
    if spec.min_replicas == 0 and not any(m.type in ("Object", "External") for m in spec.metrics):
        detail = "must specify at least one Object or External metric to support scaling to zero"
        yield forbidden("spec.metrics", f"{detail} replicas")
    if spec.behavior is not None:
        yield from _rules(spec.behavior.scale_up, "spec.behavior.scaleUp")
        yield from _rules(spec.behavior.scale_down, "spec.behavior.scaleDown")


def _reference(found: ObjectReference, path: str, *, group: bool) -> Problems:
    yield from _segment(found.kind, f"{path}.kind")
    yield from _segment(found.name, f"{path}.name")
    slashes = found.api_version.count("/")
    if slashes > 1:
        detail = f"unexpected GroupVersion string: {found.api_version}"
        yield invalid(f"{path}.apiVersion", found.api_version, detail)
    elif group and (slashes == 0 or found.api_version.startswith("/")):
        yield invalid(f"{path}.apiVersion", found.api_version, "apiVersion must specify API group")


def _segment(text: str, path: str, missing: str = "") -> Problems:
    """A name that stands between two slashes of an address."""
    if not text:
        yield required(path, missing)
    elif text in (".", ".."):
        yield invalid(path, text, f"may not be '{text}'")
    else:
        for character in "/%":
            if character in text:
                yield invalid(path, text, f"may not contain '{character}'")


def _metric(metric: Metric, path: str) -> Problems:
    if not metric.type:
        yield required(f"{path}.type", "must specify a metric source type")
    if metric.type not in _SOURCES:
        yield unsupported(f"{path}.type", metric.type, list(_SOURCES))
    present = [field for field in _SOURCES.values() if getattr(metric, field) is not None]
    if present:
        yield from _source(metric, present[0], f"{path}.{_camel(present[0])}")
    expected = _SOURCES.get(metric.type)
    if expected is not None and expected not in present:
        detail = "must populate information for the given metric source"
        yield required(f"{path}.{_camel(expected)}", detail)
    if len(present) > 1:
        for field in present:
            if field != expected:
                detail = "must populate the given metric source only"
                yield forbidden(f"{path}.{_camel(field)}", detail)


def _camel(field: str) -> str:
    return "containerResource" if field == "container_resource" else field


def _source(metric: Metric, field: str, path: str) -> Problems:
    """The one source that is looked at, which is the first of those that are there."""
    source = getattr(metric, field)
    if metric.object is not None and field == "object":
        reference = metric.object.described_object
        yield from _reference(reference, f"{path}.describedObject", group=False)
    if field in ("object", "external", "pods"):
        yield from _identifier(source.metric, f"{path}.metric")
    else:
        yield from _resource_name(source.name, f"{path}.name", of_container="container" in field)
    if metric.container_resource is not None and field == "container_resource":
        yield from _container(metric.container_resource.container, f"{path}.container")
    yield from _target(source.target, f"{path}.target")
    yield from _target_of(field, source.target, f"{path}.target")


def _identifier(identifier: MetricIdentifier, path: str) -> Problems:
    yield from _segment(identifier.name, f"{path}.name", "must specify a metric name")


def _resource_name(name: str, path: str, *, of_container: bool) -> Problems:
    if not name:
        yield required(path, "must specify a resource name")
    elif of_container and not _STANDARD_RESOURCE.fullmatch(name):
        yield invalid(path, name, "must be a standard resource for containers")


def _container(name: str, path: str) -> Problems:
    if not name:
        yield required(path, "must specify a container")
    elif len(name) > 63:
        yield invalid(path, name, "must be no more than 63 bytes")
    elif not _LABEL.fullmatch(name):
        detail = (
            "a lowercase RFC 1123 label must consist of lower case alphanumeric characters or '-',"
            " and must start and end with an alphanumeric character (e.g. 'my-name',  or '123-abc',"
            " regex used for validation is '[a-z0-9]([-a-z0-9]*[a-z0-9])?')"
        )
        yield invalid(path, name, detail)


def _target(target: Target, path: str) -> Problems:
    if not target.type:
        yield required(f"{path}.type", "must specify a metric target type")
    if target.type not in ("Utilization", "Value", "AverageValue"):
        detail = "must be either Utilization, Value, or AverageValue"
        yield invalid(f"{path}.type", target.type, detail)
    yield from _positive(target.value, f"{path}.value")
    yield from _positive(target.average_value, f"{path}.averageValue")
    if target.average_utilization is not None and target.average_utilization < 1:
        found = target.average_utilization
        yield invalid(f"{path}.averageUtilization", found, "must be greater than 0")


def _positive(quantity: Quantity | None, path: str) -> Problems:
    if quantity is not None and exact(quantity) <= 0:
        yield invalid(path, str(quantity), "must be positive")


def _target_of(field: str, target: Target, path: str) -> Problems:
    """Which of the values a kind of source takes; its type is not looked at."""
    average, value, share = target.average_value, target.value, target.average_utilization
    if field == "pods" and average is None:
        detail = "must specify a positive target averageValue"
        yield required(f"{path}.averageValue", detail)
    elif field == "object" and value is None and average is None:
        detail = "must set either a target value or averageValue"
        yield required(f"{path}.averageValue", detail)
    elif field == "external" and value is None and average is None:
        detail = "must set either a target value for metric or a per-pod target"
        yield required(f"{path}.averageValue", detail)
    elif field == "external" and value is not None and average is not None:
        detail = "may not set both a target value for metric and a per-pod target"
        yield forbidden(f"{path}.value", detail)
    elif "resource" in field and share is None and average is None:
        detail = "must set either a target raw value or a target utilization"
        yield required(f"{path}.averageUtilization", detail)
    elif "resource" in field and share is not None and average is not None:
        detail = "may not set both a target raw value and a target utilization"
        yield forbidden(f"{path}.averageValue", detail)


def _rules(rules: ScalingRules | None, path: str) -> Problems:
    if rules is None:
        return
    window = rules.stabilization_window_seconds
    if window is not None and window < 0:
        detail = "must be greater than or equal to zero"
        yield invalid(f"{path}.stabilizationWindowSeconds", window, detail)
    if window is not None and window > MAX_STABILIZATION_WINDOW_SECONDS:
        detail = f"must be less than or equal to {MAX_STABILIZATION_WINDOW_SECONDS}"
        yield invalid(f"{path}.stabilizationWindowSeconds", window, detail)
    if rules.select_policy not in (None, "Max", "Min", "Disabled"):
        known = ("Max", "Min", "Disabled")
        yield unsupported(f"{path}.selectPolicy", rules.select_policy, known)
    if rules.policies == ():  # left out, they are filled in before anybody looks
        yield required(f"{path}.policies", "must specify at least one Policy")
    for i, policy in enumerate(rules.policies or ()):
        yield from _policy(policy, f"{path}.policies[{i}]")
    if rules.tolerance is not None and exact(rules.tolerance) < 0:
        detail = "must be greater than or equal to 0"
        yield invalid(f"{path}.tolerance", str(rules.tolerance), detail)


def _policy(policy: ScalingPolicy, path: str) -> Problems:
    if policy.type not in ("Pods", "Percent"):
        yield unsupported(f"{path}.type", policy.type, ("Pods", "Percent"))
    if policy.value <= 0:
        yield invalid(f"{path}.value", policy.value, "must be greater than zero")
    if policy.period_seconds <= 0:
        yield invalid(f"{path}.periodSeconds", policy.period_seconds, "must be greater than zero")
    if policy.period_seconds > MAX_PERIOD_SECONDS:
        detail = f"must be less than or equal to {MAX_PERIOD_SECONDS}"
        yield invalid(f"{path}.periodSeconds", policy.period_seconds, detail)
