"""Objects: valid Kubernetes, the fleet exactly as simulated, and each finds the others."""

from __future__ import annotations

import json
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
from serving.gateway.settings import load
from serving.gateway.spec import GatewaySpec, ResultCache
from serving.hpa import REQUESTS_WAITING, HpaSpec, milli, pods_metric, quantity
from serving.manifests import render
from serving.manifests.names import pods_of
from serving.plan import EngineArgs, Plan, Variant
from tests.serving.plans import external_metric, plan, plans

from .bundles import PINNED, base_objects, outside, write
from .semantics import missing_files, problems

BUILT_IN = ("v1", "apps/v1", "autoscaling/v2", "policy/v1", "networking.k8s.io/v1")
NEWEST = int(kubernetes_validate.latest_version().split(".")[1])


def of_vllm(chosen: Plan, kind: str) -> dict[str, Any]:
    """The object of a kind that belongs to the replicas."""
    return base_objects(render(chosen))[kind, f"vllm-{chosen.name}"]


def pod(chosen: Plan) -> dict[str, Any]:
    return dict(of_vllm(chosen, "Deployment")["spec"]["template"]["spec"])


def container(chosen: Plan) -> dict[str, Any]:
    (only,) = pod(chosen)["containers"]
    return dict(only)


@given(plans)
@settings(max_examples=15, deadline=None)
def test_every_plan_becomes_valid_objects_and_is_found_in_them(chosen: Plan) -> None:
    files = render(chosen, chosen=PINNED)
    assert files == render(chosen, chosen=PINNED)
    objects = base_objects(files)
    for kind in ("Deployment", "HorizontalPodAutoscaler"):
        found = objects.get((kind, f"vllm-{chosen.name}"))
        if found is not None:
            kubernetes_validate.validate(found, "1.36", strict=True)
    assert problems(list(objects.values()), outside=outside(chosen)) == []
    assert missing_files(files) == []
    assert all("&id0" not in text for text in files.values())  # no YAML anchors
    arguments = json.loads(files["serve.json"])["arguments"]
    assert arguments[-len(chosen.engine.cli()) :] == chosen.engine.cli()
    scaled = yaml.safe_load(files["base/vllm/kustomization.yaml"]).get("replicas")
    if chosen.hpa is None:
        assert "base/vllm/hpa.yaml" not in files
        assert scaled == [{"name": f"vllm-{chosen.name}", "count": chosen.replicas}]
    else:
        assert scaled is None
        assert HpaSpec.from_yaml(files["base/vllm/hpa.yaml"]) == chosen.hpa
    deployment = objects["Deployment", f"vllm-{chosen.name}"]
    assert "replicas" not in deployment["spec"]


@pytest.mark.parametrize("minor", range(30, NEWEST + 1))
def test_every_version_of_kubernetes_since_1_30_takes_the_objects(minor: int) -> None:
    assert NEWEST >= 36
    checked = 0
    for one in base_objects(render(plan())).values():
        if one.get("apiVersion") in BUILT_IN:
            kubernetes_validate.validate(one, f"1.{minor}", strict=True)
            checked += 1
    assert checked == 12


@given(plans)
@settings(max_examples=15, deadline=None)
def test_every_metric_of_the_autoscaler_has_a_rule_behind_it(chosen: Plan) -> None:
    files = render(chosen)
    adapter = yaml.safe_load(files["monitoring/prometheus-adapter.yaml"])["rules"]
    metrics = chosen.hpa.metrics if chosen.hpa else ()
    served = [rule["name"]["as"] for rule in adapter["custom"]]
    assert len(served) == len(set(served))
    assert set(served) == {m.pods.metric.name for m in metrics if m.pods}
    outer = {rule["name"]["as"] for rule in adapter.get("external", [])}
    assert outer == {m.external.metric.name for m in metrics if m.external}
    if chosen.hpa is not None:
        scaled = yaml.safe_load(files["alternatives/keda/scaled-object.yaml"])["spec"]
        assert len(scaled["triggers"]) == len(metrics)
        assert (scaled["minReplicaCount"], scaled["maxReplicaCount"]) == (
            chosen.hpa.min_replicas,
            chosen.hpa.max_replicas,
        )
        for trigger, metric in zip(scaled["triggers"], metrics, strict=True):
            source = metric.pods or metric.external
            assert source is not None
            assert source.target.average_value is not None
            assert float(trigger["metadata"]["threshold"]) == pytest.approx(
                milli(source.target.average_value) / 1000
            )


