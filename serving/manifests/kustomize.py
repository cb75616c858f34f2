"""Which files make up which overlay.

base/vllm, gateway, network, monitoring    what there is
fleets/TRACK       the replicas of one track, by name and label
overlays/TRACK     what is applied: a fleet, with the gateway but for the canary's
alternatives/      instead of something: each is applied in place of, or beside, overlays/stable
"""

from __future__ import annotations

import json
from typing import Any

from serving.manifests.autoscaling import keda_can
from serving.manifests.gateway import tracks
from serving.manifests.names import TRACKS, Object, app_name, fleet_name, gateway_name
from serving.manifests.templates import paths
from serving.manifests.vllm import is_local
from serving.plan import Plan

TRACK = "app.kubernetes.io/track"
_SHARED = ["../../base/gateway", "../../base/network", "../../base/monitoring"]
_IMAGES = ["../../images"]
_PATH = "kustomization.yaml"


def kustomizations(plan: Plan) -> dict[str, Object]:
    """Every kustomization of the bundle but the images', by path."""
    found = {
        f"base/vllm/{_PATH}": _vllm(plan),
        f"base/gateway/{_PATH}": _gateway(plan),
        f"base/network/{_PATH}": _kustomization(resources=network_policies(plan)),
        f"base/monitoring/{_PATH}": _monitoring(plan),
        f"alternatives/redis/{_PATH}": _kustomization(resources=["redis.yaml"], components=_IMAGES),
        f"alternatives/argo-rollouts/{_PATH}": _argo_rollouts(plan),
        f"alternatives/gateway-api/{_PATH}": _kustomization(
            resources=["../../fleets/canary", "gateway", "route.yaml"], components=_IMAGES
        ),
        f"alternatives/gateway-api/gateway/{_PATH}": _second_gateway(plan),
    }
    if keda_can(plan):
        found[f"alternatives/keda/{_PATH}"] = _keda(plan)
    for track in TRACKS:
        found[f"fleets/{track}/{_PATH}"] = _fleet(plan, track)
        found[f"overlays/{track}/{_PATH}"] = _overlay(plan, track)
    return found


def network_policies(plan: Plan) -> list[str]:
    """Those that the plan needs: a local model is fetched from nowhere."""
    names = [path.rpartition("/")[2] for path in paths("base/network")]
    return [name for name in names if name != "hub.yaml" or not is_local(plan)]


def _kustomization(**fields: Any) -> Object:
    return {
        "apiVersion": "kustomize.config.k8s.io/v1beta1",
        "kind": "Kustomization",
        **{name: value for name, value in fields.items() if value},
    }


def _vllm(plan: Plan) -> Object:
    resources = ["deployment.yaml", "service.yaml", "pdb.yaml", "service-monitor.yaml"]
    return _kustomization(
        resources=resources + ([] if plan.hpa is None else ["hpa.yaml"]),
        patches=[{"path": "model-volume.yaml"}] if is_local(plan) else [],
        replicas=[{"name": app_name(plan), "count": plan.replicas}] if plan.replicas else [],
    )


def _gateway(plan: Plan) -> Object:
    return _kustomization(
        resources=[
            *("deployment.yaml", "service.yaml", "hpa.yaml", "pdb.yaml", "service-monitor.yaml")
        ],
        # Named by its content, so that a change of the settings rolls the gateways.
        configMapGenerator=[{"name": gateway_name(plan), "files": ["settings.json"]}],
    )


def _monitoring(plan: Plan) -> Object:
    dashboard = {
        "name": f"{app_name(plan)}-dashboard",
        "files": ["dashboard.json"],
        "options": {"disableNameSuffixHash": True, "labels": {"grafana_dashboard": "1"}},
    }
    return _kustomization(resources=["prometheus-rule.yaml"], configMapGenerator=[dashboard])


def _fleet(plan: Plan, track: str) -> Object:
    monitor = {"path": "spec/selector/matchLabels", "kind": "ServiceMonitor", "create": True}
    label = {"pairs": {TRACK: track}, "includeSelectors": True, "fields": [monitor]}
    one = {"op": "replace", "path": "/spec/minReplicas", "value": 1}
    smallest = {"target": {"kind": "HorizontalPodAutoscaler"}, "patch": _inline([one])}
    canary = track == "canary"
    return _kustomization(
        resources=["../../base/vllm"],
        nameSuffix=fleet_name(plan, track).removeprefix(app_name(plan)),
        labels=[label],
        # At 1 % of the requests one replica will do; the autoscaler follows where the share grows.
        patches=[smallest] if canary and plan.hpa is not None else [],
        replicas=[{"name": app_name(plan), "count": 1}] if canary and plan.replicas else [],
    )


def _overlay(plan: Plan, track: str) -> Object:
    if track == "canary":
        return _kustomization(resources=["../../fleets/canary"], components=_IMAGES)
    colour = [] if track == "stable" else [_gateway_env(plan, "GATEWAY_STABLE", track)]
    return _kustomization(
        resources=[f"../../fleets/{track}", *_SHARED], components=_IMAGES, patches=colour
    )


def _gateway_env(plan: Plan, name: str, value: str) -> Object:
    patch = {
        "apiVersion": "apps/v1",
        "kind": "Deployment",
        "metadata": {"name": gateway_name(plan)},
        "spec": {
            "template": {
                "spec": {
                    "containers": [{"name": "gateway", "env": [{"name": name, "value": value}]}]
                }
            }
        },
    }
    return {"patch": _inline(patch)}


def _second_gateway(plan: Plan) -> Object:
    """A gateway that serves the canary alone, under selectors of its own.

    It calls that track `stable`, as the rollout's state in Redis does, which both gateways read.
    """
    only = {"stable": tracks(plan)["canary"]}
    instance = {"app.kubernetes.io/instance": f"{gateway_name(plan)}-canary"}
    monitor = {"path": "spec/selector/matchLabels", "kind": "ServiceMonitor"}
    return _kustomization(
        resources=["../../../base/gateway"],
        nameSuffix="-canary",
        labels=[{"pairs": instance, "includeSelectors": True, "fields": [monitor]}],
        patches=[_gateway_env(plan, "GATEWAY_TRACKS", json.dumps(only))],
    )


def _keda(plan: Plan) -> Object:
    gone = {
        "$patch": "delete",
        "apiVersion": "autoscaling/v2",
        "kind": "HorizontalPodAutoscaler",
        "metadata": {"name": app_name(plan)},
    }
    return _kustomization(
        resources=["../../overlays/stable", "scaled-object.yaml"],
        patches=[{"patch": _inline(gone)}],
    )


def _argo_rollouts(plan: Plan) -> Object:
    scaled = {"apiVersion": "argoproj.io/v1alpha1", "kind": "Rollout", "name": app_name(plan)}
    target = {"kind": "HorizontalPodAutoscaler", "name": app_name(plan)}
    moved = {"op": "replace", "path": "/spec/scaleTargetRef", "value": scaled}
    autoscaler = [{"target": target, "patch": _inline([moved])}] if plan.hpa else []
    routed = f'{{"stable": ["http://{app_name(plan)}-istio"]}}'
    return _kustomization(
        resources=[
            *("../../overlays/stable", "rollout.yaml", "service.yaml", "route.yaml"),
            "analysis-template.yaml",
        ],
        patches=[*autoscaler, _gateway_env(plan, "GATEWAY_TRACKS", routed)],
    )


def _inline(patch: Any) -> str:
    return json.dumps(patch)
