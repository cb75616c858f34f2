"""The seam to the fleet: what is observed becomes pods and answers of the metrics APIs."""

from __future__ import annotations

import math
from typing import Any

import pytest

from serving.hpa import HpaSpec, pods_metric
from simulations.autoscaler import HpaController
from simulations.autoscaler.controller import thousandths
from simulations.control import Observation, PodStatus


def pod(number: int, **changes: Any) -> PodStatus:
    fields = {"phase": "Running", "ready": True, "started_s": 0.0, "ready_changed_s": 60.0}
    return PodStatus(number, **(fields | changes))


def seen(
    pods: list[PodStatus], per_pod: dict[int, float], *, now_s: float = 1000.0, **changes: Any
) -> Observation:
    fields: dict[str, Any] = {
        "now_s": now_s,
        "current": len(pods),
        "pods": tuple(pods),
        "per_pod": lambda name: per_pod,
        "total": lambda name: sum(per_pod.values()) if per_pod else None,
    }
    return Observation(**(fields | changes))


def outside(kind: str, value: int, field: str) -> HpaSpec:
    source: dict[str, Any] = {"metric": {"name": "q"}, "target": {"type": field, "value": value}}
    if field == "AverageValue":
        source["target"] = {"type": field, "averageValue": value}
    if kind == "Object":
        source["describedObject"] = {"kind": "Service", "name": "s", "apiVersion": "v1"}
    metric = {"type": kind, kind.lower(): source}
    return HpaSpec.model_validate({"maxReplicas": 20, "metrics": [metric]})


def test_a_controller_remembers_and_tells() -> None:
    controller = HpaController(HpaSpec(max_replicas=20, metrics=(pods_metric("m", 10),)))
    assert controller.last is None
    pods = [pod(0), pod(1)]
    assert controller.desired(seen(pods, {0: 20.0, 1: 20.0})) == 4
    assert controller.last is not None
    assert controller.last.rescale_reason == "pods metric m above target"
    assert controller.desired(seen(pods, {0: 1.0, 1: 1.0}, now_s=1015.0)) == 4  # the window's 4
    assert controller.last.reason == "SucceededRescale"
    controller.restart()
    assert controller.desired(seen(pods, {0: 1.0, 1: 1.0}, now_s=1030.0)) == 2
    assert controller.last.reason == "ScaleDownStabilized"


@pytest.mark.parametrize("kind", ["External", "Object"])
def test_totals(kind: str) -> None:
    pods = [pod(0), pod(1, ready=False)]
    by_value = HpaController(outside(kind, 10, "Value"))
    assert by_value.desired(seen(pods, {0: 30.0})) == 3  # three times what is ready
    average = HpaController(outside(kind, 10, "AverageValue"))
    assert average.desired(seen(pods, {0: 30.0})) == 3
    # 30 over status.replicas of 3 is on target, whatever spec.replicas is.
    assert average.desired(seen(pods, {0: 30.0}, status_replicas=3, now_s=2000.0)) == 3
    nothing = HpaController(outside(kind, 10, "Value"))
    assert nothing.desired(seen(pods, {})) == 2
    assert nothing.last is not None
    assert nothing.last.reason == f"FailedGet{kind}Metric"


def test_pods_that_go_do_not_count() -> None:
    spec = HpaSpec(max_replicas=20, metrics=(pods_metric("m", 10),))
    going = [pod(0), pod(1, deleted=True), pod(2, phase="Failed", ready=False)]
    levels = {0: 20.0, 1: 0.0, 2: 0.0}
    assert HpaController(spec).desired(seen(going, levels, current=1)) == 2


def test_cpu_needs_requests_and_a_started_pod() -> None:
    target = {"type": "Utilization", "averageUtilization": 50}
    metric = {"type": "Resource", "resource": {"name": "cpu", "target": target}}
    spec = HpaSpec.model_validate({"maxReplicas": 20, "metrics": [metric]})
    pods = [pod(0), pod(1, started_s=900.0, ready=False)]
    asked = HpaController(spec, requests={"cpu": 1000})
    # Pod 1 is still in its first minutes and unready, so it counts as 0: 100 % over two pods.
    assert asked.desired(seen(pods, {0: 2.0, 1: 2.0})) == 4
    bare = HpaController(spec)
    assert bare.desired(seen(pods, {0: 2.0, 1: 2.0})) == 2
    assert bare.last is not None
    assert bare.last.reason == "FailedGetResourceMetric"


@pytest.mark.parametrize(
    ("value", "wanted"), [(1.2345, 1234), (70.0, 70000), (math.nan, 0), (-0.0015, -1), (0.0, 0)]
)
def test_an_adapter_truncates(value: float, wanted: int) -> None:
    assert thousandths(value) == wanted


def test_an_endless_value_is_a_large_one() -> None:
    assert thousandths(math.inf) == -thousandths(-math.inf) == 2**63
