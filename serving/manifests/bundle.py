"""All files of a plan's deployment."""

from __future__ import annotations

import json
from functools import cache
from typing import Any

import yaml

from serving.manifests import (
    alert_cases,
    autoscaling,
    dashboard,
    gateway,
    images,
    monitoring,
    names,
    templates,
    vllm,
)
from serving.manifests.images import Images
from serving.manifests.kustomize import TRACK, kustomizations, network_policies
from serving.manifests.leaks import refuse_secrets
from serving.manifests.limits import refuse_what_cannot_run
from serving.plan import Plan

_POD = 'pod="vllm-0"'
"""Of the replica that the exported tests of the alerts are about."""


def render(plan: Plan, *, chosen: Images | None = None, weights: str = "") -> dict[str, str]:
    """The files that deploy a plan, by their path in the bundle.

    A model without a revision lies in the bundle's folder `model`; one with a revision is fetched
    from its hub.

    Args:    chosen: container images, pinned by digest; those left out are set in the bundle.
             weights: digest of the model in the bundle.
    Raises:  BundleError: an image that is not pinned, a fleet that Kubernetes cannot run, or a secret.
    """
    refuse_what_cannot_run(plan)
    chosen = chosen or Images()
    files = {
        **_templates(plan),
        **{path: dumped(value) for path, value in _objects(plan).items()},
        **_same_for_every_plan(),
        **{path: _json(value) for path, value in _json_files(plan, weights).items()},
        **images.files(chosen),
    }
    refuse_secrets(files)
    return dict(sorted(files.items()))


def dumped(value: Any) -> str:
    """YAML, in the order given and without anchors."""
    text: str = yaml.dump(value, Dumper=_Plain, sort_keys=False, width=100)
    return text


class _Plain(yaml.SafeDumper):
    def ignore_aliases(self, data: Any) -> bool:
        return True


def _templates(plan: Plan) -> dict[str, str]:
    values = _values(plan)
    folders = [
        *("base/vllm", "base/gateway", "alternatives/redis", "alternatives/argo-rollouts"),
        *("alternatives/gateway-api", "proxy", "logs", "docker", "monitoring", "runbooks"),
    ]
    found = [path for folder in folders for path in templates.paths(folder)]
    found += [f"base/network/{name}" for name in network_policies(plan)]
    if not vllm.is_local(plan):
        found.remove("base/vllm/model-volume.yaml")
    return {path: templates.fill(path, values) for path in [*found, "compose.yaml"]}


def _values(plan: Plan) -> dict[str, Any]:
    """What the templates' placeholders stand for."""
    canary = f'pod=~"{names.app_name(plan)}-{{{{args.canary-hash}}}}-.*"'
    volumes = ["cache:/cache"]
    if vllm.is_local(plan):
        volumes.append(f"./model:{vllm.MODEL_PATH}:ro")
    return {
        "app": names.app_name(plan),
        "gateway": names.gateway_name(plan),
        "redis": names.redis_name(plan),
        "vllm_labels": names.vllm_labels(plan),
        "stable_labels": names.vllm_labels(plan) | {TRACK: "stable"},
        "gateway_labels": names.gateway_labels(plan),
        "gateway_role": names.gateway_role(plan),
        "redis_labels": names.redis_labels(plan),
        "part_labels": names.part_labels(plan),
        "port": names.VLLM_PORT,
        "gateway_port": names.GATEWAY_PORT,
        "gateway_port_2": names.GATEWAY_PORT + 1,
        "server": vllm.SERVER,
        "arguments": vllm.container_arguments(plan),
        "environment": vllm.environment(plan),
        "volumes": volumes,
        "warm_up": {"model": plan.variant.name, "prompt": "Hello", "max_tokens": 1},
        "gpus": plan.gpus_per_replica,
        "grace_s": vllm.GRACE_S,
        "pre_stop_s": vllm.PRE_STOP_S,
        "tracks": gateway.tracks(plan),
        "api_keys": gateway.API_KEYS,
        "gateway_grace_s": gateway.GRACE_S,
        "scrape_interval": monitoring.SCRAPE_INTERVAL,
        "prometheus_url": names.PROMETHEUS_URL,
        "min_sample": monitoring.MIN_SAMPLE,
        "canary_errors": monitoring.canary_errors(canary),
        "canary_ttft": monitoring.canary_ttft(canary),
        **monitoring.canary_limits(plan),
    }


def _json(value: Any) -> str:
    return json.dumps(value, indent=2) + "\n"


def _json_files(plan: Plan, weights: str) -> dict[str, Any]:
    return {
        "base/gateway/settings.json": gateway.settings(plan, weights),
        "base/monitoring/dashboard.json": dashboard.dashboard(plan),
        "serve.json": vllm.without_containers(plan),
    }


def _objects(plan: Plan) -> dict[str, Any]:
    """What is made of data rather than of a template."""
    found = {
        **kustomizations(plan),
        "base/monitoring/prometheus-rule.yaml": monitoring.prometheus_rule(plan),
        "monitoring/prometheus-adapter.yaml": autoscaling.adapter_rules(plan),
    }
    scaler = autoscaling.autoscaler(plan)
    if scaler is not None:
        found["base/vllm/hpa.yaml"] = scaler
    if autoscaling.keda_can(plan):
        found["alternatives/keda/scaled-object.yaml"] = autoscaling.scaled_object(plan)
    return found


@cache
def _same_for_every_plan() -> dict[str, str]:
    tests = alert_cases.promtool_tests("rules.yml", "", alert_cases.cases(_POD))
    return {
        "monitoring/rules.yml": dumped(monitoring.rule_groups()),
        "monitoring/rules_test.yml": dumped(tests),
        "monitoring/prometheus.yml": dumped(monitoring.scrape_config()),
    }
