"""Manifests that the API server would refuse, refused in its words."""

from __future__ import annotations

from typing import Any

import pytest
from pydantic import ValidationError

from serving.errors import InputError
from serving.hpa import UNCHECKED, HorizontalPodAutoscaler, HpaSpec, pods_metric, refusals

from .hpas import changed


def refusal(text: str, **options: Any) -> str:
    with pytest.raises(InputError) as caught:
        HorizontalPodAutoscaler.from_yaml(text, **options)
    return caught.value.problem


SMALL = "spec.maxReplicas: Invalid value: 0: must be greater than or equal to `minReplicas`"
REFUSED = [
    (
        "maxReplicas: 12",
        "maxReplicas: 0",
        f"[spec.maxReplicas: Invalid value: 0: must be greater than 0, {SMALL}]",
    ),
    (
        "maxReplicas: 12",
        "minReplicas: 13\n  maxReplicas: 12",
        "spec.maxReplicas: Invalid value: 12: must be greater than or equal to `minReplicas`",
    ),
    (
        "maxReplicas: 12",
        "minReplicas: -1\n  maxReplicas: 12",
        "spec.minReplicas: Invalid value: -1: must be greater than or equal to 0",
    ),
    (
        "kind: Deployment, name: chat",
        "kind: Deployment",
        "spec.scaleTargetRef.name: Required value",
    ),
    (
        "kind: Deployment, name: chat",
        "kind: a/b, name: '..'",
        "[spec.scaleTargetRef.kind: Invalid value: \"a/b\": may not contain '/',"
        " spec.scaleTargetRef.name: Invalid value: \"..\": may not be '..']",
    ),
    (
        "apiVersion: apps/v1",
        "apiVersion: v1",
        'spec.scaleTargetRef.apiVersion: Invalid value: "v1": apiVersion must specify API group',
    ),
    (
        "apiVersion: apps/v1",
        "apiVersion: a/b/c",
        'spec.scaleTargetRef.apiVersion: Invalid value: "a/b/c": unexpected GroupVersion string: a/b/c',
    ),
    (
        "- type: Resource",
        "- type: Resources",
        'spec.metrics[0].type: Unsupported value: "Resources": supported values:'
        ' "ContainerResource", "External", "Object", "Pods", "Resource"',
    ),
    (
        "- type: Resource",
        "- type: Pods",
        "spec.metrics[0].pods: Required value: must populate information for the given metric source",
    ),
    (
        "  - type: Resource",
        "  - type: Resource\n    pods: {}",
        "[spec.metrics[0].pods.metric.name: Required value: must specify a metric name,"
        " spec.metrics[0].pods.target.type: Required value: must specify a metric target type,"
        ' spec.metrics[0].pods.target.type: Invalid value: "": must be either Utilization, Value, or'
        " AverageValue, spec.metrics[0].pods.target.averageValue: Required value: must specify a"
        " positive target averageValue, spec.metrics[0].pods: Forbidden: must populate the given metric"
        " source only]",
    ),
    (
        "averageUtilization: 60",
        "averageUtilization: 0",
        "spec.metrics[0].resource.target.averageUtilization: Invalid value: 0: must be greater than 0",
    ),
    (
        ", averageUtilization: 60",
        "",
        "spec.metrics[0].resource.target.averageUtilization: Required value: must set either a target"
        " raw value or a target utilization",
    ),
    (
        "averageUtilization: 60",
        "averageUtilization: 60, averageValue: 1",
        "spec.metrics[0].resource.target.averageValue: Forbidden: may not set both a target raw value"
        " and a target utilization",
    ),
    (
        "{name: cpu,",
        "{",
        "spec.metrics[0].resource.name: Required value: must specify a resource name",
    ),
    (
        "container: vllm,",
        "",
        "spec.metrics[1].containerResource.container: Required value: must specify a container",
    ),
    (
        "name: memory",
        "name: gpu",
        'spec.metrics[1].containerResource.name: Invalid value: "gpu": must be a standard resource for'
        " containers",
    ),
    (
        "averageValue: 10",
        "value: 10",
        "spec.metrics[2].pods.target.averageValue: Required value: must specify a positive target"
        " averageValue",
    ),
    (
        "averageValue: 10",
        "averageValue: -10m",
        'spec.metrics[2].pods.target.averageValue: Invalid value: "-10m": must be positive',
    ),
    (
        "{type: Value, value: 1.5k}",
        "{type: Valu, value: 1.5k}",
        'spec.metrics[3].object.target.type: Invalid value: "Valu": must be either Utilization, Value,'
        " or AverageValue",
    ),
    (
        "{type: Value, value: 1.5k}",
        "{type: Value}",
        "spec.metrics[3].object.target.averageValue: Required value: must set either a target value or"
        " averageValue",
    ),
    (
        "averageValue: 2.5",
        "averageValue: 2.5, value: 1",
        "spec.metrics[4].external.target.value: Forbidden: may not set both a target value for metric"
        " and a per-pod target",
    ),
    (
        ", averageValue: 2.5",
        "",
        "spec.metrics[4].external.target.averageValue: Required value: must set either a target value"
        " for metric or a per-pod target",
    ),
    (
        "stabilizationWindowSeconds: 0",
        "stabilizationWindowSeconds: -1",
        "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: -1: must be greater than or"
        " equal to zero",
    ),
    (
        "stabilizationWindowSeconds: 0",
        "stabilizationWindowSeconds: 3601",
        "spec.behavior.scaleUp.stabilizationWindowSeconds: Invalid value: 3601: must be less than or"
        " equal to 3600",
    ),
    (
        "selectPolicy: Max",
        "selectPolicy: Most",
        'spec.behavior.scaleUp.selectPolicy: Unsupported value: "Most": supported values: "Disabled",'
        ' "Max", "Min"',
    ),
    (
        "scaleDown: {}",
        "scaleDown: {policies: []}",
        "spec.behavior.scaleDown.policies: Required value: must specify at least one Policy",
    ),
    (
        *(
            "{type: Pods, value: 4, periodSeconds: 15}",
            "{type: Pod, value: 0, periodSeconds: 1801}",
        ),
        '[spec.behavior.scaleUp.policies[1].type: Unsupported value: "Pod": supported values:'
        ' "Percent", "Pods", spec.behavior.scaleUp.policies[1].value: Invalid value: 0: must be greater'
        " than zero, spec.behavior.scaleUp.policies[1].periodSeconds: Invalid value: 1801: must be less"
        " than or equal to 1800]",
    ),
    (
        "{type: Pods, value: 4, periodSeconds: 15}",
        "{type: Pods, value: 4}",
        "spec.behavior.scaleUp.policies[1].periodSeconds: Invalid value: 0: must be greater than zero",
    ),
    (
        "tolerance: 0.05",
        "tolerance: -0.05",
        'spec.behavior.scaleUp.tolerance: Invalid value: "-0.05": must be greater than or equal to 0',
    ),
    (
        "  name: chat\n",
        "  namee: chat\n",
        "metadata.name: Required value: name or generateName is required",
    ),
]


