"""What schemas miss is found: each fault alone, in objects that are else in order."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest

from serving.manifests import render
from tests.serving.plans import plan

from .bundles import Object, base_objects, outside
from .semantics import problems

Objects = dict[tuple[str, str], Object]
GOOD = base_objects(render(plan()))
VLLM, GATEWAY = "vllm-winner", "gateway-winner"


def container(objects: Objects, name: str = VLLM) -> Any:
    return pod(objects, name)["containers"][0]


def pod(objects: Objects, name: str = VLLM) -> Any:
    return objects["Deployment", name]["spec"]["template"]["spec"]


def spec(objects: Objects, kind: str, name: str = VLLM) -> Any:
    return objects[kind, name]["spec"]


FAULTS: dict[str, tuple[Callable[[Objects], object], str]] = {
    "selector": (
        lambda o: spec(o, "Service")["selector"].update(x="y"),
        "its selector selects no pod",
    ),
    "own pods": (
        lambda o: spec(o, "Deployment")["selector"]["matchLabels"].update(x="y"),
        "does not select its own pods",
    ),
    "budget": (
        lambda o: spec(o, "PodDisruptionBudget")["selector"]["matchLabels"].update(x="y"),
        "its selector selects no pod",
    ),
    "policy": (
        lambda o: spec(o, "NetworkPolicy")["podSelector"]["matchLabels"].update(x="y"),
        "its selector selects no pod",
    ),
    "policy's port": (
        lambda o: spec(o, "NetworkPolicy")["ingress"][0]["ports"][0].update(port=81),
        "opens port 81",
    ),
    "policy's type": (
        lambda o: spec(o, "NetworkPolicy").update(policyTypes=["Inward"]),
        r"policyTypes\(='Inward'\)",
    ),
    "target port": (
        lambda o: spec(o, "Service")["ports"][0].update(targetPort="web"),
        r"targetPort\(='web'\)",
    ),
    "monitor's port": (
        lambda o: spec(o, "ServiceMonitor")["endpoints"][0].update(port="web"),
        r"port\(='web'\)",
    ),
    "monitor": (
        lambda o: spec(o, "ServiceMonitor")["selector"]["matchLabels"].update(x="y"),
        "selects no Service",
    ),
    "autoscaler's target": (
        lambda o: spec(o, "HorizontalPodAutoscaler")["scaleTargetRef"].update(name="x"),
        "scales Deployment x",
    ),
    "minimum above maximum": (
        lambda o: spec(o, "HorizontalPodAutoscaler").update(minReplicas=99),
        r"minReplicas\(=99\) must be <= maxReplicas",
    ),
    "quantity": (
        lambda o: container(o)["resources"]["requests"].update(memory="16 GB"),
        "'16 GB'.* is no quantity",
    ),
    "more than its limit": (
        lambda o: container(o)["resources"]["requests"].update(memory="64Gi"),
        "requests more memory",
    ),
    "size": (
        lambda o: pod(o)["volumes"][0]["emptyDir"].update(sizeLimit="2GiB"),
        "is no quantity",
    ),
    "enumeration": (
        lambda o: container(o)["ports"][0].update(protocol="tcp"),
        r"protocol\(='tcp'\)",
    ),
    "strategy": (
        lambda o: spec(o, "Deployment")["strategy"].update(type="Rolling"),
        r"strategy\.type\(='Rolling'\)",
    ),
    "mount": (
        lambda o: container(o)["volumeMounts"][0].update(name="x"),
        "mounts x, which is no volume",
    ),
    "probe": (
        lambda o: container(o)["livenessProbe"]["httpGet"].update(port="web"),
        "livenessProbe asks port 'web'",
    ),
    "secret": (
        lambda o: pod(o, GATEWAY)["volumes"][1]["secret"].update(secretName="x"),
        "Secret x, which is not there",
    ),
    "secret in the environment": (
        lambda o: container(o, GATEWAY)["env"][-1]["valueFrom"]["secretKeyRef"].update(name="x"),
        "reads Secret x",
    ),
    "configuration": (
        lambda o: o.pop(("ConfigMap", GATEWAY)),
        "ConfigMap gateway-winner, which is not there",
    ),
    "grace": (
        lambda o: pod(o).update(terminationGracePeriodSeconds=10),
        "sleeps longer before its stop",
    ),
    "name": (
        lambda o: o["Service", VLLM]["metadata"].update(name="Vllm_1"),
        r"name\(='Vllm_1'\)",
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_each_fault_is_found(name: str) -> None:
    assert problems(list(GOOD.values()), outside=outside(plan())) == []
    spoil, said = FAULTS[name]
    objects = copy.deepcopy(GOOD)
    spoil(objects)
    found = problems(list(objects.values()), outside=outside(plan()))
    with pytest.raises(AssertionError, match=said):
        assert not found, "; ".join(found)


def test_one_name_twice_is_found() -> None:
    objects = [*GOOD.values(), GOOD["Service", VLLM]]
    assert f"Service {VLLM} is there twice" in problems(objects, outside=outside(plan()))