def test_names_that_kubernetes_does_not_take_are_translated() -> None:
    spec = HpaSpec(
        max_replicas=2,
        metrics=(pods_metric(REQUESTS_WAITING, 3), external_metric(REQUESTS_WAITING, 3)),
    )
    rules = yaml.safe_load(render(plan(hpa=spec))["monitoring/prometheus-adapter.yaml"])["rules"]
    for rule in (rules["custom"][0], rules["external"][0]):
        assert rule["seriesQuery"].startswith("vllm:num_requests_waiting{")
        assert rule["name"]["as"] == "vllm_num_requests_waiting"
    # As External, the queue is what waits anywhere in the fleet, whatever its tracks.
    assert rules["external"][0]["metricsQuery"].startswith("sum(")
    assert pods_of(plan()) in rules["external"][0]["metricsQuery"]


def test_pods_are_locked_down() -> None:
    objects = base_objects(render(plan()))
    redis = yaml.safe_load_all(render(plan())["alternatives/redis/redis.yaml"])
    deployments = [one for one in [*objects.values(), *redis] if one["kind"] == "Deployment"]
    assert len(deployments) == 3
    for deployment in deployments:
        spec = deployment["spec"]["template"]["spec"]
        assert spec["automountServiceAccountToken"] is False
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        for one in spec["containers"]:
            assert one["securityContext"]["allowPrivilegeEscalation"] is False
            assert one["securityContext"]["capabilities"] == {"drop": ["ALL"]}
            assert {"cpu", "memory"} <= one["resources"]["requests"].keys()
            assert "memory" in one["resources"]["limits"]
            assert one["image"] in ("vllm-image", "gateway-image", "redis-image")


