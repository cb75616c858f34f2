"""All files of a plan's deployment."""

from __future__ import annotations

import json
import re
from typing import Any

import yaml

from serving.errors import BundleError
from serving.manifests import kubernetes, monitoring
from serving.plan import Plan

UNSET_IMAGE = "vllm-image"
"""Kustomize puts the pinned image in its place; without one the pod cannot start, rather than drift."""
_PINNED = re.compile(r"^[^\s@]+@sha256:[0-9a-f]{64}$")


def render(plan: Plan, *, image: str | None = None) -> dict[str, str]:
    """The files that deploy a plan, by their path in the bundle.

    Args:    image: the vLLM image, pinned by digest; None leaves it to be set in the kustomization.
    Raises:  BundleError: an image that is not pinned, or a fleet that Kubernetes cannot run.
    """
    if image is not None and not _PINNED.match(image):
        raise BundleError(
            f"image(={image!r}) is not pinned by digest",
            remedy="Write it as name@sha256:<64 hex digits>; tags move.",
        )
    if plan.warm_spares:
        raise BundleError(
            f"warm_spares(={plan.warm_spares}) cannot be shipped: Kubernetes has no standby pods",
            remedy="Tune with warm_spares fixed at 0; a higher minReplicas is what can be had.",
        )
    name = image or UNSET_IMAGE
    objects = {
        "deployment": kubernetes.deployment(plan, UNSET_IMAGE),
        "service": kubernetes.service(plan),
        "hpa": kubernetes.autoscaler(plan),
        "pdb": kubernetes.disruption_budget(plan),
        "network-policy": kubernetes.network_policy(plan),
        "prometheus-rules": monitoring.prometheus_rule(plan),
    }
    files = {f"kubernetes/{key}.yaml": _yaml(value) for key, value in objects.items() if value}
    files["kubernetes/kustomization.yaml"] = _yaml(_kustomization(list(files), name))
    files["monitoring/prometheus-adapter.yaml"] = _yaml(monitoring.adapter_rules(plan))
    files["monitoring/prometheus.yml"] = _yaml(monitoring.scrape_config())
    files["monitoring/rules.yml"] = _yaml(monitoring.rule_groups(plan))
    files["compose.yaml"] = _yaml(_compose(plan, name))
    files["serve.json"] = json.dumps(_serve(plan), indent=2) + "\n"
    return dict(sorted(files.items()))


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=100)
    return text


def _kustomization(files: list[str], image: str) -> dict[str, Any]:
    known: dict[str, Any] = {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(path.removeprefix("kubernetes/") for path in files),
    }
    if image != UNSET_IMAGE:
        new, digest = image.split("@")
        known["images"] = [{"name": UNSET_IMAGE, "newName": new, "digest": digest}]
    return known


def _compose(plan: Plan, image: str) -> dict[str, Any]:
    model = kubernetes.MODEL_PATH if plan.variant.revision is None else plan.variant.model
    gpu = {"driver": "nvidia", "count": plan.gpus_per_replica, "capabilities": ["gpu"]}
    return {
        "services": {
            "vllm": {
                "image": image if image != UNSET_IMAGE else "${VLLM_IMAGE:?set a pinned image}",
                "command": [*kubernetes.serve_arguments(plan, model), "--host", "0.0.0.0"],
                "volumes": ["./model:/model:ro"],
                "ports": ["127.0.0.1:8000:8000"],
                "shm_size": "2gb",
                "stop_grace_period": f"{kubernetes.GRACE_S}s",
                "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
            },
            "prometheus": {
                "image": "${PROMETHEUS_IMAGE:?set a pinned image}",
                "volumes": ["./monitoring:/etc/prometheus:ro"],
                "ports": ["127.0.0.1:9090:9090"],
            },
        }
    }


def _serve(plan: Plan) -> dict[str, Any]:
    """How to start one replica without containers, from inside the bundle."""
    model = "model" if plan.variant.revision is None else plan.variant.model
    return {
        "module": "vllm.entrypoints.openai.api_server",
        "arguments": kubernetes.serve_arguments(plan, model),
    }
