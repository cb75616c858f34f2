"""All files of a plan's deployment."""

from __future__ import annotations

import json
import re
from collections.abc import Collection
from typing import Any

import yaml

from serving.errors import BundleError
from serving.manifests import kubernetes, monitoring
from serving.manifests.limits import refuse_what_cannot_run
from serving.plan import Plan

KUSTOMIZATION = "kubernetes/kustomization.yaml"
UNSET_DIGEST = "IMAGE_DIGEST"
"""Stands where a digest belongs: no image can be pulled by this name, so that nothing drifts."""
_IMAGE = "vllm-image"
_DEFAULT_NAME = "vllm/vllm-openai"
_DIGEST = re.compile(r"sha256:[0-9a-f]{64}")
_PINNED = re.compile(rf"(?P<name>([^\s@/]+/)*[^\s@/:]+)@(?P<digest>{_DIGEST.pattern})")


def render(plan: Plan, *, image: str | None = None) -> dict[str, str]:
    """The files that deploy a plan, by their path in the bundle.

    A model without a revision lies in the bundle's folder `model`; one with a revision is fetched
    from its hub.

    Args:    image: the vLLM image, pinned by digest; None leaves it to be set in the kustomization.
    Raises:  BundleError: an image that is not pinned, or a fleet that Kubernetes cannot run.
    """
    pinned = None if image is None else _PINNED.fullmatch(image)
    if image is not None and pinned is None:
        raise BundleError(
            f"image(={image!r}) is not pinned by digest alone",
            remedy="Write it as name@sha256:<64 hex digits>, without a tag; tags move.",
        )
    refuse_what_cannot_run(plan)
    objects = {
        "deployment": kubernetes.deployment(plan, _IMAGE),
        "service": kubernetes.service(plan),
        "hpa": kubernetes.autoscaler(plan),
        "pdb": kubernetes.disruption_budget(plan),
        "network-policy": kubernetes.network_policy(plan),
        "service-monitor": monitoring.service_monitor(plan),
        "prometheus-rules": monitoring.prometheus_rule(plan),
    }
    files = {f"kubernetes/{key}.yaml": _yaml(value) for key, value in objects.items() if value}
    pin = {
        "name": _IMAGE,
        "newName": pinned["name"] if pinned else _DEFAULT_NAME,
        "digest": pinned["digest"] if pinned else UNSET_DIGEST,
    }
    files[KUSTOMIZATION] = _yaml(_kustomization(files, pin))
    files["monitoring/prometheus-adapter.yaml"] = _yaml(monitoring.adapter_rules(plan))
    files["monitoring/prometheus.yml"] = _yaml(monitoring.scrape_config())
    files["monitoring/rules.yml"] = _yaml(monitoring.rule_groups(plan))
    files["compose.yaml"] = _yaml(_compose(plan, image))
    files["serve.json"] = json.dumps(_serve(plan), indent=2) + "\n"
    return dict(sorted(files.items()))


def check_kustomization(text: str, paths: Collection[str]) -> str | None:
    """Check the one file that ops may edit: nothing but the image, and that pinned.

    Args:    paths: every path in the bundle.
    Returns: the image, pinned; None where it is still to be set.
    Raises:  BundleError: an image that can move, or anything else that was changed.
    """
    try:
        found = yaml.safe_load(text)
        (pin,) = found["images"]
        name, digest = pin["newName"], pin["digest"]
    except (yaml.YAMLError, TypeError, KeyError, ValueError) as error:
        raise BundleError(
            f"{KUSTOMIZATION} does not pin one image by newName and digest",
            remedy=f"Run `kustomize edit set image {_IMAGE}=NAME@sha256:DIGEST` on the original.",
        ) from error
    set_here = digest != UNSET_DIGEST
    if set_here and not _PINNED.fullmatch(f"{name}@{digest}"):
        raise BundleError(
            f"{KUSTOMIZATION}: digest(={digest!r}) of {name!r} pins nothing",
            remedy="Set it to sha256:<64 hex digits>, without a tag; tags move.",
        )
    own = {"name": _IMAGE, "newName": name, "digest": digest}
    if found != _kustomization([path for path in paths if path != KUSTOMIZATION], own):
        raise BundleError(
            f"{KUSTOMIZATION} is changed in more than its image",
            remedy="Export the bundle again, and put changes into an overlay.",
        )
    return f"{name}@{digest}" if set_here else None


def _yaml(value: Any) -> str:
    text: str = yaml.safe_dump(value, sort_keys=False, width=100)
    return text


def _kustomization(paths: Collection[str], pin: dict[str, str]) -> dict[str, Any]:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        "resources": sorted(
            path.removeprefix("kubernetes/") for path in paths if path.startswith("kubernetes/")
        ),
        "images": [pin],
    }


def _compose(plan: Plan, image: str | None) -> dict[str, Any]:
    gpu = {"driver": "nvidia", "count": plan.gpus_per_replica, "capabilities": ["gpu"]}
    vllm: dict[str, Any] = {
        "image": image or "${VLLM_IMAGE:?set an image pinned by digest}",
        "entrypoint": kubernetes.SERVER,
        "command": kubernetes.container_arguments(plan),
        "environment": kubernetes.environment(plan),
        "ports": [f"127.0.0.1:{kubernetes.PORT}:{kubernetes.PORT}"],
        "shm_size": "2gb",
        "stop_grace_period": f"{kubernetes.GRACE_S}s",
        "volumes": ["cache:/cache"],
        "deploy": {"resources": {"reservations": {"devices": [gpu]}}},
    }
    if kubernetes.is_local(plan):
        vllm["volumes"].append(f"./model:{kubernetes.MODEL_PATH}:ro")
    prometheus = {
        "image": "${PROMETHEUS_IMAGE:?set an image pinned by digest}",
        "volumes": ["./monitoring:/etc/prometheus:ro"],
        "ports": ["127.0.0.1:9090:9090"],
    }
    return {"services": {"vllm": vllm, "prometheus": prometheus}, "volumes": {"cache": {}}}


def _serve(plan: Plan) -> dict[str, Any]:
    """How to start one replica without containers, from inside the bundle."""
    model = "model" if kubernetes.is_local(plan) else plan.variant.model
    return {
        "module": kubernetes.SERVER[-1],
        "arguments": kubernetes.serve_arguments(plan, model),
    }
