"""Manifests: valid Kubernetes, the fleet exactly as simulated, and nothing that drifts."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml
from hypothesis import given, settings
from hypothesis import strategies as st

from serving.errors import BundleError
from serving.hpa import (
    REQUESTS_WAITING,
    HpaSpec,
    milli,
    pods_metric,
    quantity,
)
from serving.manifests import KUSTOMIZATION, check_kustomization, render
from serving.plan import EngineArgs, Plan, Variant

from .plans import external_metric, plan, plans

DIGEST = "registry.example:5000/team/vllm@sha256:" + "0123456789abcdef" * 4
BUILT_IN = ("v1", "apps/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1")


def objects(files: dict[str, str]) -> dict[str, dict[str, Any]]:
    """Kubernetes objects by kind."""
    found = [
        yaml.safe_load(text)
        for path, text in files.items()
        if path.startswith("kubernetes/") and path != KUSTOMIZATION
    ]
    assert len({value["kind"] for value in found}) == len(found)
    return {value["kind"]: value for value in found}


def container(chosen: Plan) -> dict[str, Any]:
    deployment = objects(render(chosen))["Deployment"]
    (only,) = deployment["spec"]["template"]["spec"]["containers"]
    return dict(only)


@given(plans)
@settings(max_examples=40, deadline=None)
def test_every_plan_becomes_valid_objects_and_is_found_in_them(chosen: Plan) -> None:
    files = render(chosen, image=DIGEST)
    assert files == render(chosen, image=DIGEST)
    kinds = objects(files)
    for value in kinds.values():
        if value["apiVersion"] in BUILT_IN:
            kubernetes_validate.validate(value, "1.36", strict=True)
    assert all("&id0" not in text for text in files.values())  # no YAML anchors
    assert check_kustomization(files[KUSTOMIZATION], files) == DIGEST
    arguments = json.loads(files["serve.json"])["arguments"]
    assert arguments[-len(chosen.engine.cli()) :] == chosen.engine.cli()
    assert ("replicas" in kinds["Deployment"]["spec"]) == (chosen.hpa is None)
    if chosen.hpa is None:
        assert "HorizontalPodAutoscaler" not in kinds
        assert kinds["Deployment"]["spec"]["replicas"] == chosen.replicas
    else:
        assert HpaSpec.from_yaml(files["kubernetes/hpa.yaml"]) == chosen.hpa
        target = kinds["HorizontalPodAutoscaler"]["spec"]["scaleTargetRef"]["name"]
        assert target == kinds["Deployment"]["metadata"]["name"]


@given(plans)
@settings(max_examples=40, deadline=None)
def test_every_metric_of_the_autoscaler_has_a_rule_behind_it(chosen: Plan) -> None:
    adapter = yaml.safe_load(render(chosen)["monitoring/prometheus-adapter.yaml"])["rules"]
    metrics = chosen.hpa.metrics if chosen.hpa else ()
    served = [rule["name"]["as"] for rule in adapter["custom"]]
    assert len(served) == len(set(served))
    assert set(served) == {m.pods.metric.name for m in metrics if m.pods}
    outside = {rule["name"]["as"] for rule in adapter.get("external", [])}
    assert outside == {m.external.metric.name for m in metrics if m.external}


def test_names_that_kubernetes_does_not_take_are_translated() -> None:
    spec = HpaSpec(
        max_replicas=2,
        metrics=(pods_metric(REQUESTS_WAITING, 3), external_metric(REQUESTS_WAITING, 3)),
    )
    rules = yaml.safe_load(render(plan(hpa=spec))["monitoring/prometheus-adapter.yaml"])["rules"]
    for rule in (rules["custom"][0], rules["external"][0]):
        assert rule["seriesQuery"].startswith("vllm:num_requests_waiting{")
        assert rule["name"]["as"] == "vllm_num_requests_waiting"
    # As External, the queue is what waits anywhere in the fleet.
    assert rules["external"][0]["metricsQuery"].startswith("sum(")


def test_the_objects_of_a_plan_find_each_other() -> None:
    kinds = objects(render(plan()))
    pod_labels = kinds["Deployment"]["spec"]["template"]["metadata"]["labels"]
    for selector in (
        kinds["Deployment"]["spec"]["selector"]["matchLabels"],
        kinds["Service"]["spec"]["selector"],
        kinds["PodDisruptionBudget"]["spec"]["selector"]["matchLabels"],
        kinds["NetworkPolicy"]["spec"]["podSelector"]["matchLabels"],
    ):
        assert selector.items() <= pod_labels.items()
    monitor = kinds["ServiceMonitor"]["spec"]
    assert (
        monitor["selector"]["matchLabels"].items() <= kinds["Service"]["metadata"]["labels"].items()
    )
    assert monitor["endpoints"][0]["port"] == kinds["Service"]["spec"]["ports"][0]["name"]


def test_the_pod_is_locked_down_and_gets_its_gpu() -> None:
    pod = objects(render(plan()))["Deployment"]["spec"]["template"]["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["securityContext"]["runAsNonRoot"] is True
    assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    vllm = pod["containers"][0]
    assert vllm["securityContext"] == {
        "allowPrivilegeEscalation": False,
        "capabilities": {"drop": ["ALL"]},
    }
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert vllm["resources"]["requests"]["nvidia.com/gpu"] == "1"
    volumes = {volume["name"]: volume for volume in pod["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in vllm["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    assert "/model" in mounted
    rolling = objects(render(plan()))["Deployment"]["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxSurge"] == 0


def test_streams_outlive_the_pod_s_end() -> None:
    kinds = objects(render(plan()))
    grace_s = kinds["Deployment"]["spec"]["template"]["spec"]["terminationGracePeriodSeconds"]
    arguments = container(plan())["args"]
    drain_s = int(arguments[arguments.index("--shutdown-timeout") + 1])
    sleep_s = container(plan())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert (sleep_s, drain_s) == (15, 45)
    assert grace_s > sleep_s + drain_s
    vllm = yaml.safe_load(render(plan())["compose.yaml"])["services"]["vllm"]
    assert vllm["command"] == arguments
    assert int(vllm["stop_grace_period"].removesuffix("s")) > drain_s


def test_a_hub_model_is_fetched_at_its_revision_and_a_local_one_is_not_fetched() -> None:
    hub = plan(variant=Variant(name="hub", model="org/model", revision="abc"))
    arguments = container(hub)["args"]
    assert arguments[:6] == [
        *("--model", "org/model", "--served-model-name", "hub", "--revision", "abc"),
    ]
    assert "model" not in {mount["name"] for mount in container(hub)["volumeMounts"]}
    assert container(plan())["args"][:2] == ["--model", "/model"]
    assert json.loads(render(plan())["serve.json"])["arguments"][:2] == ["--model", "model"]
    assert {"name": "HF_HUB_OFFLINE", "value": "1"} in container(plan())["env"]

    def ports(chosen: Plan) -> set[int]:
        (rule,) = objects(render(chosen))["NetworkPolicy"]["spec"]["egress"]
        return {port["port"] for port in rule["ports"]}

    assert ports(hub) - ports(plan()) == {443}


def test_vllm_gets_the_arguments_that_were_simulated() -> None:
    chosen = plan(engine=EngineArgs(max_num_seqs=7, enforce_eager=True))
    arguments = container(chosen)["args"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "7"
    assert "--enforce-eager" in arguments
    assert container(chosen)["command"][-1] == json.loads(render(chosen)["serve.json"])["module"]


# -- images ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "image",
    [
        "vllm/vllm-openai:latest",
        "vllm/vllm-openai",
        "x@sha256:12",
        DIGEST + "\n",
        DIGEST.replace("vllm@", "vllm:latest@"),
        DIGEST.upper(),
        "",
    ],
)
def test_images_that_move_are_refused(image: str) -> None:
    with pytest.raises(BundleError, match="not pinned"):
        render(plan(), image=image)


def test_ops_may_pin_the_image_later_and_change_nothing_else() -> None:
    files = render(plan())
    assert check_kustomization(files[KUSTOMIZATION], files) is None
    found = yaml.safe_load(files[KUSTOMIZATION])
    name, digest = DIGEST.split("@")
    found["images"] = [{"digest": digest, "name": "vllm-image", "newName": name}]
    assert check_kustomization(yaml.safe_dump(found), files) == DIGEST

    def refused(changed: dict[str, Any], why: str) -> None:
        with pytest.raises(BundleError, match=why):
            check_kustomization(yaml.safe_dump(found | changed), files)

    refused({"images": [{"name": "vllm-image", "newName": name, "newTag": "latest"}]}, "not pin")
    refused(
        {"images": [{"name": "vllm-image", "newName": name, "digest": "latest"}]}, "pins nothing"
    )
    refused({"images": [{"name": "other", "newName": name, "digest": digest}]}, "more than")
    refused({"images": []}, "not pin")
    refused({"resources": found["resources"][:-1]}, "more than")
    refused({"namePrefix": "x-"}, "more than")
    for text in ("", "a: [", "- 1"):
        with pytest.raises(BundleError):
            check_kustomization(text, files)


@pytest.mark.skipif(shutil.which("kubectl") is None, reason="kubectl is not installed")
@pytest.mark.parametrize("image", [DIGEST, None])
def test_kustomize_puts_the_image_in_place(tmp_path: Path, image: str | None) -> None:
    for path, text in render(plan(), image=image).items():
        (tmp_path / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).write_text(text)
    done = subprocess.run(
        ["kubectl", "kustomize", str(tmp_path / "kubernetes")], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    built = {value["kind"]: value for value in yaml.safe_load_all(done.stdout)}
    (vllm,) = built["Deployment"]["spec"]["template"]["spec"]["containers"]
    # Without a digest the name is one that no registry can resolve.
    assert vllm["image"] == (image or "vllm/vllm-openai@IMAGE_DIGEST")
    assert built.keys() == objects(render(plan())).keys()


# -- what cannot be shipped --------------------------------------------------------------------


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"name": "winner-"}, r"name\(='winner-'\)"),
        ({"warm_spares": 1}, r"warm_spares\(=1\)"),
        ({"gpus_per_replica": 2}, r"gpus_per_replica\(=2\)"),
        (
            {"hpa": HpaSpec(min_replicas=0, max_replicas=2, metrics=(external_metric("m", 1),))},
            r"min_replicas\(=0\)",
        ),
    ],
)
def test_a_fleet_that_kubernetes_cannot_run_is_refused(
    changes: dict[str, Any], problem: str
) -> None:
    with pytest.raises(BundleError, match=problem):
        render(plan(**changes))


@given(st.floats(0.001, 1e5))
def test_quantities_survive_to_a_thousandth(value: float) -> None:
    assert abs(milli(quantity(value)) - value * 1000) <= 0.5 + 1e-6 * value * 1000


# -- the warm-up probe -------------------------------------------------------------------------


@contextmanager
def server(status: int) -> Iterator[tuple[int, list[dict[str, Any]]]]:
    """A server that answers every POST with one status, and what it was sent."""
    asked: list[dict[str, Any]] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            length = int(self.headers["Content-Length"])
            asked.append({"path": self.path, **json.loads(self.rfile.read(length))})
            self.send_response(status)
            self.end_headers()

        def log_message(self, *arguments: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", 0), Handler) as http:
        thread = threading.Thread(target=http.serve_forever)
        thread.start()
        try:
            yield http.server_port, asked
        finally:
            http.shutdown()
            thread.join()


@pytest.mark.parametrize(("status", "ready"), [(200, True), (503, False)])
def test_a_replica_is_ready_once_it_has_finished_an_inference(status: int, ready: bool) -> None:
    _, flag, script = container(plan())["startupProbe"]["exec"]["command"]
    with server(status) as (port, asked):
        script = script.replace(":8000/", f":{port}/")
        done = subprocess.run([sys.executable, flag, script], capture_output=True)
    assert (done.returncode == 0) == ready
    assert [(body["path"], body["model"], body["max_tokens"]) for body in asked] == [
        ("/v1/completions", "int8", 1)
    ]
