"""Overlays as kubectl builds them: whole, found by each other, and the autoscaler that was simulated."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from serving.hpa import HorizontalPodAutoscaler, HpaSpec, pods_metric
from serving.manifests import render
from serving.plan import Plan
from tests.serving.plans import plan

from .bundles import OVERLAYS, PINNED, TRACKS, Object, built, needs_kubectl, outside, write
from .semantics import missing_files, problems

MODELS = {"prometheus-operator": 6, "argo-rollouts": 2, "gateway-api": 2, "keda": 2}
TUNED = HpaSpec.model_validate(
    {
        "minReplicas": 2,
        "maxReplicas": 8,
        "metrics": [pods_metric("vllm_num_requests_running", 8).model_dump(by_alias=True)],
        "behavior": {
            "scaleUp": {"stabilizationWindowSeconds": 0, "selectPolicy": "Max"},
            "scaleDown": {"stabilizationWindowSeconds": 300},
        },
    }
)
CHOSEN = plan(hpa=TUNED)


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write(render(CHOSEN, chosen=PINNED), tmp_path_factory.mktemp("bundle"))


def of_kind(objects: list[Object], kind: str) -> dict[str, Object]:
    return {one["metadata"]["name"]: one for one in objects if one["kind"] == kind}


def test_every_file_that_an_overlay_names_is_there() -> None:
    files = render(CHOSEN)
    assert missing_files(files) == []
    for path in OVERLAYS:
        assert f"{path}/kustomization.yaml" in files
    without = {path: text for path, text in files.items() if path != "base/vllm/pdb.yaml"}
    assert missing_files(without) == [
        "base/vllm/kustomization.yaml names pdb.yaml, which is not there"
    ]


@needs_kubectl
@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_overlay_is_whole(bundle: Path, overlay: str) -> None:
    objects = built(bundle, overlay)
    beside = [*outside(CHOSEN), ("Service", "gateway-winner")]
    if overlay in ("overlays/canary", "alternatives/gateway-api", "alternatives/redis"):
        # Applied beside a stable overlay: what they select may stand there.
        there = {(one["kind"], one["metadata"]["name"]) for one in objects}
        more = [
            one
            for one in built(bundle, "overlays/stable")
            if (one["kind"], one["metadata"]["name"]) not in there
        ]
    else:
        more = []
    assert problems([*objects, *more], outside=beside) == []
    for one in objects:
        if one["apiVersion"].split("/")[0] in ("v1", "apps", "autoscaling", "policy"):
            kubernetes_validate.validate(one, "1.36", strict=True)
    images = [
        container["image"]
        for one in objects
        if one["kind"] == "Deployment"
        for container in one["spec"]["template"]["spec"]["containers"]
    ]
    assert images
    assert all("@sha256:" in image for image in images)


@needs_kubectl
def test_an_image_without_a_digest_is_one_that_no_registry_has(tmp_path: Path) -> None:
    write(render(CHOSEN), tmp_path)
    deployments = of_kind(built(tmp_path, "overlays/stable"), "Deployment")
    (vllm,) = deployments["vllm-winner"]["spec"]["template"]["spec"]["containers"]
    assert vllm["image"] == "vllm/vllm-openai@IMAGE_DIGEST"


@needs_kubectl
def test_the_simulated_autoscaler_is_the_exported_one(bundle: Path) -> None:
    scalers = of_kind(built(bundle, "overlays/stable"), "HorizontalPodAutoscaler")
    exported = HorizontalPodAutoscaler.from_yaml(yaml.safe_dump(scalers["vllm-winner"]))
    assert exported.spec == TUNED
    assert (exported.target.kind, exported.target.name) == ("Deployment", "vllm-winner")
    simulated = Plan.model_validate_json(CHOSEN.model_dump_json(by_alias=True)).hpa
    assert simulated == exported.spec
    assert TUNED.manifest("vllm-winner", "vllm-winner")["spec"] == scalers["vllm-winner"]["spec"]
    for track in ("blue", "green"):
        found = of_kind(built(bundle, f"overlays/{track}"), "HorizontalPodAutoscaler")
        one = HorizontalPodAutoscaler.from_yaml(yaml.safe_dump(found[f"vllm-winner-{track}"]))
        assert one.spec == TUNED
        assert one.target.name == f"vllm-winner-{track}"
    canary = of_kind(built(bundle, "overlays/canary"), "HorizontalPodAutoscaler")
    spec = HpaSpec.from_yaml(yaml.safe_dump(canary["vllm-winner-canary"]))
    assert spec == TUNED.model_copy(update={"min_replicas": 1})


@needs_kubectl
def test_tracks_stand_beside_each_other_and_no_selector_takes_two(bundle: Path) -> None:
    fleets = {track: built(bundle, f"fleets/{track}") for track in TRACKS}
    names = [(o["kind"], o["metadata"]["name"]) for fleet in fleets.values() for o in fleet]
    assert len(names) == len(set(names))
    pods = {
        track: next(iter(of_kind(fleet, "Deployment").values()))["spec"]["template"]["metadata"]
        for track, fleet in fleets.items()
    }
    for track, fleet in fleets.items():
        for one in fleet:
            chosen = one["spec"].get("selector") or {}
            wanted = chosen.get("matchLabels", chosen) or None
            if wanted is None:
                continue
            taken = {other for other in TRACKS if wanted.items() <= pods[other]["labels"].items()}
            assert taken == {track}, one["kind"]
    assert not of_kind(fleets["canary"], "Deployment").keys() & {"gateway-winner"}


@needs_kubectl
def test_a_colour_is_what_its_gateways_serve_and_the_rest_is_the_same(bundle: Path) -> None:
    def gateway(track: str) -> dict[str, Any]:
        found = of_kind(built(bundle, f"overlays/{track}"), "Deployment")["gateway-winner"]
        (only,) = found["spec"]["template"]["spec"]["containers"]
        only["env"] = {one["name"]: one.get("value") for one in only["env"]}
        return found

    def env(found: dict[str, Any]) -> dict[str, str]:
        taken: dict[str, str] = found["spec"]["template"]["spec"]["containers"][0].pop("env")
        return taken

    stable, blue, green = (gateway(track) for track in ("stable", "blue", "green"))
    assert env(stable)["GATEWAY_STABLE"] == "stable"
    assert env(blue)["GATEWAY_STABLE"] == "blue"
    assert env(green)["GATEWAY_STABLE"] == "green"
    assert stable == blue == green


@needs_kubectl
def test_a_change_of_the_settings_rolls_the_gateways(bundle: Path, tmp_path: Path) -> None:
    def settings_of(folder: Path) -> tuple[str, set[str]]:
        objects = built(folder, "overlays/stable")
        spec = of_kind(objects, "Deployment")["gateway-winner"]["spec"]["template"]["spec"]
        (name,) = (v["configMap"]["name"] for v in spec["volumes"] if "configMap" in v)
        return name, set(of_kind(objects, "ConfigMap"))

    name, there = settings_of(bundle)
    assert name in there
    other = write(render(CHOSEN, weights="another model"), tmp_path)
    assert settings_of(other)[0] != name


@needs_kubectl
def test_a_static_fleet_has_its_size_and_a_canary_one_replica(tmp_path: Path) -> None:
    write(render(plan(hpa=None, replicas=3)), tmp_path)
    for track, size in {"stable": 3, "blue": 3, "canary": 1}.items():
        objects = built(tmp_path, f"fleets/{track}")
        (deployment,) = of_kind(objects, "Deployment").values()
        assert deployment["spec"]["replicas"] == size
        assert not of_kind(objects, "HorizontalPodAutoscaler")
    assert not (tmp_path / "alternatives/keda").exists()


@needs_kubectl
def test_argo_moves_what_the_autoscaler_scales(bundle: Path) -> None:
    objects = built(bundle, "alternatives/argo-rollouts")
    target = of_kind(objects, "HorizontalPodAutoscaler")["vllm-winner"]["spec"]["scaleTargetRef"]
    assert (target["kind"], target["name"]) == ("Rollout", "vllm-winner")
    rollout = of_kind(objects, "Rollout")["vllm-winner"]["spec"]
    steps = rollout["strategy"]["canary"]["steps"]
    assert {"setWeight": 1} in steps
    assert steps.index({"setWeight": 1}) + 1 == next(
        i for i, step in enumerate(steps) if "analysis" in step
    )
    (gateway,) = of_kind(objects, "Deployment")["gateway-winner"]["spec"]["template"]["spec"][
        "containers"
    ]
    (tracks,) = (one["value"] for one in gateway["env"] if one["name"] == "GATEWAY_TRACKS")
    assert json.loads(tracks) == {"stable": ["http://vllm-winner-istio"]}
    keda = built(bundle, "alternatives/keda")
    assert list(of_kind(keda, "HorizontalPodAutoscaler")) == ["gateway-winner"]


@needs_kubectl
def test_the_second_gateway_serves_the_canary_and_no_service_mixes_them(bundle: Path) -> None:
    objects = built(bundle, "alternatives/gateway-api")
    second = of_kind(objects, "Deployment")["gateway-winner-canary"]["spec"]["template"]
    told = {one["name"]: one.get("value") for one in second["spec"]["containers"][0]["env"]}
    assert json.loads(told["GATEWAY_TRACKS"]) == {"stable": ["dns+http://vllm-winner-canary:8000"]}
    assert "vllm-winner-canary" in of_kind(objects, "Service")
    first = of_kind(built(bundle, "overlays/stable"), "Service")["gateway-winner"]["spec"]
    assert not first["selector"].items() <= second["metadata"]["labels"].items()
    (route,) = of_kind(objects, "HTTPRoute").values()
    weights = {b["name"]: b["weight"] for b in route["spec"]["rules"][0]["backendRefs"]}
    assert weights == {"gateway-winner": 99, "gateway-winner-canary": 1}


# -- CRDs --------------------------------------------------------------------------------------

_VALIDATE = """
import { readFileSync } from "node:fs";
const homes = {
  "monitoring.coreos.com": "prometheus-operator", "argoproj.io": "argo-rollouts",
  "gateway.networking.k8s.io": "gateway-api", "keda.sh": "keda",
};
const found = [];
for (const one of JSON.parse(readFileSync(0, "utf8"))) {
  const home = homes[one.apiVersion.split("/")[0]];
  const kinds = await import(`@kubernetes-models/${home}/${one.apiVersion}`);
  try { new kinds[one.kind](one).validate(); found.push([one.kind, ""]); }
  catch (error) { found.push([one.kind, error.message]); }
}
console.log(JSON.stringify(found));
"""


@pytest.fixture(scope="session")
def validator(pytestconfig: pytest.Config) -> Path:
    """A folder with the schemas of the CRDs, fetched once and kept beside pytest's cache."""
    if shutil.which("npm") is None:
        pytest.skip("npm is not installed: no schemas of the CRDs")
    wanted = [f"@kubernetes-models/{name}@{version}" for name, version in MODELS.items()]
    key = hashlib.sha256(" ".join(wanted).encode()).hexdigest()[:12]
    folder = pytestconfig.rootpath / ".pytest_cache" / f"kubernetes-models-{key}"
    if not (folder / "whole").exists():
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "package.json").write_text("{}")
        done = subprocess.run(
            ["npm", "install", "--silent", "--no-audit", "--no-fund", *wanted],
            cwd=folder,
            capture_output=True,
            text=True,
            env=os.environ | {"npm_config_update_notifier": "false"},
        )
        if done.returncode:
            pytest.skip(f"the schemas of the CRDs cannot be fetched: {done.stderr[-200:]}")
        (folder / "validate.mjs").write_text(_VALIDATE)
        (folder / "whole").write_text("")
    return folder


