"""Rendered bundles for the tests of what is in them."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import pytest
import yaml

from serving.manifests import Images
from serving.plan import Plan

Object = dict[str, Any]
DIGEST = "sha256:" + "0123456789abcdef" * 4
IMAGE = f"registry.example:5000/team/vllm@{DIGEST}"
PINNED = Images(
    vllm=IMAGE,
    gateway=f"registry.example/gateway@{DIGEST}",
    redis=f"redis@{DIGEST}",
    prometheus=f"prom/prometheus@{DIGEST}",
    python=f"python@{DIGEST}",
)
needs_kubectl = pytest.mark.skipif(
    shutil.which("kubectl") is None, reason="kubectl is not installed"
)
TRACKS = ("stable", "canary", "blue", "green")
OVERLAYS = [f"overlays/{track}" for track in TRACKS] + [
    f"alternatives/{name}" for name in ("keda", "argo-rollouts", "gateway-api", "redis")
]


def write(files: Mapping[str, str], folder: Path) -> Path:
    for path, text in files.items():
        (folder / path).parent.mkdir(parents=True, exist_ok=True)
        (folder / path).write_text(text)
    return folder


def base_objects(files: Mapping[str, str]) -> dict[tuple[str, str], Object]:
    """Objects of base/ by kind and name, with the ConfigMaps that kustomize would make."""
    found: dict[tuple[str, str], Object] = {}
    for path, text in files.items():
        if path.startswith("base/") and path.endswith(".yaml"):
            for one in yaml.safe_load_all(text):
                if path.endswith("kustomization.yaml"):
                    for made in one.get("configMapGenerator", ()):
                        name = made["name"]
                        config = {"kind": "ConfigMap", "metadata": {"name": name}}
                        found["ConfigMap", name] = config
                elif not path.endswith("model-volume.yaml"):
                    assert (one["kind"], one["metadata"]["name"]) not in found
                    found[one["kind"], one["metadata"]["name"]] = one
    return found


def outside(plan: Plan) -> set[tuple[str, str]]:
    """What ops make."""
    return {
        ("Secret", f"gateway-{plan.name}"),
        ("PersistentVolumeClaim", f"vllm-{plan.name}"),
        ("Service", f"gateway-{plan.name}"),  # of overlays/stable, beside which others are applied
    }


def built(folder: Path, overlay: str) -> list[Object]:
    """What kustomize makes of an overlay."""
    done = subprocess.run(
        ["kubectl", "kustomize", str(folder / overlay)], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return list(yaml.safe_load_all(done.stdout))