@pytest.mark.parametrize(("old", "new", "problem"), REFUSED, ids=[row[1][:40] for row in REFUSED])
def test_the_api_servers_reasons(old: str, new: str, problem: str) -> None:
    found = refusal(changed(old, new))
    assert (
        found.removeprefix('HorizontalPodAutoscaler.autoscaling "chat" is invalid: ').removeprefix(
            'HorizontalPodAutoscaler.autoscaling "" is invalid: '
        )
        == problem
    )


def test_names_are_dns_subdomains() -> None:
    found = refusal(changed("  name: chat\n", "  name: Chat\n"))
    assert 'metadata.name: Invalid value: "Chat": a lowercase RFC 1123 subdomain must' in found


STRICT = 'HorizontalPodAutoscaler in version "v2" cannot be handled as a HorizontalPodAutoscaler: '
UNDECODABLE = [
    ("maxReplicas: 12", "maxReplica: 12", 'strict decoding error: unknown field "spec.maxReplica"'),
    (
        "maxReplicas: 12",
        "maxReplicas: 12\n  maxReplicas: 13",
        'strict decoding error: duplicate field "spec.maxReplicas"',
    ),
    (
        "averageValue: 10",
        "averageValue: 10, average: 1",
        'strict decoding error: unknown field "spec.metrics[2].pods.target.average"',
    ),
    (
        "maxReplicas: 12",
        'maxReplicas: "12"',
        "json: cannot unmarshal string into Go struct field HorizontalPodAutoscalerSpec"
        ".spec.maxReplicas of type int32",
    ),
    (
        "maxReplicas: 12",
        "maxReplicas: 3000000000",
        "json: cannot unmarshal number 3000000000 into Go struct field HorizontalPodAutoscalerSpec"
        ".spec.maxReplicas of type int32",
    ),
    ("status:", "stat:", 'strict decoding error: unknown field "stat"'),
]


@pytest.mark.parametrize(("old", "new", "problem"), UNDECODABLE, ids=[r[1] for r in UNDECODABLE])
def test_what_cannot_be_decoded(old: str, new: str, problem: str) -> None:
    assert refusal(changed(old, new)) == STRICT + problem


def test_other_things_are_no_autoscaler() -> None:
    assert "quantities must match" in refusal(changed("averageValue: 10", "averageValue: 10 pods"))
    assert "autoscaling/v1" in refusal(changed("autoscaling/v2", "autoscaling/v1"))
    for text in ("", "- 1", "a: [", "a: 1\n---\nb: 2"):
        refusal(text)


def test_zero_replicas_need_a_metric_from_outside_and_an_open_gate() -> None:
    text = changed("maxReplicas: 12", "minReplicas: 0\n  maxReplicas: 12")
    assert HpaSpec.from_yaml(text).min_replicas == 0
    closed = "spec.minReplicas: Invalid value: 0: must be greater than or equal to 1"
    assert refusal(text, scale_to_zero=False).endswith(closed)
    with pytest.raises(ValidationError, match=r"spec\.metrics: Forbidden: must specify"):
        HpaSpec(min_replicas=0, max_replicas=2, metrics=(pods_metric("m", 1),))


def test_a_spec_that_nobody_checked_can_be_made_for_the_controllers_own_tests() -> None:
    spec = HpaSpec.model_validate({"maxReplicas": 0}, context=UNCHECKED)
    assert len(refusals(spec)) == 2