def validated(validator: Path, objects: list[Object]) -> list[tuple[str, str]]:
    custom = [one for one in objects if one["apiVersion"].count(".") and "k8s.io/v1" not in one]
    groups = ("monitoring.coreos.com", "argoproj.io", "gateway.networking.k8s.io", "keda.sh")
    custom = [one for one in custom if one["apiVersion"].startswith(groups)]
    done = subprocess.run(
        ["node", "validate.mjs"],
        cwd=validator,
        input=json.dumps(custom),
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
    return [(kind, problem) for kind, problem in json.loads(done.stdout)]


@needs_kubectl
@pytest.mark.slow
def test_custom_objects_are_what_their_crds_take(validator: Path, bundle: Path) -> None:
    seen: set[str] = set()
    for overlay in OVERLAYS:
        for kind, problem in validated(validator, built(bundle, overlay)):
            assert problem == "", f"{overlay}: {kind}: {problem}"
            seen.add(kind)
    assert seen == {
        *("ServiceMonitor", "PrometheusRule", "ScaledObject"),
        *("Rollout", "AnalysisTemplate", "Gateway", "HTTPRoute"),
    }
    (broken,) = of_kind(built(bundle, "alternatives/keda"), "ScaledObject").values()
    broken["spec"]["maxReplicaCount"] = "many"
    ((_, problem),) = validated(validator, [broken])
    assert "maxReplicaCount" in problem
