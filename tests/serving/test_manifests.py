"""Manifests: valid Kubernetes, the autoscaler exactly as simulated, rules that promtool accepts."""

from __future__ import annotations

import json
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from serving.errors import BundleError
from serving.hpa import (
    GPU_UTILISATION,
    KV_CACHE_USAGE,
    REQUESTS_RUNNING,
    REQUESTS_WAITING,
    Behavior,
    HpaSpec,
    ScalingRules,
    milli,
    pods_metric,
    quantity,
)
from serving.manifests import render
from serving.plan import EngineArgs, Plan, Slo, Variant

DIGEST = "registry.example/vllm@sha256:" + "0123456789abcdef" * 4
NAMES = [REQUESTS_RUNNING, REQUESTS_WAITING, KV_CACHE_USAGE, GPU_UTILISATION]


def plan(**changes: Any) -> Plan:
    values: dict[str, Any] = {
        "name": "winner",
        "variant": Variant(name="int8", model="/models/int8"),
        "engine": EngineArgs(),
        "slo": Slo(),
        "hpa": HpaSpec(max_replicas=8, metrics=(pods_metric(REQUESTS_RUNNING, 8),)),
    }
    return Plan(**(values | changes))


windows = st.integers(0, 3600)
specs = st.fixed_dictionaries(
    {
        "min_replicas": st.integers(1, 3),
        "max_replicas": st.integers(3, 50),
        "metrics": st.lists(
            st.builds(pods_metric, st.sampled_from(NAMES), st.floats(0.01, 100)),
            min_size=1,
            max_size=2,
        ).map(tuple),
        "behavior": st.none()
        | windows.map(lambda s: Behavior(scale_down=ScalingRules(stabilization_window_seconds=s))),
    }
).map(lambda fields: HpaSpec(**fields))


@given(specs)
def test_what_is_simulated_is_what_is_applied(spec: HpaSpec) -> None:
    files = render(plan(hpa=spec))
    assert HpaSpec.from_yaml(files["kubernetes/hpa.yaml"]) == spec
    adapter = yaml.safe_load(files["monitoring/prometheus-adapter.yaml"])
    served = {rule["name"]["as"] for rule in adapter["rules"]["custom"]}
    assert served == {m.pods.metric.name for m in spec.metrics if m.pods}


@pytest.mark.parametrize("fleet", [{}, {"hpa": None, "replicas": 3}])
def test_objects_are_valid(fleet: dict[str, Any]) -> None:
    files = render(plan(**fleet), image=DIGEST)
    kinds = set()
    for path, text in files.items():
        value = yaml.safe_load(text) if path.startswith("kubernetes/") else {}
        if value.get("apiVersion", "").split("/")[0] in ("apps", "v1", "autoscaling", "policy"):
            kubernetes_validate.validate(value, "1.34", strict=True)
            kinds.add(value["kind"])
    assert {"Deployment", "Service", "PodDisruptionBudget"} <= kinds
    assert ("HorizontalPodAutoscaler" in kinds) == (not fleet)


def test_the_autoscaler_owns_the_replica_count() -> None:
    owned = yaml.safe_load(render(plan())["kubernetes/deployment.yaml"])
    assert "replicas" not in owned["spec"]
    static = yaml.safe_load(render(plan(hpa=None, replicas=3))["kubernetes/deployment.yaml"])
    assert static["spec"]["replicas"] == 3


def test_streams_outlive_the_pod_s_end() -> None:
    pod = yaml.safe_load(render(plan())["kubernetes/deployment.yaml"])["spec"]["template"]["spec"]
    container = pod["containers"][0]
    arguments = container["args"]
    drain_s = int(arguments[arguments.index("--shutdown-timeout") + 1])
    sleep_s = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert sleep_s > 0
    assert pod["terminationGracePeriodSeconds"] > sleep_s + drain_s


def test_vllm_gets_the_arguments_that_were_simulated() -> None:
    chosen = plan(engine=EngineArgs(max_num_seqs=7, enforce_eager=True))
    files = render(chosen)
    arguments = json.loads(files["serve.json"])["arguments"]
    assert arguments[-len(chosen.engine.cli()) :] == chosen.engine.cli()
    assert arguments[arguments.index("--max-num-seqs") + 1] == "7"
    assert "--enforce-eager" in arguments


@pytest.mark.parametrize("image", ["vllm/vllm-openai:latest", "vllm/vllm-openai", "x@sha256:12"])
def test_images_that_move_are_refused(image: str) -> None:
    with pytest.raises(BundleError, match="not pinned"):
        render(plan(), image=image)


def test_a_fleet_that_kubernetes_cannot_run_is_refused() -> None:
    with pytest.raises(BundleError, match=r"warm_spares\(=1\)"):
        render(plan(warm_spares=1))


@given(st.floats(0.001, 1e5))
def test_quantities_survive_to_a_thousandth(value: float) -> None:
    assert abs(milli(quantity(value)) - value * 1000) <= 0.5 + 1e-6 * value * 1000


@pytest.mark.skipif(shutil.which("promtool") is None, reason="promtool is not installed")
def test_promtool_accepts_the_rules(tmp_path: Path) -> None:
    files = render(plan())
    rules = tmp_path / "rules.yml"
    rules.write_text(files["monitoring/rules.yml"])
    done = subprocess.run(
        ["promtool", "check", "rules", str(rules)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "7 rules found" in done.stdout