def test_the_replica_gets_its_gpu_and_shared_memory() -> None:
    vllm = container(plan())
    assert vllm["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert vllm["resources"]["requests"]["nvidia.com/gpu"] == "1"
    volumes = {volume["name"]: volume for volume in pod(plan())["volumes"]}
    mounted = {mount["mountPath"]: volumes[mount["name"]] for mount in vllm["volumeMounts"]}
    assert mounted["/dev/shm"]["emptyDir"] == {"medium": "Memory", "sizeLimit": "2Gi"}
    rolling = of_vllm(plan(), "Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling["maxSurge"] == 0


def test_streams_outlive_the_pod_s_end() -> None:
    grace_s = pod(plan())["terminationGracePeriodSeconds"]
    arguments = container(plan())["args"]
    drain_s = int(arguments[arguments.index("--shutdown-timeout") + 1])
    sleep_s = container(plan())["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert (sleep_s, drain_s) == (15, 45)
    assert grace_s > sleep_s + drain_s
    services = yaml.safe_load(render(plan())["compose.yaml"])["services"]
    assert services["vllm"]["command"] == arguments
    assert int(services["vllm"]["stop_grace_period"].removesuffix("s")) > drain_s
    timeouts = json.loads(render(plan())["base/gateway/settings.json"])["timeouts"]
    drained_s = timeouts["drain_delay_s"] + timeouts["drain_s"]
    gateway = base_objects(render(plan()))["Deployment", "gateway-winner"]
    assert gateway["spec"]["template"]["spec"]["terminationGracePeriodSeconds"] > drained_s
    assert int(services["gateway"]["stop_grace_period"].removesuffix("s")) > drained_s


def test_a_hub_model_is_fetched_at_its_revision_and_a_local_one_is_not_fetched() -> None:
    hub = plan(variant=Variant(name="hub", model="org/model", revision="abc"))
    arguments = container(hub)["args"]
    assert arguments[:6] == [
        *("--model", "org/model", "--served-model-name", "hub", "--revision", "abc"),
    ]
    assert container(plan())["args"][:2] == ["--model", "/model"]
    assert json.loads(render(plan())["serve.json"])["arguments"][:2] == ["--model", "model"]
    patch = yaml.safe_load(render(plan())["base/vllm/model-volume.yaml"])
    (vllm,) = patch["spec"]["template"]["spec"]["containers"]
    assert vllm["env"] == [{"name": "HF_HUB_OFFLINE", "value": "1"}]
    assert "base/vllm/model-volume.yaml" not in render(hub)
    # Only a hub's needs a way out.
    assert "base/network/hub.yaml" in render(hub)
    assert "base/network/hub.yaml" not in render(plan())
    assert "model" in str(yaml.safe_load(render(plan())["compose.yaml"])["services"]["vllm"])


def test_vllm_gets_the_arguments_that_were_simulated() -> None:
    chosen = plan(engine=EngineArgs(max_num_seqs=7, enforce_eager=True))
    arguments = container(chosen)["args"]
    assert arguments[arguments.index("--max-num-seqs") + 1] == "7"
    assert "--enforce-eager" in arguments
    assert container(chosen)["command"][-1] == json.loads(render(chosen)["serve.json"])["module"]


# -- the gateway -------------------------------------------------------------------------------


def variables(found: dict[str, Any]) -> dict[str, str]:
    """What a Deployment of the gateway says by the environment."""
    (gateway,) = found["spec"]["template"]["spec"]["containers"]
    return {one["name"]: one["value"] for one in gateway["env"] if "value" in one}


def test_the_gateway_takes_its_settings(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    spec = GatewaySpec(balancing="two_choices", max_outstanding=9, result_cache=ResultCache(size=7))
    chosen = plan(gateway=spec)
    folder = write(render(chosen), tmp_path)
    path, objects = folder / "base/gateway/settings.json", base_objects(render(chosen))
    with monkeypatch.context() as cluster:
        for name, value in variables(objects["Deployment", "gateway-winner"]).items():
            cluster.setenv(name, value)
        told = load(path)
    assert told.spec == spec
    assert (told.model, told.host, told.first_stable) == ("int8", "0.0.0.0", "stable")
    services = {
        f"dns+http://{name}:{port['port']}"
        for (kind, name), one in objects.items()
        if kind == "Service"
        for port in one["spec"]["ports"]
    }
    assert set(told.tracks["stable"]) <= services
    assert set(told.tracks) == {"stable", "canary", "blue", "green"}
    composed = yaml.safe_load((folder / "compose.yaml").read_text())["services"]["gateway"]
    with monkeypatch.context() as machine:
        for name, value in composed["environment"].items():
            machine.setenv(name, value)
        assert load(path).tracks == {"stable": ("http://vllm:8000",)}
        assert load(path).spec == spec


def test_another_model_is_another_revision_to_the_cache_of_answers() -> None:
    def revision(chosen: Plan, weights: str = "") -> str:
        told = json.loads(render(chosen, weights=weights)["base/gateway/settings.json"])
        return str(told["revision"])

    assert revision(plan(), "a") != revision(plan(), "b")
    assert revision(plan(), "a") == revision(plan(hpa=None, replicas=3), "a")
    assert revision(plan(engine=EngineArgs(dtype="float16")), "a") != revision(plan(), "a")
    hub = plan(variant=Variant(name="hub", model="org/model", revision="abc"))
    assert revision(hub) == "abc"


def test_the_gateway_is_spread_and_scales_on_cpu() -> None:
    objects = base_objects(render(plan()))
    scaler = objects["HorizontalPodAutoscaler", "gateway-winner"]["spec"]
    assert scaler["minReplicas"] >= 2
    assert [metric["resource"]["name"] for metric in scaler["metrics"]] == ["cpu"]
    assert HpaSpec.from_yaml(render(plan())["base/gateway/hpa.yaml"]).max_replicas == 10
    spec = objects["Deployment", "gateway-winner"]["spec"]["template"]["spec"]
    (gateway,) = spec["containers"]
    secrets = [one for one in gateway["env"] if "secretKeyRef" in one.get("valueFrom", {})]
    assert [one["name"] for one in secrets] == ["GATEWAY_REDIS_URL"]
    assert set(variables(objects["Deployment", "gateway-winner"])) == {
        *("GATEWAY_TRACKS", "GATEWAY_STABLE", "GATEWAY_HOST", "GATEWAY_PORT"),
        "GATEWAY_API_KEYS_FILE",
    }
    assert gateway["livenessProbe"]["httpGet"]["path"] == "/healthz"
    assert gateway["readinessProbe"]["httpGet"]["path"] == "/readyz"


def test_only_what_is_needed_is_open() -> None:
    objects = base_objects(render(plan()))
    policies = {name: one["spec"] for (kind, name), one in objects.items() if "Policy" in kind}
    denied = policies["vllm-winner-default-deny"]
    assert set(denied["policyTypes"]) == {"Ingress", "Egress"}
    assert "ingress" not in denied
    assert "egress" not in denied
    for deployment in (one for (kind, _), one in objects.items() if kind == "Deployment"):
        labels = deployment["spec"]["template"]["metadata"]["labels"]
        assert denied["podSelector"]["matchLabels"].items() <= labels.items()
    (opened,) = policies["vllm-winner"]["ingress"]
    assert len(opened["from"]) == 2
    assert [port["port"] for port in opened["ports"]] == [8000]


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


@pytest.mark.parametrize(
    "secret",
    [
        "https://bob:hunter2@hub.example/model",
        "hf_" + "a1B2" * 8,
        "sk-" + "a1B2" * 8,
        "AKIA" + "A1B2" * 4,
        "-----BEGIN RSA PRIVATE KEY-----",
        "Authorization: Bearer " + "a1b2" * 5,
    ],
)
def test_a_secret_in_a_value_is_refused_and_not_repeated(secret: str) -> None:
    leaky = plan(variant=Variant(name="hub", model=secret, revision="abc"))
    with pytest.raises(BundleError, match=r"line \d+, holds ") as refused:
        render(leaky)
    assert secret not in str(refused.value)


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
